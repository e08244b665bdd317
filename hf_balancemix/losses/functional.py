"""Losses of multi-label training, all on one scale: sum over classes, mean over instances (Eq. 1).

Every function takes logits, never probabilities, and computes in float32 or wider, so that mixed precision and
saturated logits do no harm. With ``class_reduction="none"`` it returns the (B, K) entries. The losses that are not
linear in the target (all but BCE) take targets 0 and 1 only; for mixed images use :func:`pair_losses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import torch
import torch.nn.functional as F

CLASS_REDUCTIONS = ("sum", "mean")
LOSSES = ("bce", "focal", "asl", "ll_r", "ll_ct")
# Below this the published ASL clamps its logarithms.
_ASL_EPSILON = 1e-8

EntryLosses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def reduce_losses(entries: torch.Tensor, class_reduction: str = "sum") -> torch.Tensor:
    """Reduce (B, K) entries as Eq. 1 does: sum (or mean) over classes, mean over instances.

    Args:
        entries: (B, K) losses.
        class_reduction: ``"sum"`` (Eq. 1), ``"mean"``, or ``"none"`` for the entries themselves.

    Raises:
        ValueError: If ``class_reduction`` is unknown.
    """
    if class_reduction == "none":
        return entries
    if class_reduction not in CLASS_REDUCTIONS:
        raise ValueError(
            f"Expected `class_reduction` to be one of {(*CLASS_REDUCTIONS, 'none')}, found {class_reduction!r}."
        )
    per_instance = entries.sum(dim=1) if class_reduction == "sum" else entries.mean(dim=1)
    return per_instance.mean()


def weighted_bce(
    logits: torch.Tensor,
    targets: torch.Tensor,
    entry_weights: torch.Tensor | None = None,
    class_reduction: str = "sum",
) -> torch.Tensor:
    """Binary cross-entropy of Eq. 1, or of Eq. 10 when every entry has a weight.

    Relations: without weights this is K times ``torch.nn.BCEWithLogitsLoss()``, which also averages over classes;
    ``class_reduction="mean"`` gives that value. With weights 1 for clean and re-labelled entries and the posterior
    for ambiguous ones it is Eq. 10. The only loss here that is linear in the target, so it takes mixed targets.

    Args:
        logits: (B, K) raw scores of any floating type.
        targets: (B, K) in [0, 1]; fractions are meant (Mixup).
        entry_weights: (B, K) weight of each entry in the loss, or ``None`` for 1 everywhere.
        class_reduction: ``"sum"`` (Eq. 1) or ``"mean"`` over the K classes; instances are always averaged.
            ``"none"`` returns the (B, K) entries.

    Returns:
        A scalar, or (B, K) entries.

    Raises:
        ValueError: If the shapes differ, a target is outside [0, 1] or ``class_reduction`` is unknown.
    """
    logits, targets = _prepared(logits, targets, fractions=True)
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if entry_weights is not None:
        loss = loss * entry_weights.to(loss.dtype)
    return reduce_losses(loss, class_reduction)


def label_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the (N, K) BCE of every label, the raw material of Eq. 6.

    Args:
        logits: (N, K) raw scores.
        labels: (N, K) given labels in {0, 1}.
    """
    return weighted_bce(logits, labels, class_reduction="none")


def focal_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    gamma: float = 2.0,
    alpha: float | None = None,
    class_reduction: str = "sum",
) -> torch.Tensor:
    """Sigmoid focal loss (Lin et al. 2017): BCE times (1 − p_t)^γ, p_t the probability of the target's value.

    Relations: γ = 0 is BCE. Against :func:`asymmetric_loss` it focuses positives and negatives alike and its gradient
    flows through the weight. For many easy entries with right labels; hard wrong labels get the largest weights.

    Args:
        logits: (B, K) raw scores of any floating type.
        targets: (B, K), 0 or 1.
        gamma: γ ≥ 0; 2 in the paper.
        alpha: Weight α of positives, 1 − α of negatives (the paper: 0.25); ``None``, usual for multi-label, for none.
        class_reduction: As in :func:`weighted_bce`.

    Returns:
        A scalar, or (B, K) entries.

    Raises:
        ValueError: If the shapes differ, a target is neither 0 nor 1, or an option is out of range.
    """
    _in_range("gamma", gamma, math.inf, "0 switches the focusing off")
    if alpha is not None:
        _in_range("alpha", alpha, 1, "positives get this weight, negatives the rest of 1")
    logits, targets = _prepared(logits, targets)
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # 1 − p_t as a sigmoid keeps its digits where p_t rounds to 1.
    missing = torch.sigmoid(torch.where(targets == 1, -logits, logits))
    loss = _power(missing, gamma) * loss
    if alpha is not None:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return reduce_losses(loss, class_reduction)


