"""Losses of multi-label training: plain functions, and modules that also plug into the stock Trainer."""

from hf_balancemix.losses.functional import (
    CLASS_REDUCTIONS,
    LOSSES,
    EntryLosses,
    asymmetric_loss,
    focal_loss,
    label_losses,
    large_loss,
    large_loss_rate,
    pair_losses,
    reduce_losses,
    reweighted_losses,
    weighted_bce,
)
from hf_balancemix.losses.modules import AsymmetricLoss, BCELoss, FocalLoss, LargeLoss

__all__ = [
    "CLASS_REDUCTIONS",
    "LOSSES",
    "AsymmetricLoss",
    "BCELoss",
    "EntryLosses",
    "FocalLoss",
    "LargeLoss",
    "asymmetric_loss",
    "focal_loss",
    "label_losses",
    "large_loss",
    "large_loss_rate",
    "pair_losses",
    "reduce_losses",
    "reweighted_losses",
    "weighted_bce",
]
