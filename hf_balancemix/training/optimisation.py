"""The optimiser's side of the ASL and ML-Decoder training scripts: one-cycle schedule, weight decay on matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import OneCycleLR

_RISE = 0.2


class _OneCycle(OneCycleLR):
    """``OneCycleLR`` that goes on only with a cycle of its own length."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (found := state_dict.get("total_steps")) != self.total_steps:
            raise ValueError(
                f"Expected a checkpoint of a one-cycle run over {self.total_steps} optimiser steps, found one over "
                f"{found or 'another schedule'}. The cycle spans the whole run and cannot be stretched: resume with "
                "the same `num_train_epochs`, `max_steps` and `one_cycle`, or start anew in another `output_dir`."
            )
        super().load_state_dict(state_dict)


def one_cycle(optimizer: torch.optim.Optimizer, num_training_steps: int) -> OneCycleLR:
    """Return the one-cycle schedule of the ASL and ML-Decoder scripts (Smith and Topin, 2018).

    The learning rate rises from a 25th of its peak in the first fifth of the steps and falls to a 250,000th, both
    along a cosine; the momentum (β₁ of Adam) goes from 0.95 down to 0.85 and back, unless the optimiser has none.
    Fewer than five steps have no rise.

    Relations: it takes the place of ``lr_scheduler_type`` and ``warmup_steps``, and of the optimiser's own momentum.

    Args:
        optimizer: Its learning rates are the peak, group by group.
        num_training_steps: Optimiser steps of the run, not batches and not steps of single processes.

    Returns:
        A scheduler to step once after each optimiser step. It refuses the state of a run of another length.
    """
    groups = optimizer.param_groups
    # With five steps the rise would end at step 0, and PyTorch (2.14) divides by its length.
    rise = _RISE + 1e-9 if num_training_steps * _RISE == 1 else _RISE
    return _OneCycle(
        optimizer,
        # An optimiser that has been through a cycle before is left with next to no rate.
        max_lr=[group.get("max_lr", group["lr"]) for group in groups],
        total_steps=num_training_steps,
        pct_start=rise,
        cycle_momentum=any("betas" in group or group.get("momentum") for group in groups),
    )


def decay_parameter_names(model: torch.nn.Module, which: str, default: Sequence[str]) -> list[str]:
    """Return the names of the parameters that weight decay is applied to.

    Args:
        model: Any module.
        which: ``"all"`` (the paper); ``"matrices"``, those of two dimensions or more (the ASL and ML-Decoder scripts:
            biases and norms are out, position embeddings and class tokens are in); or ``"weights"``, ``default``.
        default: Names that the Trainer would choose: all but biases and layer norms. Weights of batch norms are in.
    """
    if which == "weights":
        return list(default)
    return [name for name, parameter in model.named_parameters() if which == "all" or parameter.ndim >= 2]