def asymmetric_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    gamma_negative: float = 4.0,
    gamma_positive: float = 0.0,
    margin: float = 0.05,
    detach_weight: bool = True,
    class_reduction: str = "sum",
) -> torch.Tensor:
    """Asymmetric loss, ASL (Ridnik et al. 2021): focusing by sign, and negatives below a margin count nothing.

    Relations: γ⁺ = γ⁻ = m = 0 is BCE; γ⁺ = γ⁻ = γ, m = 0 with ``detach_weight=False`` is :func:`focal_loss`. The
    defaults are those of the published training scripts and of BalanceMix's comparison; the published class itself
    defaults to γ⁺ = 1 and lets the gradient through the weight. For few positives among many easy negatives. As
    published, no logarithm goes below log 1e-8: a positive with a logit under −18.4 has no gradient.

    Args:
        logits: (B, K) raw scores of any floating type.
        targets: (B, K), 0 or 1. Fractions would give another function, not Mixup.
        gamma_negative: γ⁻ ≥ 0.
        gamma_positive: γ⁺ ≥ 0.
        margin: m in [0, 1]: negatives with a probability up to m have neither loss nor gradient.
        detach_weight: Keep the focusing weight out of the gradient.
        class_reduction: As in :func:`weighted_bce`.

    Returns:
        A scalar, or (B, K) entries.

    Raises:
        ValueError: If the shapes differ, a target is neither 0 nor 1, or an option is out of range.
    """
    for name, gamma in (("gamma_negative", gamma_negative), ("gamma_positive", gamma_positive)):
        _in_range(name, gamma, math.inf, "0 switches the focusing off")
    _in_range("margin", margin, 1, "it is a probability")
    logits, targets = _prepared(logits, targets)
    positive = targets == 1
    excess = (torch.sigmoid(logits) - margin).clamp(min=0)  # 1 − q, with q = min(1 − f + m, 1)
    # Without a margin log q is known in closed form, which keeps its digits and its gradient where q rounds to 0.
    log_absent = F.logsigmoid(-logits) if margin == 0 else (1 - excess).clamp(min=_ASL_EPSILON).log()
    log_probability = torch.where(positive, F.logsigmoid(logits), log_absent).clamp(min=math.log(_ASL_EPSILON))
    weight = torch.where(positive, _power(torch.sigmoid(-logits), gamma_positive), _power(excess, gamma_negative))
    if detach_weight:
        weight = weight.detach()
    return reduce_losses(-weight * log_probability, class_reduction)


def large_loss(
    logits: torch.Tensor, targets: torch.Tensor, rate: float, correct: bool = False, class_reduction: str = "sum"
) -> torch.Tensor:
    """BCE without, or with correction of, the largest losses of negatives: LL-R and LL-Ct (Kim et al. 2022).

    Of all B·K entries ⌈B·K·rate⌉ are changed, those with label 0 and the largest losses (ties at the threshold all):
    LL-R takes their loss away, LL-Ct counts them as positives. Labels 1 are never changed.

    Relations: rate 0 is BCE. Made for missing positives; it cannot notice a wrong positive.

    Args:
        logits: (B, K) raw scores of any floating type. The ranking is within this batch: another batch size, or
            another number of processes, changes other entries.
        targets: (B, K), 0 or 1.
        rate: Share of the entries, in [0, 1] (:func:`large_loss_rate` gives that of an epoch).
        correct: LL-Ct instead of LL-R.
        class_reduction: As in :func:`weighted_bce`; the changed entries count in a mean.

    Returns:
        A scalar, or (B, K) entries.

    Raises:
        ValueError: If the shapes differ, a target is neither 0 nor 1, or an option is out of range.
    """
    _in_range("rate", rate, 1, "it is a share of the entries, not a percentage")
    logits, targets = _prepared(logits, targets)
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    negative = targets == 0
    # Rates are products of decimals: 0.3 · 10 must not become 4 by rounding.
    count = min(math.ceil(loss.numel() * rate - 1e-9), int(negative.sum()))
    if count > 0:
        threshold = loss.detach()[negative].topk(count).values[-1]
        changed = negative & (loss.detach() >= threshold)
        instead = F.softplus(-logits) if correct else torch.zeros_like(loss)
        loss = torch.where(changed, instead, loss)
    return reduce_losses(loss, class_reduction)


