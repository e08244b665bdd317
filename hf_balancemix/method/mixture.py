"""How probable it is that each given label is clean: 2K two-component mixtures, fitted at once (Eq. 6–8).

The losses of class k whose given label is l form the set (k, l). A model learns clean labels first, so each set is
read as a mixture of a small-loss (clean) and a large-loss (mislabelled) Gaussian. Every entry (n, k) belongs to
exactly one set, that of its own label, which is why one pass over the (N, K) table serves all 2K fits.

The fit equals scikit-learn's `GaussianMixture(2)` with the start below, `reg_covar=covariance_floor`, `tol=tolerance`
and `max_iter=max_steps`, on min–max normalised losses; the stopping rule acts on each set by itself.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

START_MEANS = (0.0, 1.0)
START_VARIANCE = 0.04
"""Fixed start on normalised losses (weights ½). With so few steps the start decides, so it is not drawn at random."""

MIN_RANGE = 1e-6
"""Sets whose raw losses span less than this have nothing to separate."""

MIN_SEPARATION = 1e-2
"""Sets whose two fitted means (normalised) are closer than this have collapsed onto one mode."""

MIN_RISE = 1e-6
"""Rises of the posterior below this are rounding, not `non_monotone`."""

CHUNK_ENTRIES = 2**19
"""Entries fitted together, in whole classes and at least one. Working memory: about 25 float64 values per entry."""


@dataclass(frozen=True)
class MixtureFit:
    """Posteriors of all given labels and the 2K mixtures behind them.

    Leading indices of all tables but the first are (label value, class); component 0 is the one with the smaller mean.
    Means and variances are those of normalised losses, (loss − low) / (high − low).

    Attributes:
        posterior: (N, K) float64, probability that the given label is clean (Eq. 8).
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

    posterior: Tensor
    means: Tensor
    variances: Tensor
    weights: Tensor
    n_steps: Tensor
    low: Tensor
    high: Tensor
    fitted: Tensor
    non_monotone: Tensor


@dataclass(frozen=True)
class _Parameters:
    """Mixtures of one chunk, (c, 2 label values, 2 components) each, and the EM steps they took, (c, 2)."""

    means: Tensor
    variances: Tensor
    weights: Tensor
    n_steps: Tensor


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


