"""Multi-label metrics: average precision, F1, class groups, imbalance ratios and the quality of label management.

Everything here takes and returns numpy arrays; N is the number of images, K the number of classes. The functions that
put them together into one result are in ``report.py``.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
IndexArray: TypeAlias = npt.NDArray[np.intp]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
Convention: TypeAlias = Literal["non_interpolated", "strict", "interpolated", "eleven_point"]

# Codes of the three label states (Eq. 8–9), as the method stores them.
_CLEAN, _RELABELLED, _AMBIGUOUS = 0, 1, 2


def average_precision(
    scores: npt.ArrayLike,
    targets: npt.ArrayLike,
    ignore: npt.ArrayLike | None = None,
    convention: Convention = "non_interpolated",
) -> npt.NDArray[np.float64]:
    """Average precision of every class.

    Published numbers follow four different conventions. Compare numbers only within one of them:

    * ``"non_interpolated"``: the sum over distinct scores of (gain in recall) × precision. Equal scores form one
      threshold, so the order of the rows does not matter. Equal to scikit-learn's ``average_precision_score``
      (computed here directly, because that function has no mask and takes about twice as long).
    * ``"strict"``: the meter of the ASL and ML-Decoder code. The mean of the precision at each positive with 1e-8
      added to the number of positives; a class without positives scores 0 and counts in the mean. Equal scores keep
      the order of the rows, where the published code leaves their order open.
    * ``"interpolated"``: precision replaced by its monotone envelope, as in VOC2010 and Query2Label. Never below
      ``"strict"``; equal scores keep the order of the rows.
    * ``"eleven_point"``: the envelope read at recall 0, 0.1, …, 1, as in VOC2007. Can be above or below the others.

    Args:
        scores: (N, K) logits or probabilities; only their ranks matter. Prefer fp32 logits: probabilities in half
            precision have ties that the logits do not have.
        targets: (N, K) multi-hot, 1 for a positive and 0 for a negative. Entries under ``ignore`` may hold anything.
        ignore: (N, K) bool, True where an entry is left out of its class, such as the difficult images of VOC.
        convention: One of the four above.

    Returns:
        (K,) fractions in [0, 1]; NaN for a class without positives, except with ``"strict"`` (0).

    Raises:
        ValueError: For shapes that differ or are not (N, K), NaN, targets but 0 and 1, or an unknown convention.
    """
    if convention not in _CONVENTIONS:
        raise ValueError(f"Expected a convention out of {sorted(_CONVENTIONS)}, found {convention!r}.")
    scores, positive, counted = _checked(scores, targets, ignore)
    measure = _CONVENTIONS[convention]
    result = np.full(scores.shape[1], 0.0 if convention == "strict" else np.nan)
    # Classes as rows: each is sorted on its own, and a contiguous row sorts faster than a strided column.
    rows = (np.ascontiguousarray(array.T) for array in (scores, positive, counted))
    for k, (class_scores, class_positive, keep) in enumerate(zip(*rows, strict=True)):
        class_scores, class_positive = class_scores[keep], class_positive[keep]
        if class_positive.any():
            order = np.argsort(-class_scores, kind="stable")
            result[k] = measure(class_scores[order], class_positive[order])
    return result


def mean_average_precision(ap: npt.ArrayLike) -> float:
    """Mean average precision over the classes that have one.

    Args:
        ap: (K,) fractions from ``average_precision``; NaN for a class without positives.

    Returns:
        Points in [0, 100], or NaN where no class has a value.
    """
    values = np.asarray(ap, dtype=np.float64)
    evaluated = values[~np.isnan(values)]
    return 100.0 * float(np.mean(evaluated)) if evaluated.size else float("nan")


def class_groups(counts: npt.ArrayLike, thresholds: tuple[float, float] = (1000, 10000)) -> dict[str, IndexArray]:
    """Many-, medium- and few-shot classes, by how many positives they have in training.

    Pass the counts of the clean training labels, also when the training labels are noisy: the paper's groups stay the
    same at every noise level.

    Args:
        counts: (K,) positives of each class in the clean training labels.
        thresholds: (t0, t1) in images: few < t0 ≤ medium < t1 ≤ many.

    Returns:
        Class indices, ascending, under ``"many"``, ``"medium"`` and ``"few"``; a group without classes is left out.

    Raises:
        ValueError: If ``counts`` is not one-dimensional or holds NaN or negative numbers, or unless t0 < t1.
    """
    counts, (low, high) = np.asarray(counts), thresholds
    if not low < high:
        raise ValueError(f"Expected two rising thresholds, found {thresholds}.")
    if counts.ndim != 1 or not (counts >= 0).all():
        raise ValueError(
            f"Expected one count of at least 0 for each class, shape (K,), found shape {counts.shape} with values "
            f"{counts.ravel()[:5].tolist()}…"
        )
    members = {"many": counts >= high, "medium": (counts >= low) & (counts < high), "few": counts < low}
    return {name: np.flatnonzero(member) for name, member in members.items() if member.any()}


def f1_scores(
    probs: npt.ArrayLike,
    targets: npt.ArrayLike,
    threshold: npt.ArrayLike = 0.5,
    ignore: npt.ArrayLike | None = None,
) -> dict[str, float]:
    """Per-class (C) and overall (O) precision, recall and F1, as multi-label papers since ML-GCN report them.

    CF1 is the harmonic mean of the *mean* class precision and the *mean* class recall. It is not the mean of the class
    F1 values (scikit-learn's ``f1_score(average="macro")``), and is never below it. OF1 pools all entries and equals
    ``f1_score(average="micro")``. All K classes count in the means, with 0 wherever a denominator is 0; mAP, in
    contrast, leaves out the classes without positives.

    Args:
        probs: (N, K) probabilities in [0, 1].
        targets: (N, K) multi-hot.
        threshold: One number or (K,) numbers; an entry is predicted positive where its probability is at least that.
        ignore: (N, K) bool, True where an entry is left out.

    Returns:
        Points in [0, 100] under ``"cf1"``, ``"of1"``, ``"class_precision"``, ``"class_recall"``,
        ``"overall_precision"`` and ``"overall_recall"``.

    Raises:
        ValueError: For shapes that differ or are not (N, K), values outside [0, 1], targets other than 0 and 1, or a
            threshold of another shape.
    """
    probs, positive, counted = _checked(probs, targets, ignore)
    if probs.size and (probs.min() < 0 or probs.max() > 1):
        raise ValueError(
            f"Expected probabilities in [0, 1], found values from {probs.min():.4g} to {probs.max():.4g}. "
            "Pass the sigmoid of the logits."
        )
    limit = np.asarray(threshold, dtype=probs.dtype)
    if limit.shape not in ((), probs.shape[1:]):
        raise ValueError(f"Expected one threshold or {probs.shape[1]}, one for each class, found shape {limit.shape}.")
    predicted = (probs >= limit) & counted
    positive = positive & counted
    hits = (predicted & positive).sum(axis=0)
    found, present = predicted.sum(axis=0), positive.sum(axis=0)
    class_precision, class_recall = float(_divide(hits, found).mean()), float(_divide(hits, present).mean())
    overall_precision = float(_divide(hits.sum(), found.sum()))
    overall_recall = float(_divide(hits.sum(), present.sum()))
    fractions = {
        "cf1": _harmonic_mean(class_precision, class_recall),
        "of1": _harmonic_mean(overall_precision, overall_recall),
        "class_precision": class_precision,
        "class_recall": class_recall,
        "overall_precision": overall_precision,
        "overall_recall": overall_recall,
    }
    return {name: 100.0 * value for name, value in fractions.items()}


def class_imbalance(labels: npt.ArrayLike) -> float:
    """Class imbalance ratio of a training set, Eq. 12.

    Args:
        labels: (N, K) multi-hot.

    Returns:
        Positives of the most frequent class over positives of the rarest; infinite if a class has none.

    Raises:
        ValueError: If ``labels`` is not (N, K) of 0 and 1.
    """
    return imbalance_ratios(*_positives_and_rows(labels))[0]


def positive_negative_imbalance(labels: npt.ArrayLike) -> float:
    """Positive-negative imbalance ratio of a training set, Eq. 13.

    Args:
        labels: (N, K) multi-hot.

    Returns:
        Negative entries over positive entries, all classes together; infinite without positives.

    Raises:
        ValueError: If ``labels`` is not (N, K) of 0 and 1.
    """
    return imbalance_ratios(*_positives_and_rows(labels))[1]


def imbalance_ratios(positives: npt.ArrayLike, num_rows: int) -> tuple[float, float]:
    """Both imbalance ratios, Eq. 12 and 13, from class counts, where the labels themselves are not at hand.

    Args:
        positives: (K,) positives of each class.
        num_rows: N, the number of images; a class has ``num_rows`` less its positives as negatives.

    Returns:
        Class imbalance, max over min of the positives, and positive-negative imbalance, all negatives over all
        positives. Infinite where the denominator is 0.

    Raises:
        ValueError: If ``positives`` is not (K,) with K ≥ 1 and every count in [0, num_rows].
    """
    positives = np.asarray(positives)
    if positives.ndim != 1 or not positives.size or not ((positives >= 0) & (positives <= num_rows)).all():
        raise ValueError(
            f"Expected a count in [0, {num_rows}] for each class, shape (K,), found shape {positives.shape} with "
            f"values {positives.ravel()[:5].tolist()}…"
        )
    most, least, total = float(positives.max()), float(positives.min()), float(positives.sum())
    negatives = positives.size * num_rows - total
    return (most / least if least else float("inf")), (negatives / total if total else float("inf"))


def label_quality(
    clean_labels: npt.ArrayLike, labels: npt.ArrayLike, state: npt.ArrayLike, targets: npt.ArrayLike
) -> dict[str, float]:
    """How well label management separates clean labels and corrects the others, Eq. 14 and 15.

    A diagnostic for data whose truth is known, such as injected noise. Recall has all given labels that equal the
    truth as its denominator. Accuracy compares the value *after* re-labelling with the truth; an entry that was
    re-labelled to the value it already had counts.

    Args:
        clean_labels: (N, K) truth, 0 or 1.
        labels: (N, K) given labels, 0 or 1.
        state: (N, K) 0 for clean, 1 for re-labelled, 2 for ambiguous.
        targets: (N, K) refined values.

    Returns:
        Fractions in [0, 1] under ``"label_precision"``, ``"label_recall"`` (both Eq. 14), ``"relabel_proportion"`` and
        ``"relabel_accuracy"`` (both Eq. 15); NaN where there is nothing to divide by.

    Raises:
        ValueError: If the four shapes differ or are not (N, K), or ``state`` holds another code.
    """
    truth, given, codes, refined = arrays = [np.asarray(a) for a in (clean_labels, labels, state, targets)]
    shapes = [array.shape for array in arrays]
    if truth.ndim != 2 or len(set(shapes)) > 1:
        raise ValueError(f"Expected clean labels, labels, state and targets of one shape (N, K), found {shapes}.")
    unknown = np.setdiff1d(codes, (_CLEAN, _RELABELLED, _AMBIGUOUS))
    if unknown.size:
        raise ValueError(f"Expected the states 0 clean, 1 re-labelled, 2 ambiguous, found {unknown[:5].tolist()}.")
    clean, relabelled, correct = codes == _CLEAN, codes == _RELABELLED, given == truth
    clean_and_correct = np.count_nonzero(clean & correct)
    ratios: dict[str, tuple[npt.ArrayLike, npt.ArrayLike]] = {
        "label_precision": (clean_and_correct, np.count_nonzero(clean)),
        "label_recall": (clean_and_correct, np.count_nonzero(correct)),
        "relabel_proportion": (np.count_nonzero(relabelled), codes.size),
        "relabel_accuracy": (np.count_nonzero(relabelled & (refined == truth)), np.count_nonzero(relabelled)),
    }
    return {name: float(_divide(part, whole, empty=np.nan)) for name, (part, whole) in ratios.items()}


def single_precision(values: npt.ArrayLike) -> FloatArray:
    """Values of any shape as floating point of at least 32 bits; half precision would add ties after a sigmoid."""
    array = np.asarray(values)
    return array.astype(np.promote_types(array.dtype, np.float32), copy=False)


def _non_interpolated(scores: FloatArray, hits: BoolArray) -> float:
    last = np.append(scores[1:] != scores[:-1], True)  # the last row of each block of equal scores
    true_positives = np.cumsum(hits)[last]
    precision = true_positives / (np.flatnonzero(last) + 1)
    return float(np.sum(np.diff(true_positives, prepend=0) * precision) / true_positives[-1])


def _strict(scores: FloatArray, hits: BoolArray) -> float:
    precision = _precision_at_hits(hits)
    return float(precision.sum() / (precision.size + 1e-8))


def _interpolated(scores: FloatArray, hits: BoolArray) -> float:
    return float(_envelope(hits).mean())


def _eleven_point(scores: FloatArray, hits: BoolArray) -> float:
    envelope = _envelope(hits)
    # The first hit at which recall is at least j/10, in integers: 3 · 0.1 > 0.3 in floating point would move a point.
    first = -(-np.arange(11) * envelope.size // 10) - 1
    return float(envelope[np.maximum(first, 0)].mean())


def _precision_at_hits(hits: BoolArray) -> npt.NDArray[np.float64]:
    ranks = np.flatnonzero(hits) + 1.0
    return np.arange(1, ranks.size + 1) / ranks


def _envelope(hits: BoolArray) -> npt.NDArray[np.float64]:
    # Best precision at this recall or any higher one. Between two hits precision only falls, so the hits suffice.
    return np.maximum.accumulate(_precision_at_hits(hits)[::-1])[::-1]


_CONVENTIONS: dict[str, Callable[[FloatArray, BoolArray], float]] = {
    "non_interpolated": _non_interpolated,
    "strict": _strict,
    "interpolated": _interpolated,
    "eleven_point": _eleven_point,
}


def _checked(
    scores: npt.ArrayLike, targets: npt.ArrayLike, ignore: npt.ArrayLike | None
) -> tuple[FloatArray, BoolArray, BoolArray]:
    """Scores in at least single precision, where targets are positive, and which entries count; all (N, K)."""
    scores, targets = single_precision(scores), np.asarray(targets)
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise ValueError(f"Expected scores and targets of one shape (N, K), found {scores.shape} and {targets.shape}.")
    counted = np.ones(scores.shape, dtype=bool) if ignore is None else ~np.asarray(ignore, dtype=bool)
    if counted.shape != scores.shape:
        raise ValueError(f"Expected ignore in the shape of the scores, {scores.shape}, found {counted.shape}.")
    missing = np.isnan(scores)
    if missing.any():
        row, column = np.argwhere(missing)[0].tolist()
        raise ValueError(
            f"Expected scores without NaN, found {np.count_nonzero(missing)}, the first in row {row}, class {column}. "
            "The model has probably diverged."
        )
    positive = targets == 1
    other = counted & ~positive & (targets != 0)
    if other.any():
        raise ValueError(
            f"Expected targets of 0 and 1, found {np.unique(targets[other])[:5].tolist()}. Mask entries that are "
            "neither with `ignore`."
        )
    return scores, positive, counted


def _positives_and_rows(labels: npt.ArrayLike) -> tuple[npt.NDArray[np.intp], int]:
    labels = np.asarray(labels)
    if labels.ndim != 2 or not ((labels == 0) | (labels == 1)).all():
        raise ValueError(f"Expected labels of 0 and 1 in shape (N, K), found shape {labels.shape}, {labels.dtype}.")
    return np.asarray(np.count_nonzero(labels, axis=0)), len(labels)


def _divide(part: npt.ArrayLike, whole: npt.ArrayLike, empty: float = 0.0) -> npt.NDArray[np.float64]:
    divisor = np.asarray(whole, dtype=np.float64)
    result = np.full(divisor.shape, empty)
    np.divide(part, divisor, out=result, where=divisor != 0)
    return result


def _harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0
