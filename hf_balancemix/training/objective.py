"""From a batch to the loss of its entries: the model's logits, and the loss that the arguments ask for."""

from __future__ import annotations

from typing import Any

import torch

from hf_balancemix.losses import asymmetric_loss, focal_loss, large_loss, large_loss_rate, weighted_bce

# Percent of the labels, which the published runs of LL-R and LL-Ct approach, whatever the number of their epochs.
_LAST_RATE = 2.0


def logits_of(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return the (B, K) logits of a model on images.

    Args:
        model: Of transformers or wrapped around one; its output is a dict with ``logits``, or a tuple with them first.
        pixels: (B, 3, H, W).

    Raises:
        ValueError: If the model is in training mode and its batch norm has a single value to average.
    """
    try:
        outputs = model(pixel_values=pixels)
    except ValueError as error:
        if len(pixels) > 1 or not str(error).startswith("Expected more than 1 value per channel"):  # PyTorch's words
            raise
        raise ValueError(
            "Expected at least two images per batch and process in training, found one: batch norm has nothing to "
            "average over where a map is down to one pixel. Raise `per_device_train_batch_size` (a recipe's "
            "--total_batch_size), or set `dataloader_drop_last=True` if it is the last batch of an epoch."
        ) from error
    logits: torch.Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return logits


def entry_losses(args: Any, epoch: int, num_epochs: int, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the (B, K) losses of ``args.loss``.

    Args:
        args: :class:`BalanceMixTrainingArguments`.
        epoch: Zero-based number of the epoch; large-loss methods change more labels in each.
        num_epochs: Epochs of the run, which decide how many more unless ``args.large_loss_rate`` does.
        logits: (B, K) raw scores.
        targets: (B, K); fractions for ``bce`` only.
    """
    if args.loss == "focal":
        return focal_loss(logits, targets, args.focal_gamma, args.focal_alpha, "none")
    if args.loss == "asl":
        focusing = (args.asl_gamma_negative, args.asl_gamma_positive, args.asl_margin, args.asl_detach)
        return asymmetric_loss(logits, targets, *focusing, class_reduction="none")
    if args.loss in ("ll_r", "ll_ct"):
        percent = _LAST_RATE / max(1, num_epochs) if args.large_loss_rate is None else args.large_loss_rate
        rate = large_loss_rate(epoch, percent)
        return large_loss(logits, targets, rate, args.loss == "ll_ct", "none")
    return weighted_bce(logits, targets, class_reduction="none")
