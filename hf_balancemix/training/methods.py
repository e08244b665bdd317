"""The methods by name: a plain table of trainer and options, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_balancemix.training.balancemix import BalanceMixTrainer
from hf_balancemix.training.multilabel import MultiLabelTrainer


@dataclass(frozen=True)
class Method:
    """A trainer class and the argument values that make it this method."""

    trainer: type[MultiLabelTrainer]
    options: dict[str, Any] = field(default_factory=dict)


# The middle five are the steps of the paper's Tables 5 and 13, each adding to the one before.
METHODS: dict[str, Method] = {
    "bce": Method(MultiLabelTrainer),
    "mixup": Method(BalanceMixTrainer, {"second_sampler": "random", "refinement": "none"}),
    "minority": Method(BalanceMixTrainer, {"refinement": "none"}),
    "clean": Method(BalanceMixTrainer, {"refinement": "clean"}),
    "relabelled": Method(BalanceMixTrainer, {"refinement": "relabelled"}),
    "balancemix_no_minority": Method(BalanceMixTrainer, {"second_sampler": "random"}),
    "balancemix": Method(BalanceMixTrainer),
}
