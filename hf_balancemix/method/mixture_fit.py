"""Two-component mixtures of Gaussians, one per class and given label, fitted to histograms of losses (Eq. 7)."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from hf_balancemix.method.histogram import BINS, MIN_RANGE, LossHistogram, span
from hf_balancemix.method.mixture_posterior import Mixtures, log_joint

START_MEANS = (0.0, 1.0)
START_VARIANCE = 0.04
"""Fixed start on normalised losses (weights ½). With so few steps the start decides, so it is not drawn at random."""

MIN_SEPARATION = 1e-2
"""Sets whose two fitted means (normalised) are closer than this have collapsed onto one mode."""

MIN_RISE = 1e-6
"""Rises of the posterior below this are rounding, not `non_monotone`."""

SETS_TOGETHER = 2**16 // BINS
"""Sets fitted together: few enough for the cache."""


def fit_mixtures(
    histogram: LossHistogram,
    *,
    min_fit: int = 4,
    trust_positives: bool = False,
    separation: float = 0.0,
    disagreement: float = 0.0,
    max_steps: int = 10,
    tolerance: float = 1e-2,
    covariance_floor: float = 5e-4,
) -> Mixtures:
    """Fit the mixture of every class and label value, at a cost that does not depend on how many losses there are.

    Args:
        histogram: Losses of the whole training set.
        min_fit: As in `label_posteriors`, like all that follow.
        trust_positives: Take every label 1 as clean.
        separation: Least Ashman's D of a set that is divided.
        disagreement: Least mean loss of the large-loss component of a set that is divided.
        max_steps: Largest number of EM steps.
        tolerance: A set stops once its mean log-likelihood changes by less than this.
        covariance_floor: Added to every variance. Below 1e-4 the bins are too wide for an exact fit.

    Returns:
        The mixtures, on the device of the histograms.
    """
    size = histogram.count.sum(dim=-1)
    low, high = (torch.where(size > 0, end, 0.0) for end in (histogram.low, histogram.high))
    eligible = (size >= min_fit) & (high - low >= MIN_RANGE)
    eligible[1] &= not trust_positives
    ends = torch.stack([low, high], dim=-1)
    tables = [table.flatten(0, 1) for table in (histogram.count, histogram.total, ends, eligible)]
    parts = [
        _fit_block(count, total, ends, active, max_steps, tolerance, covariance_floor)
        for count, total, ends, active in zip(*(table.split(SETS_TOGETHER) for table in tables), strict=True)
    ]
    means, variances, weights, n_steps = (
        torch.cat(tables).unflatten(0, low.shape) for tables in zip(*parts, strict=True)
    )
    # The component with the smaller mean comes first; with equal means nothing moves.
    swap = (means[..., 1] < means[..., 0])[..., None]
    means, variances, weights = (torch.where(swap, table.flip(-1), table) for table in (means, variances, weights))
    gap = means[..., 1] - means[..., 0]
    ashman_d = math.sqrt(2) * gap / variances.sum(dim=-1).sqrt()
    larger_mean = low + means[..., 1] * (high - low)
    fitted = eligible & (gap >= MIN_SEPARATION) & (ashman_d >= separation) & (larger_mean >= disagreement)
    found = Mixtures(means, variances, weights, n_steps, low, high, fitted, torch.zeros_like(fitted))
    constant, slope, curvature = found.log_odds
    turn = found.turning_points.clamp(max=1)
    lowest, last = ((constant + x * (slope + x * curvature)).sigmoid() for x in (turn, torch.ones_like(turn)))
    return replace(found, non_monotone=fitted & (last > lowest + MIN_RISE))


def _fit_block(
    count: Tensor,
    total: Tensor,
    ends: Tensor,
    active: Tensor,
    max_steps: int,
    tolerance: float,
    covariance_floor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit the `active` (S,) of the sets (S, BINS), `ends` (S, 2), by EM; means, variances, weights (S, 2), steps."""
    low, high = ends.unbind(dim=-1)
    count = count.double()
    value = (total / count.clamp(min=1)).sub_(low[:, None]).div_(span(low, high)[:, None]).mul_(count > 0)
    size = count.sum(dim=-1).clamp(min=1)
    means = value.new_tensor(START_MEANS).repeat(len(value), 1)
    variances, weights = torch.full_like(means, START_VARIANCE), torch.full_like(means, 0.5)
    n_steps = torch.zeros_like(active, dtype=torch.int64)
    previous = torch.full_like(size, -math.inf)
    for _ in range(max_steps):
        if not bool(active.any()):
            break
        first, second = (
            (value * curvature[:, None]).add_(slope[:, None]).mul_(value).add_(constant[:, None])
            for constant, slope, curvature in log_joint(means, variances, weights).permute(1, 2, 0)
        )
        bound = torch.logaddexp(first, second).mul_(count).sum(dim=-1) / size
        log_odds = first.sub_(second)
        responsibilities = log_odds.sigmoid(), log_odds.neg().sigmoid_()
        sums = torch.stack([_moments(share.mul_(count), value) for share in responsibilities], dim=1)
        # The same guard against an empty component as in scikit-learn.
        mass = sums[..., 0] + 10 * torch.finfo(sums.dtype).eps
        mean = sums[..., 1] / mass
        update = active[:, None]
        means = torch.where(update, mean, means)
        variances = torch.where(update, sums[..., 2] / mass - mean**2 + covariance_floor, variances)
        weights = torch.where(update, mass / mass.sum(dim=-1, keepdim=True), weights)
        n_steps = n_steps + active
        active = active & ((bound - previous).abs() >= tolerance)
        previous = bound
    return means, variances, weights, n_steps


def _moments(weight: Tensor, value: Tensor) -> Tensor:
    """Σ w, Σ w·x, Σ w·x² of each row of (S, B), as (S, 3)."""
    first = weight * value
    return torch.stack([weight.sum(dim=-1), first.sum(dim=-1), (first * value).sum(dim=-1)], dim=-1)
