"""Which instances the minority sampler prefers (Eq. 2–4).

A class on which the model is unsure is a minority class in the sense of the paper, however many images it has. Eq. 2
measures that per class, Eq. 3 adds it up per instance, Eq. 4 turns it into the probability of being drawn.
"""

import torch
from torch import Tensor

MINORITY_SCORES = ("eq3", "mean_positive")
"""Choices of `minority_score` in `instance_score`."""

SCORE_FLOOR = 1e-6
"""Smallest score `sampling_probability` works with, as a fraction of the largest score."""

# Labels become float64 this many entries at a time (32 MiB), so that the whole (N, K) table never does.
_CHUNK_ENTRIES = 2**22


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
    if probs.shape != labels.shape:
        raise ValueError(
            f"probs and labels must have the same shape, got {tuple(probs.shape)} and {tuple(labels.shape)}."
        )
    positive = labels != 0
    zero = probs.new_zeros(())
    presence_sum = torch.where(positive, probs, zero).sum(dim=0, dtype=torch.float64)
    # Summing p and subtracting at the end keeps the float64 sum exact; 1 - p would already be rounded in float32.
    presence_sum_of_negatives = torch.where(positive, zero, probs).sum(dim=0, dtype=torch.float64)
    positives = positive.sum(dim=0).double()
    negatives = len(labels) - positives
    presence = presence_sum / positives.clamp(min=1)
    absence = (negatives - presence_sum_of_negatives) / negatives.clamp(min=1)
    return presence, absence


def instance_score(labels: Tensor, presence: Tensor, absence: Tensor, minority_score: str = "eq3") -> Tensor:
    """Confidence of each instance, from the confidence of its classes (Eq. 3 and its Figure 6 variant).

    `"eq3"` is the formula of the paper: the sum over all K classes of P(k) where the label is 1 and A(k) where it is
    0. With many classes the absences dominate the sum, and the sampler stays close to uniform (total variation well
    below 0.01 at K = 80). `"mean_positive"` is the mean of P(k) over the positives of the instance alone; it gives
    probabilities with the shape and size of the paper's Figure 6, which `"eq3"` cannot. Choose `"eq3"` to follow the
    text and with few classes, and `"mean_positive"` for an oversampling of minority classes that can be felt with
    many.

    Args:
        labels: (N, K) given labels, 0 or 1, any dtype.
        presence: (K,) P(k) of `class_confidence`.
        absence: (K,) A(k) of `class_confidence`.
        minority_score: One of `MINORITY_SCORES`.

    Returns:
        (N,) float64 scores; a smaller score means more probable in Eq. 4. Under `"mean_positive"` an instance without
        positives takes the largest score of the others, and every score is 1 if no instance has a positive.

    Raises:
        ValueError: `minority_score` is unknown.
    """
    if minority_score not in MINORITY_SCORES:
        raise ValueError(f"minority_score must be one of {', '.join(MINORITY_SCORES)}; got {minority_score!r}.")
    presence, absence = presence.double(), absence.double()
    if minority_score == "eq3":
        return absence.sum() + _rows_times(labels, presence - absence)
    positives = (labels != 0).sum(dim=1)
    mean = _rows_times(labels, presence) / positives.clamp(min=1)
    has_positive = positives > 0
    if not has_positive.any():
        return torch.ones_like(mean)
    return torch.where(has_positive, mean, mean[has_positive].max())


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
    largest = score.max()
    # Dividing by the largest score first keeps 1 / score finite for scores of any size.
    relative = torch.where(largest > 0, score / largest, 1.0).clamp(min=SCORE_FLOOR)
    weight = 1 / relative
    return weight / weight.sum()


def total_variation(probability: Tensor) -> float:
    """Total variation distance of `probability` (N,) from uniform sampling, in [0, 1).

    0 means that the minority sampler is a second random sampler. `effective_sample_size` says the same in instances.
    """
    return 0.5 * float((probability.double() - 1 / len(probability)).abs().sum())


def effective_sample_size(probability: Tensor) -> float:
    """Effective number of distinct instances behind `probability` (N,): 1 / Σ p², from 1 to N (N when uniform)."""
    return 1 / float(probability.double().square().sum())


def draw(probability: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw instances with replacement by the inverse of the cumulative distribution.

    Unlike `torch.multinomial` there is no limit of 2^24 instances, and the same generator gives the same indices
    whatever the device of `probability`.

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
    cumulative = weight.cumsum(dim=0)
    total = cumulative[-1:]
    uniform = torch.rand(count, dtype=torch.float64, generator=generator, device=generator.device).cpu()
    # The first index whose sum exceeds the target has a probability above 0, because the sum grew there.
    index = torch.searchsorted(cumulative, uniform * total, right=True)
    # A product that rounds up to the total itself would fall behind the last index that can be drawn.
    last = int(torch.searchsorted(cumulative, total))
    return index.clamp(max=last).to(probability.device)


def _rows_times(labels: Tensor, values: Tensor) -> Tensor:
    """(N, K) labels times (K,) float64 values, (N,) float64, a few rows at a time."""
    rows = max(1, _CHUNK_ENTRIES // max(1, labels.shape[1]))
    return torch.cat([part.double() @ values for part in torch.split(labels, rows)])
