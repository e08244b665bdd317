"""The losses as modules, for plain PyTorch and for ``transformers.Trainer(compute_loss_func=...)``.

The stock Trainer takes the value of its ``compute_loss_func`` for one that is already divided by the entries of all
accumulated batches and processes, and hands over their number. The modules divide by it, so that the gradient does
not depend on how a batch is split (huggingface/transformers#47688 does for the Trainer's own multi-label loss).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from hf_balancemix.losses.functional import (
    CLASS_REDUCTIONS,
    asymmetric_loss,
    focal_loss,
    large_loss,
    reduce_losses,
    weighted_bce,
)

_ENTRY = torch.zeros(1, 1, device="cpu")


class _Loss(nn.Module, ABC):
    """Reduces the entries of a loss as Eq. 1 does, over the batch or over the whole optimiser step."""

    def __init__(self, class_reduction: str = "sum") -> None:
        super().__init__()
        if class_reduction not in CLASS_REDUCTIONS:
            raise ValueError(f"Expected `class_reduction` to be one of {CLASS_REDUCTIONS}, found {class_reduction!r}.")
        self.class_reduction = class_reduction

    @abstractmethod
    def entries(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the (B, K) losses."""

    def forward(
        self, outputs: Any, labels: torch.Tensor | None, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            outputs: (B, K) logits, or a model output that has them as ``logits`` or, as a tuple, first.
            labels: (B, K), 0 or 1.
            num_items_in_batch: Entries in all batches of the optimiser step, as the Trainer counts them; ``None`` for
                the mean over this batch.

        Raises:
            ValueError: If there are no labels, or from the loss itself.
        """
        if labels is None:  # what the Trainer passes when the batch has no such key
            raise ValueError("Expected multi-hot labels (B, K) under the key 'labels' of each batch, found none.")
        if isinstance(outputs, torch.Tensor):
            logits = outputs
        else:
            logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        entries = self.entries(logits, labels)
        if num_items_in_batch is None:
            return reduce_losses(entries, self.class_reduction)
        classes = entries.shape[1] if self.class_reduction == "sum" else 1
        return entries.sum() * classes / num_items_in_batch


class BCELoss(_Loss):
    """Binary cross-entropy on Eq. 1's scale: :func:`weighted_bce` without weights."""

    def entries(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the (B, K) losses."""
        return weighted_bce(logits, targets, class_reduction="none")


class FocalLoss(_Loss):
    """:func:`focal_loss` with its parameters, which are checked at once."""

    def __init__(self, gamma: float = 2.0, alpha: float | None = None, class_reduction: str = "sum") -> None:
        super().__init__(class_reduction)
        self.gamma, self.alpha = gamma, alpha
        self.entries(_ENTRY, _ENTRY)  # refuses what is out of range

    def entries(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the (B, K) losses."""
        return focal_loss(logits, targets, self.gamma, self.alpha, "none")


class AsymmetricLoss(_Loss):
    """:func:`asymmetric_loss` with its parameters, which are checked at once."""

    def __init__(
        self,
        gamma_negative: float = 4.0,
        gamma_positive: float = 0.0,
        margin: float = 0.05,
        detach_weight: bool = True,
        class_reduction: str = "sum",
    ) -> None:
        super().__init__(class_reduction)
        self.gamma_negative, self.gamma_positive = gamma_negative, gamma_positive
        self.margin, self.detach_weight = margin, detach_weight
        self.entries(_ENTRY, _ENTRY)  # refuses what is out of range

    def entries(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the (B, K) losses."""
        focusing = (self.gamma_negative, self.gamma_positive, self.margin, self.detach_weight)
        return asymmetric_loss(logits, targets, *focusing, class_reduction="none")


class LargeLoss(_Loss):
    """:func:`large_loss` with its parameters, which are checked at once.

    Set ``rate`` anew at each epoch (:func:`large_loss_rate`).
    """

    def __init__(self, rate: float = 0.0, correct: bool = False, class_reduction: str = "sum") -> None:
        super().__init__(class_reduction)
        self.rate, self.correct = rate, correct
        self.entries(_ENTRY, _ENTRY)  # refuses what is out of range

    def entries(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the (B, K) losses."""
        return large_loss(logits, targets, self.rate, self.correct, "none")
