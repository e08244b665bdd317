"""Mixtures of two Gaussians and the posteriors that follow from them (Eq. 8)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_balancemix.method.histogram import row_chunks, span, working_dtype


@dataclass(frozen=True)
class Mixtures:
    """The 2K mixtures of clean and mislabelled losses: a few numbers per class, from which all posteriors follow.

    Leading indices are (label value, class); component 0 is the one with the smaller mean. Means and variances are
    those of normalised losses, (loss − low) / (high − low).

    Attributes:
        means: (2, K, 2) float64. Sets that were never fitted keep the start values, here and in the next two.
        variances: (2, K, 2) float64, covariance floor included.
        weights: (2, K, 2) float64, summing to 1 over the components.
        n_steps: (2, K) int64, EM steps done; 0 for sets that were never fitted.
        low: (2, K) float64, smallest finite raw loss of the set; 0 for an empty set.
        high: (2, K) float64, largest finite raw loss of the set; 0 for an empty set.
        fitted: (2, K) bool, False where the whole set is taken as clean: too few losses, no spread, collapsed or
            unseparated modes, or trusted positives.
        non_monotone: (2, K) bool, True where the posterior of Eq. 8 rises again towards the largest losses, as happens
            when the small-loss mode is the wider one. Tells how often `monotone` would matter, whether it is on or
            not.
    """

    means: Tensor
    variances: Tensor
    weights: Tensor
    n_steps: Tensor
    low: Tensor
    high: Tensor
    fitted: Tensor
    non_monotone: Tensor

    def stacked(self) -> Tensor:
        """(2, K, 9) float64: all that posteriors follow from, as one tensor for files and other processes."""
        single = torch.stack([self.low, self.high, self.fitted.to(self.low.dtype)], dim=-1)
        return torch.cat([self.means, self.variances, self.weights, single], dim=-1)

    @classmethod
    def unstacked(cls, table: Tensor) -> Mixtures:
        """The mixtures of `stacked`; what no posterior depends on, ``n_steps`` and ``non_monotone``, is 0."""
        means, variances, weights, single = table.split([2, 2, 2, 3], dim=-1)
        low, high, fitted = single.unbind(dim=-1)
        nothing = torch.zeros_like(fitted, dtype=torch.int64)
        return cls(means, variances, weights, nothing, low, high, fitted == 1, nothing.bool())

    @functools.cached_property
    def log_odds(self) -> Tensor:
        """Coefficients (3, 2, K) of 1, x and x² in the log-odds of the small-loss component at normalised loss x."""
        first, second = log_joint(self.means, self.variances, self.weights).unbind(dim=-2)
        return (first - second).movedim(-1, 0)

    @functools.cached_property
    def turning_points(self) -> Tensor:
        """(2, K) normalised loss above which the posterior rises again; ∞ where it does not."""
        # Above the small mean the posterior falls for ever unless the small-loss mode is the wider one; then it falls
        # to the vertex of its log-odds, which lies beyond the larger mean, and rises from there on.
        _, slope, curvature = self.log_odds
        return torch.where(curvature > 0, -slope / (2 * curvature), math.inf)


def log_joint(means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    """Logarithm of weight times density of (..., 2) components: (..., 2, 3) coefficients of 1, x and x²."""
    constant = weights.log() - (2 * math.pi * variances).log() / 2 - means**2 / (2 * variances)
    return torch.stack([constant, means / variances, -0.5 / variances], dim=-1)


def gaussian_posterior(losses: Tensor, means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    """Posterior of the component with the smaller mean, in closed form (Eq. 8).

    Args:
        losses: Finite losses of any shape, in the unit of the means.
        means: (..., 2) means of the two components in any order; the leading dimensions broadcast against `losses`.
        variances: (..., 2) variances, above 0.
        weights: (..., 2) mixture weights, not both 0.

    Returns:
        float64 in [0, 1], broadcast shape. If the means are equal, the posterior of component 0.
    """
    losses, means, variances = losses.double(), means.double(), variances.double()
    constant = weights.double().log() - variances.log() / 2
    first, second = (constant[..., j] - (losses - means[..., j]) ** 2 / (2 * variances[..., j]) for j in (0, 1))
    gap = first - second
    # The sigmoid of the gap is p₀ / (p₀ + p₁) without forming densities that underflow far from both means.
    return torch.where(means[..., 1] < means[..., 0], -gap, gap).sigmoid()


def mixture_posteriors(
    losses: Tensor, labels: Tensor, mixtures: Mixtures, *, monotone: bool = False, trust_positives: bool = False
) -> Tensor:
    """Posterior of given labels under fitted mixtures (Eq. 8): of the training set, a shard of it or a batch.

    Args:
        losses: (B, K) loss of each entry against its given label, not NaN.
        labels: (B, K) given labels, 0 or 1, any dtype.
        mixtures: From `fit_mixtures`.
        monotone: As in `label_posteriors`, like the next one.
        trust_positives: Take every label 1 as clean.

    Returns:
        (B, K) float32, float64 if the losses are. 1 in sets that are not fitted, 0 for an infinite loss.
    """
    dtype = working_dtype(losses)
    width = span(mixtures.low, mixtures.high).to(dtype)
    low, small_mean, turn = (t.to(dtype) for t in (mixtures.low, mixtures.means[..., 0], mixtures.turning_points))
    whole = mixtures.log_odds.new_tensor([math.inf, 0.0, 0.0])[:, None, None]
    coefficients = torch.where(mixtures.fitted, mixtures.log_odds, whole).to(dtype)

    def log_odds(loss: Tensor, label: int) -> Tensor:
        constant, slope, curvature = coefficients[:, label]
        value = (loss - low[label]) / width[label]
        lowered = torch.minimum(value, turn[label]) if monotone else value
        found = (lowered * curvature).add_(slope).mul_(lowered).add_(constant)
        return torch.where(value < small_mean[label], math.inf, found) if monotone else found

    posterior = torch.empty_like(losses, dtype=dtype)
    for rows, loss, positive in row_chunks(losses, labels):
        clean = torch.where(positive, log_odds(loss, 1), log_odds(loss, 0)).sigmoid_()
        clean = torch.where(loss < math.inf, clean, 0.0)
        posterior[rows] = torch.where(positive, 1.0, clean) if trust_positives else clean
    return posterior
