"""Which instances the minority sampler prefers (Eq. 2–4).

A class on which the model is unsure is a minority class in the sense of the paper, however many images it has. Eq. 2
measures that per class, Eq. 3 adds it up per instance, Eq. 4 turns it into the probability of being drawn.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hf_balancemix.method.sparse import SparseLabels

MINORITY_SCORES = ("eq3", "mean_positive")
"""Choices of `minority_score` in `instance_score`."""

SCORE_FLOOR = 1e-6
"""Smallest score `sampling_probability` works with, as a fraction of the largest score."""

# Tables are read so many entries at a time, and so many draws are made at once.
_CHUNK_ENTRIES = 2**22
# PyTorch adds up so many values or fewer in one thread.
_SERIAL_SUM = 2**15


def confidence_sums(probs: Tensor, labels: Tensor) -> Tensor:
    """Sums that Eq. 2 consists of, over some rows; those of two parts of a data set add up to those of the whole.

    Args:
        probs: (n, K) sigmoid outputs in [0, 1].
        labels: (n, K) given labels, 0 or 1, any dtype. Never refined ones: Eq. 2 is stated on the given labels.

    Returns:
        (2, K) float64: the sum of `probs`, and their sum where the label is 1.

    Raises:
        ValueError: The two shapes differ.
    """
    if probs.shape != labels.shape:
        raise ValueError(
            f"probs and labels must have the same shape, got {tuple(probs.shape)} and {tuple(labels.shape)}."
        )
    sums = torch.zeros(2, labels.shape[1], dtype=torch.float64, device=labels.device)
    for part in probs.split(_height(probs)):  # a sum in float64 copies what it sums
        sums[0] += part.sum(dim=0, dtype=torch.float64)
    for rows, classes in _positives(labels):
        sums[1].index_add_(0, classes, probs[rows, classes].double())
    return sums


def mean_confidence(sums: Tensor, positives: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Mean confidence of the model in the presence and in the absence of each class (Eq. 2), from its sums.

    Args:
        sums: (2, K) of `confidence_sums`, of the whole training set.
        positives: (K,) labels that are 1.
        num_rows: N.

    Returns:
        As `class_confidence`.
    """
    overall, present = sums.unbind()
    negatives = num_rows - positives.double()
    # Summing p and subtracting at the end keeps the float64 sum exact; 1 - p would already be rounded in float32.
    # Where the model is sure of the presence everywhere, the differences may round to just below 0.
    absent = (negatives - (overall - present)).clamp_(min=0)
    return present / positives.clamp(min=1), absent / negatives.clamp(min=1)


