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


_MIXUP = {"second_sampler": "batch"}  # plain Mixup, as all baselines of the paper but BCE have it
_RANDOM, _MINORITY = {"second_sampler": "random"}, {"second_sampler": "minority"}
_BCE = {"loss": "bce"}
METHODS: dict[str, Method] = {
    "bce": Method(MultiLabelTrainer, {**_BCE, "second_sampler": "none"}),
    "focal": Method(MultiLabelTrainer, {**_MIXUP, "loss": "focal"}),
    "asl": Method(MultiLabelTrainer, {**_MIXUP, "loss": "asl"}),
    "ll_r": Method(MultiLabelTrainer, {**_MIXUP, "loss": "ll_r"}),
    "ll_ct": Method(MultiLabelTrainer, {**_MIXUP, "loss": "ll_ct"}),
    "co_teaching": Method(CoTeachingTrainer, {**_MIXUP, **_BCE}),
    "t_estimator": Method(TEstimatorTrainer, {**_MIXUP, **_BCE}),
    # The steps of the paper's Tables 5 and 13, each adding to the one before.
    "mixup": Method(BalanceMixTrainer, {**_RANDOM, **_BCE, "refinement": "none"}),
    "minority": Method(BalanceMixTrainer, {**_MINORITY, **_BCE, "refinement": "none"}),
    "clean": Method(BalanceMixTrainer, {**_MINORITY, **_BCE, "refinement": "clean"}),
    "relabelled": Method(BalanceMixTrainer, {**_MINORITY, **_BCE, "refinement": "relabelled"}),
    "balancemix_no_minority": Method(BalanceMixTrainer, {**_RANDOM, "refinement": "full"}),
    # Its loss may be another one (`--loss asl`), as for the paper's Table 6.
    "balancemix": Method(BalanceMixTrainer, {**_MINORITY, "refinement": "full"}),
}
