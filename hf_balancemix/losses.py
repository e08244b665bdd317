"""Losses of multi-label training, all on one scale: sum over classes, mean over instances (Eq. 1).

Every function takes logits, never probabilities, and computes in float32 or wider, so that mixed precision and
saturated logits do no harm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

CLASS_REDUCTIONS = ("sum", "mean")


def weighted_bce(
    logits: torch.Tensor,
    targets: torch.Tensor,
    entry_weights: torch.Tensor | None = None,
    class_reduction: str = "sum",
) -> torch.Tensor:
    """Binary cross-entropy of Eq. 1, or of Eq. 10 when every entry has a weight.

    Relations: without weights this is K times ``torch.nn.BCEWithLogitsLoss()``, which also averages over classes;
    ``class_reduction="mean"`` gives that value. With weights 1 for clean and re-labelled entries and the posterior
    for ambiguous ones it is Eq. 10.

    Args:
        logits: (B, K) raw scores of any floating type.
        targets: (B, K) in [0, 1]; fractions are meant (Mixup).
        entry_weights: (B, K) weight of each entry in the loss, or ``None`` for 1 everywhere.
        class_reduction: ``"sum"`` (Eq. 1) or ``"mean"`` over the K classes; instances are always averaged.

    Returns:
        A scalar.

    Raises:
        ValueError: If the shapes differ or ``class_reduction`` is unknown.
    """
    if logits.shape != targets.shape:
        raise ValueError(
            f"`logits` and `targets` must have one shape (B, K): got {tuple(logits.shape)} and {tuple(targets.shape)}."
        )
    if class_reduction not in CLASS_REDUCTIONS:
        raise ValueError(f"`class_reduction` must be one of {CLASS_REDUCTIONS}, got {class_reduction!r}.")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    loss = F.binary_cross_entropy_with_logits(logits.to(dtype), targets.to(dtype), reduction="none")
    if entry_weights is not None:
        loss = loss * entry_weights.to(dtype)
    per_instance = loss.sum(dim=1) if class_reduction == "sum" else loss.mean(dim=1)
    return per_instance.mean()


def label_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the (N, K) BCE of every label, the raw material of Eq. 6.

    Args:
        logits: (N, K) raw scores.
        labels: (N, K) given labels in {0, 1}.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.binary_cross_entropy_with_logits(logits.to(dtype), labels.to(dtype), reduction="none")
