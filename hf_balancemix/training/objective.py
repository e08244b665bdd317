"""From the arguments of a run to the loss of its entries."""

from __future__ import annotations

from typing import Any

import torch

from hf_balancemix.losses import asymmetric_loss, focal_loss, large_loss, large_loss_rate, weighted_bce


def entry_losses(args: Any, epoch: int, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the (B, K) losses of ``args.loss``.

    Args:
        args: :class:`BalanceMixTrainingArguments`.
        epoch: Zero-based number of the epoch; large-loss methods change more labels in each.
        logits: (B, K) raw scores.
        targets: (B, K); fractions for ``bce`` only.
    """
    if args.loss == "focal":
        return focal_loss(logits, targets, args.focal_gamma, args.focal_alpha, "none")
    if args.loss == "asl":
        focusing = (args.asl_gamma_negative, args.asl_gamma_positive, args.asl_margin, args.asl_detach)
        return asymmetric_loss(logits, targets, *focusing, class_reduction="none")
    if args.loss in ("ll_r", "ll_ct"):
        rate = large_loss_rate(epoch, args.large_loss_rate)
        return large_loss(logits, targets, rate, args.loss == "ll_ct", "none")
    return weighted_bce(logits, targets, class_reduction="none")