def large_loss_rate(epoch: int, percent_per_epoch: float) -> float:
    """Return the rate of :func:`large_loss` in an epoch: none in the first, then Δ percent more in each.

    Args:
        epoch: Zero-based number of the epoch.
        percent_per_epoch: Δ in percent; the published values 0.2, 0.1, 0.05, 0.04 are percent, not shares.

    Returns:
        A share in [0, 1].
    """
    return min(1.0, epoch * percent_per_epoch / 100)


def reweighted_losses(logits: torch.Tensor, labels: torch.Tensor, transition: torch.Tensor) -> torch.Tensor:
    """Return the (B, K) importance-reweighted BCE of T-estimator (Li et al. 2022): β · BCE, β without gradient.

    β = g(ỹ) / [Tᵀg](ỹ) with g = (1 − f, f): how much more probable the given value is before than after the noise.

    Args:
        logits: (B, K) raw scores of any floating type.
        labels: (B, K) given labels, 0 or 1.
        transition: (K, 2, 2) of each class; rows are true values, columns given ones.

    Raises:
        ValueError: If the shapes do not fit or a label is neither 0 nor 1.
    """
    logits, labels = _prepared(logits, labels)
    if transition.shape != (logits.shape[1], 2, 2):
        raise ValueError(
            f"Expected `transition` of shape {(logits.shape[1], 2, 2)}, one matrix per class, found "
            f"{tuple(transition.shape)}."
        )
    detached = logits.detach()
    clean = torch.stack([torch.sigmoid(-detached), torch.sigmoid(detached)], dim=-1)  # (B, K, 2)
    # Tᵀg as a plain sum: autocast would compute a matrix product in half precision.
    noisy = (clean.unsqueeze(-1) * transition.to(clean)).sum(dim=-2)
    given = labels.long().unsqueeze(-1)
    weight = (clean.gather(-1, given) / noisy.gather(-1, given).clamp(min=1e-6)).squeeze(-1)
    return weight * F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def pair_losses(
    entry_losses: EntryLosses,
    logits: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    mix_lambda: torch.Tensor,
) -> torch.Tensor:
    """Return the (B, K) losses of mixed images: λ·ℓ(first) + (1 − λ)·ℓ(second), each on its own hard targets.

    Relations: for BCE this is the loss against the mixed target; for losses that are not linear in the target it is
    not, and a mixed target would be another function.

    Args:
        entry_losses: From (B, K) logits and (B, K) targets to (B, K) losses.
        logits: (B, K) raw scores of the mixed images.
        first: (B, K) targets of the first members.
        second: (B, K) targets of the second members.
        mix_lambda: (B,) share of the first members.

    Raises:
        ValueError: If ``mix_lambda`` is not (B,), or from ``entry_losses``.
    """
    if mix_lambda.shape != logits.shape[:1]:
        raise ValueError(
            f"Expected `mix_lambda` of shape {tuple(logits.shape[:1])}, one per pair, found {tuple(mix_lambda.shape)}."
        )
    share = mix_lambda.to(logits.device, torch.promote_types(logits.dtype, torch.float32)).unsqueeze(1)
    return share * entry_losses(logits, first) + (1 - share) * entry_losses(logits, second)


def _prepared(
    logits: torch.Tensor, targets: torch.Tensor, fractions: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check shapes and targets; return logits and targets in float32 or wider."""
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ValueError(
            f"Expected `logits` and `targets` of one shape (B, K), found {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}."
        )
    allowed = (targets >= 0) & (targets <= 1) if fractions else (targets == 0) | (targets == 1)
    if not bool(allowed.all()):
        row, column = (~allowed).nonzero()[0].tolist()
        raise ValueError(
            f"Expected targets {'between 0 and 1' if fractions else 'of 0 or 1'}, found {targets[row, column].item()} "
            f"in row {row}, class {column}. Write 1 for present classes, 0 for absent or unknown ones"
            + ("." if fractions else "; for mixed images take `pair_losses`.")
        )
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), targets.to(dtype)


def _in_range(name: str, value: float, high: float, meaning: str) -> None:
    if not (isinstance(value, Real) and 0 <= value <= high and math.isfinite(value)):
        span = "at least 0" if high == math.inf else f"between 0 and {high}"
        raise ValueError(f"Expected `{name}` {span}, found {value!r}: {meaning}.")


def _power(base: torch.Tensor, exponent: float) -> torch.Tensor:
    """Return base ** exponent with 0⁰ = 1, and without the infinite slope that small exponents have at 0."""
    return torch.ones_like(base) if exponent == 0 else base.clamp(min=torch.finfo(base.dtype).tiny).pow(exponent)
