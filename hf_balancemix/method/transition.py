"""Noise transition matrices of labels, estimated from label correlations (T-estimator, Li et al., NeurIPS 2022).

Class j has a 2 × 2 matrix T: rows are true values, columns given ones, T = [[1 − ρ₋, ρ₋], [ρ₊, 1 − ρ₊]]. A second
class i that correlates with j gives an equation for it: E = Tᵀ · diag(1 − p, p) · M, with E the joint frequencies of
both given labels, p = P(j is present), and M the frequencies of i's given label by the true value of j, read from the
instances whose label j looks clean. Every other class i thus proposes one matrix, and one of them is chosen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_balancemix.method.histogram import MIN_RANGE

TRANSITION_CHOICES = ("medoid", "residual")
"""How one of the candidate matrices of a class is chosen: the paper's rule and its code's."""

MIN_SELECTED = 50
"""Fewest selected positives, and negatives, of a class that candidates are computed for. Below that, as with the rare
classes of a small data set, its matrix is the Dual-T one."""

MIN_GAP = 1e-3
"""Pairs whose |M₀₀ − M₁₀| is smaller are uncorrelated: their equation divides by about nothing."""

NEGATIVE_RATE = 0.3
"""A rate above −0.3/K but below 0 is read as 0."""

# Labels become float64 this many entries at a time (32 MiB), so that the whole (N, K) table never does.
_CHUNK_ENTRIES = 2**22


@dataclass(frozen=True)
class TransitionFit:
    """The matrices of all classes and where they come from.

    Attributes:
        transition: (K, 2, 2) float64; rows are true values, columns given ones.
        n_candidates: (K,) int64, how many other classes proposed a usable matrix; 0 where it is the Dual-T one.
    """

    transition: Tensor
    n_candidates: Tensor


def estimate_transition(labels: Tensor, selected: Tensor, probs: Tensor, choice: str = "medoid") -> TransitionFit:
    """Estimate the transition matrix of every class; no truth is needed.

    A class takes a candidate from each other class, drops the impossible ones (p or a rate outside [0, 1],
    ρ₋ + ρ₊ ≥ 1, uncorrelated pairs) and chooses one of the rest. A class without candidates, or with fewer than
    `MIN_SELECTED` selected positives or negatives, takes :func:`dual_transition`.

    Args:
        labels: (N, K) given labels, 0 or 1, any dtype.
        selected: (N, K) bool, whether each given label is taken as clean (posterior above ½, Eq. 8).
        probs: (N, K) predictions for the Dual-T matrices.
        choice: One of `TRANSITION_CHOICES`: the candidate nearest to all others in L1, or the one that violates the
            linear equations of all pairs least.

    Raises:
        ValueError: Shapes are not one common (N, K) with N ≥ 1, a label is neither 0 nor 1, or `choice` is unknown.
    """
    if choice not in TRANSITION_CHOICES:
        raise ValueError(f"choice must be one of {', '.join(TRANSITION_CHOICES)}; got {choice!r}.")
    _check(labels, selected, probs)
    clean_pairs = pair_counts(labels, selected)
    members = clean_pairs.sum(dim=-1)  # (K, K, 2), the same for every second class
    conditional = clean_pairs / members.unsqueeze(-1)
    numerator, denominator, gap = _equations(pair_counts(labels) / len(labels), conditional)
    prior, rates = denominator[..., 1] / gap, numerator / denominator
    rates = rates.masked_fill((rates < 0) & (rates > -NEGATIVE_RATE / labels.shape[1]), 0.0)
    possible = (rates >= 0) & (rates <= 1)  # False for NaN
    valid = possible.all(dim=-1) & (rates.sum(dim=-1) < 1) & (prior >= 0) & (prior <= 1) & (gap.abs() >= MIN_GAP)
    valid &= (members >= MIN_SELECTED).all(dim=-1)
    valid.fill_diagonal_(False)
    transition = dual_transition(probs, labels)
    for j in valid.any(dim=1).nonzero().flatten().tolist():
        own = rates[j, valid[j]]  # (candidates, 2)
        if choice == "medoid":  # half the L1 distances of the matrices
            cost = torch.cdist(own, own, p=1.0).sum(dim=1)
        else:
            residuals = own.unsqueeze(1) * denominator[j, valid[j]] - numerator[j, valid[j]]
            cost = residuals.abs().sum(dim=(1, 2))
        transition[j] = _matrices(own[cost.argmin()])
    return TransitionFit(transition, valid.sum(dim=1))


def solve_pair(joint: Tensor, conditional: Tensor) -> tuple[Tensor, Tensor]:
    """Solve E = Tᵀ · diag(1 − p, p) · M for p and T, in closed form.

    Args:
        joint: (..., 2, 2) E, frequency of (given value of j, given value of i), summing to 1.
        conditional: (..., 2, 2) M, frequency of i's given value by the true value of j; rows sum to 1.

    Returns:
        p (...) and T (..., 2, 2). They need not be probabilities; they are infinite or NaN where M is singular.
    """
    numerator, denominator, gap = _equations(joint, conditional)
    return denominator[..., 1] / gap, _matrices(numerator / denominator)


def pair_counts(labels: Tensor, selected: Tensor | None = None) -> Tensor:
    """Count how often two classes have two given values, for all pairs at once.

    Args:
        labels: (N, K) labels, 0 or 1, any dtype.
        selected: (N, K) bool; entry [n, j] says whether instance n counts in the pairs of class j. All, if ``None``.

    Returns:
        (K, K, 2, 2) float64; entry [j, i, a, b] counts the instances with label a in class j and b in class i.
    """
    k = labels.shape[1]
    both, first, second, total = (torch.zeros(k, k, dtype=torch.float64, device=labels.device) for _ in range(4))
    step = max(1, _CHUNK_ENTRIES // k)
    for start in range(0, len(labels), step):
        values = labels[start : start + step].double()
        counted = torch.ones_like(values) if selected is None else selected[start : start + step].double()
        both += (values * counted).T @ values
        second += counted.T @ values
        first += (values * counted).sum(dim=0).unsqueeze(1)
        total += counted.sum(dim=0).unsqueeze(1)
    return _tables(total - first - second + both, second - both, first - both, both)


def dual_transition(probs: Tensor, labels: Tensor) -> Tensor:
    """Return the (K, 2, 2) matrices of Dual-T (Yao et al. 2020), which need no second class.

    T is the product of two: from true to predicted value, the posteriors of the two instances that the model is surest
    of; and from predicted to given value, counted. A value that is never predicted is taken as given without noise.

    Args:
        probs: (N, K) predictions.
        labels: (N, K) given labels, 0 or 1, any dtype.
    """
    surest = torch.stack([probs.amin(dim=0), probs.amax(dim=0)], dim=-1).double()  # (K, 2): P(1) of both instances
    to_predicted = torch.stack([1 - surest, surest], dim=-1)
    to_given = empirical_transition(probs > 0.5, labels)
    return to_predicted @ torch.where(to_given.isnan(), torch.eye(2).to(to_given), to_given)


def empirical_transition(values: Tensor, labels: Tensor) -> Tensor:
    """Return the (K, 2, 2) shares of given labels by another value, such as the truth; NaN where that never occurs.

    Args:
        values: (N, K), 0 or 1, any dtype: the rows of the matrices.
        labels: (N, K) given labels, 0 or 1, any dtype: the columns.
    """
    one, given = values != 0, labels != 0
    counts = _tables(*((a & b).sum(dim=0) for a in (~one, one) for b in (~given, given))).double()
    return counts / counts.sum(dim=-1, keepdim=True)


def normalised_losses(losses: Tensor, labels: Tensor) -> Tensor:
    """Scale the losses of each (class, label value) set to [0, 1], so that those of several epochs can be averaged.

    Args:
        losses: (N, K) finite losses against the given labels.
        labels: (N, K) given labels, 0 or 1, any dtype.

    Returns:
        (N, K); 0 in sets whose losses span less than `MIN_RANGE`: there is nothing to separate.
    """
    result = torch.zeros_like(losses)
    for value in (0, 1):
        member = labels == value
        low = losses.masked_fill(~member, torch.inf).amin(dim=0)
        high = losses.masked_fill(~member, -torch.inf).amax(dim=0)
        spread = torch.where(high - low < MIN_RANGE, torch.inf, high - low)
        result = torch.where(member, (losses - low) / spread, result)
    return result


def _equations(joint: Tensor, conditional: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numerators and denominators of (ρ₋, ρ₊), (..., 2), and M₀₀ − M₁₀, (...): rate · denominator = numerator."""
    e00, e01, e10, e11 = joint.flatten(-2).unbind(dim=-1)
    m00, m01, m10, m11 = conditional.flatten(-2).unbind(dim=-1)
    numerator = torch.stack([e10 * m11 - e11 * m10, e01 * m00 - e00 * m01], dim=-1)
    # (M₀₀ − M₁₀) times 1 − p and p.
    denominator = torch.stack([e00 + e10 - m10, m00 - e00 - e10], dim=-1)
    return numerator, denominator, m00 - m10


def _matrices(rates: Tensor) -> Tensor:
    """Write (ρ₋, ρ₊) (..., 2) as matrices (..., 2, 2)."""
    false_positive, false_negative = rates.unbind(dim=-1)
    return _tables(1 - false_positive, false_positive, false_negative, 1 - false_negative)


def _tables(*cells: Tensor) -> Tensor:
    """Put four (...) tensors together as (..., 2, 2), row by row."""
    return torch.stack(cells, dim=-1).unflatten(-1, (2, 2))


def _check(labels: Tensor, selected: Tensor, probs: Tensor) -> None:
    shapes = [tuple(table.shape) for table in (labels, selected, probs)]
    if labels.ndim != 2 or labels.numel() == 0 or len(set(shapes)) > 1:
        raise ValueError(f"labels, selected and probs must share one non-empty shape (N, K), got {shapes}.")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError("labels must be 0 or 1; found other values.")
