"""Which images look wholly clean, and which network trains on them: Co-teaching with a mixture of instance losses.

Two networks are trained side by side. Each divides the training images by its own losses, and each learns from the
images that the *other* one selected, so that a network does not confirm its own mistakes (Han et al. 2018; the mixture
is that of Li, Socher, Hoi 2020).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_balancemix.method.mixture import label_posteriors

SELECTED_ABOVE = 0.5
"""An image is selected if its posterior is above this."""


def instance_posteriors(losses: Tensor, *, min_fit: int = 4, monotone: bool = False) -> Tensor:
    """Posterior that an image belongs to the small-loss (clean) mode, by a mixture of two Gaussians per network.

    The mixtures are those of `label_posteriors`: min–max normalised losses, the same start, steps and floor. Where
    nothing separates two modes, every image is clean.

    Args:
        losses: (N, M) loss of every training image under each of M networks, summed over the classes.
        min_fit: As in `label_posteriors`, like the next one.
        monotone: A larger loss never looks cleaner.

    Returns:
        (N, M) float32, float64 if the losses are.

    Raises:
        ValueError: `losses` is not (N, M) with N ≥ 1, or a loss is NaN or −inf.
    """
    # One label value: each network's losses are one set.
    fit = label_posteriors(losses, torch.zeros_like(losses), min_fit=min_fit, monotone=monotone)
    return fit.posterior


def exchange(posterior: Tensor) -> Tensor:
    """Which images each network trains on: those that the other network selected.

    Args:
        posterior: (N, 2) of the first and the second network.

    Returns:
        (2, N) bool; row 0 for the first network.
    """
    return (posterior > SELECTED_ABOVE).T.flip(0)


def mean_probability_logits(first: Tensor, second: Tensor) -> Tensor:
    """Logits of the mean of two networks' probabilities, exact where both probabilities round to 0 or 1.

    Args:
        first: Logits of any shape, computed with in float32 or wider.
        second: Those of the other network, same shape.

    Returns:
        log(p / (1 − p)) of p = (σ(first) + σ(second)) / 2.
    """
    dtype = torch.promote_types(first.dtype, torch.float32)
    first, second = first.to(dtype), second.to(dtype)
    present = torch.logaddexp(F.logsigmoid(first), F.logsigmoid(second))
    return present - torch.logaddexp(F.logsigmoid(-first), F.logsigmoid(-second))


def step_weights(order: Tensor, trained: Tensor, step_size: int) -> Tensor:
    """Weights that turn the mean over an optimiser step's images into the mean over those that are trained on.

    However a step is divided over processes and accumulated batches, the mean of weight · loss over all its images
    is the mean loss of the trained ones; a step without any gives 0.

    Args:
        order: (n,) rows in the order of the epoch; a step takes the next `step_size` of them.
        trained: (N,) bool, the rows that are trained on.
        step_size: Images per optimiser step.

    Returns:
        (N,) float32, by row: size of its step / trained rows in it, and 0 for rows that are not trained on or not in
        `order`.
    """
    chosen = trained[order].double()
    step = torch.arange(len(order)) // step_size
    share = step.bincount(chosen) / step.bincount()
    weights = torch.zeros(len(trained), dtype=torch.float64)
    weights[order] = chosen / share.clamp(min=1 / step_size)[step]
    return weights.float()