def label_posteriors(
    losses: Tensor,
    labels: Tensor,
    *,
    min_fit: int = 4,
    monotone: bool = False,
    trust_positives: bool = False,
    separation: float = 0.0,
    disagreement: float = 0.0,
    max_steps: int = 10,
    tolerance: float = 1e-2,
    covariance_floor: float = 5e-4,
) -> MixtureFit:
    """Fit the mixture of every class and label value and return the posterior of every given label (Eq. 6–8).

    A set is taken as clean as a whole (posterior 1) if it has fewer than `min_fit` finite losses, if these span less
    than `MIN_RANGE`, if the fitted means end up closer than `MIN_SEPARATION`, if Ashman's D of the two components,
    √2·|μ₁ − μ₂| / √(σ₁² + σ₂²), is below `separation`, or if the larger mean is below `disagreement`.

    Args:
        losses: (N, K) loss of each entry against its given label (Eq. 6), from one pass over the whole training set.
            An infinite loss takes no part in any fit and gets posterior 0.
        labels: (N, K) given labels, 0 or 1, any dtype.
        min_fit: Fewest finite losses a set needs to be fitted.
        monotone: Posterior 1 below the small mean, and above it the running minimum over growing losses, so that a
            larger loss never looks cleaner. Off is Eq. 8 to the letter.
        trust_positives: Take every label 1 as clean, as in data with one annotated positive per image.
        separation: Least Ashman's D of a set that is divided. 0 is the paper, which divides every set; above 2 two
            Gaussians are usually called separate. This package's own variant.
        disagreement: Least mean loss, in nats and not normalised, of the large-loss component of a set that is
            divided. 0 is the paper; at ln 2 the model on the whole contradicts the labels of that component. This
            package's own variant.
        max_steps: Largest number of EM steps.
        tolerance: A set stops once its mean log-likelihood changes by less than this.
        covariance_floor: Added to every variance, in squared normalised loss.

    Returns:
        Posteriors and fits, on the device of `losses`.

    Raises:
        ValueError: Shapes are not one common (N, K) with N ≥ 1, a loss is NaN or −inf, or a label is neither 0 nor 1.
    """
    _check(losses, labels)
    width = max(1, CHUNK_ENTRIES // len(losses))
    chunks = [
        _fit_chunk(
            # Class-major: the sums over instances then run along contiguous memory.
            losses[:, start : start + width].T.double().contiguous(),
            labels[:, start : start + width].T.contiguous() != 0,
            min_fit=min_fit,
            monotone=monotone,
            trust_positives=trust_positives,
            separation=separation,
            disagreement=disagreement,
            max_steps=max_steps,
            tolerance=tolerance,
            covariance_floor=covariance_floor,
        )
        for start in range(0, losses.shape[1], width)
    ]
    merged = {
        field.name: torch.cat([getattr(chunk, field.name) for chunk in chunks]).transpose(0, 1).contiguous()
        for field in fields(MixtureFit)
    }
    return MixtureFit(**merged)


def _check(losses: Tensor, labels: Tensor) -> None:
    """Raise ValueError for anything the fit cannot give a meaning to."""
    if losses.ndim != 2 or losses.shape != labels.shape or losses.numel() == 0:
        raise ValueError(
            f"losses and labels must share one non-empty shape (N, K), "
            f"got {tuple(losses.shape)} and {tuple(labels.shape)}."
        )
    if bool((losses.isnan() | (losses == -math.inf)).any()):
        raise ValueError(
            "losses must not be NaN or -inf; the model that produced them has diverged or lost precision."
        )
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError("labels must be 0 or 1; found other values.")


def _fit_chunk(
    loss: Tensor,
    positive: Tensor,
    *,
    min_fit: int,
    monotone: bool,
    trust_positives: bool,
    separation: float,
    disagreement: float,
    max_steps: int,
    tolerance: float,
    covariance_floor: float,
) -> MixtureFit:
    """`label_posteriors` of a few classes, (c, N) in, and class before label value or instance in every table out."""
    finite = loss.isfinite()
    member, low, high, eligible = _loss_sets(loss, positive, finite, min_fit)
    eligible[:, 1] &= not trust_positives
    usable = finite & _by_label(eligible, positive)
    scale = torch.where(eligible, high - low, 1.0)
    value = torch.where(usable, loss - _by_label(low, positive), 0.0) / _by_label(scale, positive)
    found = _ordered(_expectation_maximisation(value, member, eligible, max_steps, tolerance, covariance_floor))
    gap = found.means[..., 1] - found.means[..., 0]
    ashman_d = math.sqrt(2) * gap / found.variances.sum(dim=-1).sqrt()
    larger_mean = low + found.means[..., 1] * (high - low)
    fitted = eligible & (gap >= MIN_SEPARATION) & (ashman_d >= separation) & (larger_mean >= disagreement)
    posterior, rises = _chunk_posterior(value, positive, member, found, monotone)
    posterior = posterior.masked_fill(~_by_label(fitted, positive), 1.0)
    posterior = posterior.masked_fill(~finite & ~(positive & trust_positives), 0.0)
    return MixtureFit(
        posterior=posterior,
        means=found.means,
        variances=found.variances,
        weights=found.weights,
        n_steps=found.n_steps,
        low=low,
        high=high,
        fitted=fitted,
        non_monotone=rises & fitted,
    )


def _by_label(table: Tensor, positive: Tensor) -> Tensor:
    """Spread a (c, 2) table over the entries (c, N) by their label."""
    return torch.where(positive, table[:, 1:], table[:, :1])


def _loss_sets(loss: Tensor, positive: Tensor, finite: Tensor, min_fit: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two sets of each class (Eq. 6): members (c, 2, N), and low, high, eligible for a fit (c, 2)."""
    member = torch.stack([~positive & finite, positive & finite], dim=1)
    count = member.sum(dim=-1)
    low = torch.where(member, loss[:, None], math.inf).amin(dim=-1).where(count > 0, 0.0)
    high = torch.where(member, loss[:, None], -math.inf).amax(dim=-1).where(count > 0, 0.0)
    return member, low, high, (count >= min_fit) & (high - low >= MIN_RANGE)


def _expectation_maximisation(
    value: Tensor, member: Tensor, active: Tensor, max_steps: int, tolerance: float, covariance_floor: float
) -> _Parameters:
    """Fit the mixtures of the `active` sets (c, 2) to normalised losses (c, N) (Eq. 7)."""
    # A log-density is a quadratic in the loss, so coefficients (1, x, x²) per set turn both the E step and the sums of
    # the M step into one matrix product each. The coefficients act on (label value × power) features, which are 0
    # outside the entry's own set. Expanding squares is harmless here: losses are in [0, 1] and variances have a floor.
    powers = torch.stack([torch.ones_like(value), value, value.square()], dim=1)
    features = (member[:, :, None] * powers[:, None]).flatten(1, 2)
    count = member.sum(dim=-1).clamp(min=1)
    means = value.new_tensor(START_MEANS).repeat(len(value), 2, 1)
    found = _Parameters(
        means, torch.full_like(means, START_VARIANCE), torch.full_like(means, 0.5), torch.zeros_like(count)
    )
    previous = torch.full_like(means[..., 0], -math.inf)
    for _ in range(max_steps):
        if not bool(active.any()):
            break
        log_joint = _coefficients(found).transpose(1, 2).flatten(2) @ features
        log_density = torch.logaddexp(log_joint[:, 0], log_joint[:, 1])
        bound = (features[:, ::3] @ log_density[..., None]).squeeze(-1) / count
        responsibility = (log_joint - log_density[:, None]).exp_()
        sums = (responsibility @ features.mT).reshape(-1, 2, 2, 3).transpose(1, 2)
        found = _maximisation(found, sums, active, covariance_floor)
        active = active & ((bound - previous).abs() >= tolerance)
        previous = bound
    return found


def _coefficients(found: _Parameters) -> Tensor:
    """Log-joints as polynomials: (c, 2 label values, 2 components, 3 powers)."""
    constant = found.weights.log() - (2 * math.pi * found.variances).log() / 2 - found.means**2 / (2 * found.variances)
    return torch.stack([constant, found.means / found.variances, -0.5 / found.variances], dim=-1)


def _maximisation(found: _Parameters, sums: Tensor, active: Tensor, covariance_floor: float) -> _Parameters:
    """M step of the active sets from Σ r, Σ r·x, Σ r·x² in `sums` (c, 2, 2, 3)."""
    # The same guard against an empty component as in scikit-learn.
    mass = sums[..., 0] + 10 * torch.finfo(sums.dtype).eps
    means = sums[..., 1] / mass
    variances = sums[..., 2] / mass - means**2 + covariance_floor
    update = active[..., None]
    return _Parameters(
        torch.where(update, means, found.means),
        torch.where(update, variances, found.variances),
        torch.where(update, mass / mass.sum(dim=-1, keepdim=True), found.weights),
        found.n_steps + active,
    )


def _ordered(found: _Parameters) -> _Parameters:
    """Put the component with the smaller mean first; with equal means nothing moves."""
    swap = (found.means[..., 1] < found.means[..., 0])[..., None]
    means, variances, weights = (
        torch.where(swap, table.flip(-1), table) for table in (found.means, found.variances, found.weights)
    )
    return _Parameters(means, variances, weights, found.n_steps)


def _chunk_posterior(
    value: Tensor, positive: Tensor, member: Tensor, found: _Parameters, monotone: bool
) -> tuple[Tensor, Tensor]:
    """Posteriors (c, N) of Eq. 8, and per set (c, 2) whether they rise again with growing loss."""
    literal = [
        gaussian_posterior(value, *(table[:, None, label] for table in (found.means, found.variances, found.weights)))
        for label in (0, 1)
    ]
    posterior = torch.where(positive, literal[1], literal[0])
    small_mean = found.means[..., 0]
    # Above the small mean the posterior falls to one lowest point and, if the small-loss mode is the wider one, rises
    # from there on. The running minimum over growing losses is thus the lowest value for every loss beyond that point:
    # no sorting.
    above = member & (value[:, None] >= small_mean[..., None])
    lowest = torch.where(above, posterior[:, None], math.inf).amin(dim=-1)
    turn = torch.where(above & (posterior[:, None] <= lowest[..., None]), value[:, None], math.inf).amin(dim=-1)
    beyond = value >= _by_label(turn, positive)
    highest_beyond = torch.where(member & beyond[:, None], posterior[:, None], -math.inf).amax(dim=-1)
    if monotone:
        posterior = torch.where(beyond, _by_label(lowest, positive), posterior)
        posterior = posterior.masked_fill(value < _by_label(small_mean, positive), 1.0)
    return posterior, highest_beyond > lowest + MIN_RISE
