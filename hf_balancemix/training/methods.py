"""The methods by name: a plain table of trainer and options, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_balancemix.training.balancemix import BalanceMixTrainer
from hf_balancemix.training.co_teaching import CoTeachingTrainer
from hf_balancemix.training.multilabel import MultiLabelTrainer
from hf_balancemix.training.t_estimator import TEstimatorTrainer


@dataclass(frozen=True)
class Method:
    """A trainer class and the argument values that make it this method."""

    trainer: type[MultiLabelTrainer]
    options: dict[str, Any] = field(default_factory=dict)


_BATCH = "batch"  # plain Mixup, as all baselines of the paper but BCE have it
METHODS: dict[str, Method] = {
    "bce": Method(MultiLabelTrainer, {"second_sampler": "none"}),
    "focal": Method(MultiLabelTrainer, {"loss": "focal", "second_sampler": _BATCH}),
    "asl": Method(MultiLabelTrainer, {"loss": "asl", "second_sampler": _BATCH}),
    "ll_r": Method(MultiLabelTrainer, {"loss": "ll_r", "second_sampler": _BATCH}),
    "ll_ct": Method(MultiLabelTrainer, {"loss": "ll_ct", "second_sampler": _BATCH}),
    "t_estimator": Method(TEstimatorTrainer, {"loss": "bce", "second_sampler": _BATCH}),
    "co_teaching": Method(CoTeachingTrainer, {"loss": "bce", "second_sampler": _BATCH}),
    # The steps of the paper's Tables 5 and 13, each adding to the one before.
    "mixup": Method(BalanceMixTrainer, {"second_sampler": "random", "refinement": "none"}),
    "minority": Method(BalanceMixTrainer, {"refinement": "none"}),
    "clean": Method(BalanceMixTrainer, {"refinement": "clean"}),
    "relabelled": Method(BalanceMixTrainer, {"refinement": "relabelled"}),
    "balancemix_no_minority": Method(BalanceMixTrainer, {"second_sampler": "random"}),
    "balancemix": Method(BalanceMixTrainer),
}