def class_confidence(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean confidence of the model in the presence and in the absence of each class (Eq. 2).

    Args:
        probs: (N, K) sigmoid outputs in [0, 1] for the whole training set.
        labels: (N, K) given labels, 0 or 1, any dtype. Never refined ones: Eq. 2 is stated on the given labels.

    Returns:
        `presence` P(k), the mean of `probs` where the label is 1, and `absence` A(k), the mean of `1 - probs` where it
        is 0. Both (K,) float64. A class without positives has P(k) = 0 and one without negatives has A(k) = 0; no
        instance ever uses these two values in Eq. 3.

    Raises:
        ValueError: The two shapes differ.
    """
    sums = confidence_sums(probs, labels)
    positives = torch.zeros_like(sums[0])
    for _, classes in _positives(labels):
        positives += torch.bincount(classes, minlength=len(positives))
    return mean_confidence(sums, positives, len(labels))


def instance_score(
    labels: Tensor | SparseLabels, presence: Tensor, absence: Tensor, minority_score: str = "eq3"
) -> Tensor:
    """Confidence of each instance, from the confidence of its classes (Eq. 3 and its Figure 6 variant).

    Work and memory grow with the positives where the labels are sparse.

    `"eq3"` is the formula of the paper: the sum over all K classes of P(k) where the label is 1 and A(k) where it is
    0. With many classes the absences dominate the sum, and the sampler stays close to uniform (total variation well
    below 0.01 at K = 80). `"mean_positive"` is the mean of P(k) over the positives of the instance alone; it gives
    probabilities with the shape and size of the paper's Figure 6, which `"eq3"` cannot. Choose `"eq3"` to follow the
    text and with few classes, and `"mean_positive"` for an oversampling of minority classes that can be felt with
    many.

    Args:
        labels: (N, K) given labels, 0 or 1, any dtype, or sparse.
        presence: (K,) P(k) of `class_confidence`.
        absence: (K,) A(k) of `class_confidence`.
        minority_score: One of `MINORITY_SCORES`.

    Returns:
        (N,) float64 scores; a smaller score means more probable in Eq. 4. Under `"mean_positive"` an instance without
        positives takes the largest score of the others, and every score is 1 if no instance has a positive.

    Raises:
        ValueError: `minority_score` is unknown.
    """
    score = partial_score(labels, presence, absence, minority_score)
    known = ~score.isinf()
    return torch.where(known, score, score[known].max()) if known.any() else torch.ones_like(score)


def partial_score(
    labels: Tensor | SparseLabels, presence: Tensor, absence: Tensor, minority_score: str = "eq3"
) -> Tensor:
    """Do as `instance_score` for some of the instances; arguments and errors are the same.

    Returns:
        (n,) float64 scores; infinite for an instance without positives under `"mean_positive"`, whose score is the
        largest of the others, which may be elsewhere.
    """
    if minority_score not in MINORITY_SCORES:
        raise ValueError(f"minority_score must be one of {', '.join(MINORITY_SCORES)}; got {minority_score!r}.")
    presence, absence = presence.double(), absence.double()
    literal = minority_score == "eq3"
    # Σ A(k) over all classes is common to all; each positive replaces its A(k) by P(k).
    gain = presence - absence if literal else presence
    score = (absence.sum() if literal else absence.new_zeros(())).repeat(len(labels))
    count = torch.zeros_like(score)
    for rows, classes in _positives(labels):
        score.index_add_(0, rows, gain[classes])
        if not literal:
            count.index_add_(0, rows, torch.ones_like(rows, dtype=count.dtype))
    if literal:
        return score.clamp_(min=0)  # what is left of Σ A(k) under small P(k) may round to just below 0
    return torch.where(count > 0, score / count.clamp(min=1), math.inf)


def sampling_weight(score: Tensor, largest: float) -> Tensor:
    """Weight of each instance, inversely proportional to its score (Eq. 4): 1 for the largest score.

    Args:
        score: (n,) scores of `partial_score`, of some of the instances.
        largest: The largest score of all instances that is not infinite; not above 0 if there is none.

    Returns:
        (n,) float64, from 1 to `1 / SCORE_FLOOR`.
    """
    # Dividing by the largest score first keeps 1 / score finite for scores of any size.
    relative = score / largest if largest > 0 else torch.ones_like(score)
    return relative.clamp_(min=SCORE_FLOOR, max=1).reciprocal_()


def sampling_probability(score: Tensor) -> Tensor:
    """Probability of drawing each instance, inversely proportional to its score (Eq. 4).

    Scores below `SCORE_FLOOR` times the largest one are raised to that value: Eq. 4 divides by the score, and a
    confidence that underflows to 0 would otherwise leave a single instance to draw. No probability therefore exceeds
    another by more than a factor `1 / SCORE_FLOOR`. If all scores are 0 the result is uniform.

    Args:
        score: (N,) scores of `instance_score`, finite and not negative.

    Returns:
        (N,) float64, all above 0, sum 1.

    Raises:
        ValueError: A score is negative, infinite or NaN, or there is none.
    """
    score = score.double()
    if score.numel() == 0 or not bool((torch.isfinite(score) & (score >= 0)).all()):
        raise ValueError(
            "score must hold at least one value, all finite and not negative; check the logits behind it for NaN."
        )
    weight = sampling_weight(score, float(score.max()))
    # A sum over parts does not depend on the number of threads, as that of many values may.
    return weight.div_(torch.stack([part.sum() for part in weight.split(_SERIAL_SUM)]).sum())


def describe_sampling(probability: Iterable[Tensor], num_rows: int) -> dict[str, float]:
    """Say how far from uniform the minority sampler is.

    Args:
        probability: (N,) float64 of `sampling_probability`, in parts (n,).
        num_rows: N.

    Returns:
        `sampling_max` and `sampling_min`, the largest and smallest probability relative to uniform;
        `effective_sample_share`, the effective number of distinct instances 1 / Σ p² over N, from 1/N to 1;
        `sampling_total_variation`, the distance from uniform in [0, 1): 0 is a second random sampler.
    """
    found = [(p.max(), p.min(), p.square().sum(), (p - 1 / num_rows).abs().sum()) for p in probability]
    largest, smallest, squares, distances = torch.tensor(found, dtype=torch.float64).unbind(dim=1)
    return {
        "sampling_max": float(largest.max()) * num_rows,
        "sampling_min": float(smallest.min()) * num_rows,
        "effective_sample_share": 1 / float(squares.sum()) / num_rows,
        "sampling_total_variation": 0.5 * float(distances.sum()),
    }


def shares_of_sums(sums: Tensor) -> Iterator[Tensor]:
    """Yield the probabilities (n,) behind running sums of weights (N,), in parts; exact to 2^-53 of the whole."""
    last = sums.new_zeros(1)
    for part in sums.split(_CHUNK_ENTRIES):
        yield part.diff(prepend=last) / sums[-1]
        last = part[-1:]


def draw(probability: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw instances with replacement by the inverse of the cumulative distribution.

    Unlike `torch.multinomial` there is no limit of 2^24 instances, and the same generator gives the same indices
    whatever the device of `probability` and the number of threads. The sums are float64 and taken once, in O(N); each
    draw is a search in O(log N). An instance's share of the interval is off by at most 2^-53 of the whole: by 1e-8 of
    its own probability with 10^8 instances of about the same. Needs 16 bytes per instance and 8 per draw.

    Args:
        probability: (N,) probabilities of `sampling_probability`, not negative; they need not sum to exactly 1.
        count: Number of draws.
        generator: Source of randomness; its device is where the uniform numbers are drawn.

    Returns:
        (count,) int64 indices in [0, N), on the device of `probability`. An index with probability 0 is never
        returned.

    Raises:
        ValueError: `probability` is not one-dimensional, has a negative or NaN entry, or sums to 0 or infinity.
    """
    # On the CPU, where the running sum is sequential: a parallel scan need not be monotone, nor the same in every run.
    weight = probability.detach().to("cpu", torch.float64)
    if weight.ndim != 1 or not bool((weight >= 0).all()) or not 0 < float(weight.sum()) < float("inf"):
        raise ValueError(
            f"probability must be one-dimensional and not negative, with a finite sum above 0; got shape "
            f"{tuple(weight.shape)} with sum {float(weight.sum())}."
        )
    return draw_by_sums(weight.cumsum(dim=0), count, generator).to(probability.device)


def draw_by_sums(sums: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Do as `draw` with the running sums (N,) float64 of weights, on the CPU, in 8 bytes per draw."""
    total = sums[-1:]
    # A product that rounds up to the total itself would fall behind the last index that can be drawn.
    last = int(torch.searchsorted(sums, total))
    index = torch.empty(count, dtype=torch.int64)
    # The numbers of the generator, and hence the draws, are the same in parts of any size.
    for part in index.split(_CHUNK_ENTRIES):
        uniform = torch.rand(len(part), dtype=torch.float64, generator=generator, device=generator.device).cpu()
        target, order = (uniform * total).sort()  # neighbours are found in the same memory
        # The first index whose sum exceeds the target has a probability above 0, because the sum grew there.
        part[order] = torch.searchsorted(sums, target, right=True).clamp_(max=last)
    return index


def _height(table: Tensor) -> int:
    return max(1, _CHUNK_ENTRIES // max(1, table.shape[1]))


def _positives(labels: Tensor | SparseLabels) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and classes of the labels that are not 0, a few rows at a time."""
    if isinstance(labels, SparseLabels):
        yield from labels.positives()
        return
    for start in range(0, len(labels), _height(labels)):
        rows, classes = labels[start : start + _height(labels)].nonzero(as_tuple=True)
        yield rows + start, classes
