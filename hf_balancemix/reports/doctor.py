"""A look at labels before training: counts, imbalance, which classes go together, and what to set because of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hf_balancemix.messages import some
from hf_balancemix.method import instance_score, sampling_probability
from hf_balancemix.metrics import class_groups, imbalance_ratios, mean_average_precision

Pair = tuple[str, str, int, float]
# Pairs of classes are counted among this many of the most frequent ones.
PAIRED_CLASSES = 200
_PAIRS = 10
_SINGLE_POSITIVE_THRESHOLD = 0.55
# Below, the minority sampler draws all but uniformly (total variation from the uniform distribution).
_FELT = 0.01
# A pair of independent classes of which so many images were to be expected is worth a line where there are none.
_EXPECTED = 5


@dataclass(frozen=True)
class SplitLabels:
    """The labels of one split.

    Attributes:
        num_images: N.
        positives: (K,) images of each class.
        counted: (K,) images in which the class is known to be present or absent: N less those that leave it out.
        per_image: Entry n is the number of images with n positives.
        empty: Rows without a positive, in order.
        class_imbalance: Eq. 12; infinite if a class has no positives.
        present_imbalance: The same of the classes that have some; NaN if none has.
        positive_negative_imbalance: Eq. 13; infinite without positives.
        without_positives: Names of the classes that have none.
    """

    num_images: int
    positives: list[int]
    counted: list[int]
    per_image: list[int]
    empty: list[int]
    class_imbalance: float
    present_imbalance: float
    positive_negative_imbalance: float
    without_positives: list[str]

    @property
    def mean_positives(self) -> float:
        """Positives per image."""
        return sum(self.positives) / self.num_images

    @property
    def single_positive(self) -> bool:
        """Whether every image that has a positive has exactly one, and there are several classes."""
        return len(self.positives) > 1 and len(self.per_image) == 2

    def chance_map(self) -> float:
        """Return the mAP, in points, that random scores are expected to reach.

        For n positives among N images the expected AP is (H + (n - 1)(N - H) / (N - 1)) / N, where H is the N-th
        harmonic number: a rank r holds a positive with probability n / N, and then each of the r - 1 before it does
        with (n - 1) / (N - 1). It tends to the frequency n / N for many images and is well above it for few positives.
        """
        positives, counted = np.array(self.positives), np.maximum(self.counted, 1)
        harmonic = np.cumsum(1 / np.arange(1, counted.max() + 1))[counted - 1]
        expected = (harmonic + (positives - 1) * (counted - harmonic) / np.maximum(counted - 1, 1)) / counted
        return mean_average_precision(np.where(positives > 0, expected, np.nan))

    def frequency_loss(self) -> float:
        """Return the loss (Eq. 1) of a model that knows how frequent each class is, and nothing else."""
        frequency = np.array(self.positives) / np.maximum(self.counted, 1)
        inside = frequency[(frequency > 0) & (frequency < 1)]
        return float(-(inside * np.log(inside) + (1 - inside) * np.log1p(-inside)).sum())


@dataclass(frozen=True)
class Together:
    """Pairs of classes among the ``PAIRED_CLASSES`` most frequent ones.

    Attributes:
        most: (class, class, images with both, how many times as many as if they were independent), most images first.
        never: (class, class, 0, images to be expected if they were independent), most first; only from five on.
        num_never: How many pairs ``never`` would have if it were not cut.
        classes: How many classes were looked at.
    """

    most: list[Pair]
    never: list[Pair]
    num_never: int
    classes: int


@dataclass(frozen=True)
class Settings:
    """What a recipe would train with, by the names of its options."""

    num_train_epochs: int
    warmup_epochs: int
    total_batch_size: int
    medium_shot_from: int
    many_shot_from: int
    min_fit: int
    own_groups: bool = False


def describe_split(labels: npt.NDArray[np.int8], class_names: Sequence[str]) -> SplitLabels:
    """Count the labels of a split.

    Args:
        labels: (N, K) 1 present, 0 absent, -1 left out.
        class_names: K names.
    """
    positive = labels == 1
    counts, per_image = positive.sum(axis=0), positive.sum(axis=1)
    class_ratio, entry_ratio = imbalance_ratios(counts, len(labels))
    if (labels < 0).any():  # entries that are left out are no negatives
        total = int(counts.sum())
        entry_ratio = float((labels == 0).sum()) / total if total else math.inf
    present = counts[counts > 0]
    return SplitLabels(
        num_images=len(labels),
        positives=counts.tolist(),
        counted=(labels >= 0).sum(axis=0).tolist(),
        per_image=np.bincount(per_image).tolist(),
        empty=np.flatnonzero(per_image == 0).tolist(),
        class_imbalance=class_ratio,
        present_imbalance=float(present.max() / present.min()) if present.size else math.nan,
        positive_negative_imbalance=entry_ratio,
        without_positives=[class_names[k] for k in np.flatnonzero(counts == 0).tolist()],
    )


def co_occurrence(labels: npt.NDArray[np.int8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]:
    """Count the images that two classes share.

    Args:
        labels: (N, K) 1 present, anything else not.

    Returns:
        (C, C) images with both classes, on the diagonal with one, and the (C,) classes that they are: the C most
        frequent ones, at most ``PAIRED_CLASSES``, most frequent first.
    """
    positive = labels == 1
    order = np.argsort(-positive.sum(axis=0), kind="stable")[:PAIRED_CLASSES]
    chosen = positive[:, order].astype(np.float32)  # exact up to 2^24 images, and much quicker than whole numbers
    return (chosen.T @ chosen).astype(np.int64), order


def find_pairs(labels: npt.NDArray[np.int8], class_names: Sequence[str]) -> Together:
    """Find the classes that are most often together, and those that never are although both are frequent."""
    shared, classes = co_occurrence(labels)
    counts = np.diag(shared)
    first, second = np.triu_indices(len(classes), 1)
    both, expected = shared[first, second], counts[first] * counts[second] / max(1, len(labels))
    names = [class_names[k] for k in classes]

    def listed(order: npt.NDArray[np.intp], value: npt.NDArray[np.float64]) -> list[Pair]:
        return [(names[first[i]], names[second[i]], int(both[i]), float(value[i])) for i in order[:_PAIRS]]

    most = np.argsort(-both, kind="stable")
    most = most[both[most] > 0]
    never = np.argsort(-expected, kind="stable")
    never = never[(both[never] == 0) & (expected[never] >= _EXPECTED)]
    ratio = both / np.maximum(expected, 1e-12)
    return Together(listed(most, ratio), listed(never, expected), len(never), len(classes))


def minority_pull(labels: npt.NDArray[np.int8]) -> dict[str, float]:
    """Return how far each minority score draws from uniform, for a model that knows the class frequencies only.

    Returns:
        Total variation from the uniform distribution, in [0, 1], by ``minority_score``.
    """
    given = torch.from_numpy((labels == 1).astype(np.uint8))
    frequency = given.double().mean(dim=0)
    pull = {}
    for score in ("eq3", "mean_positive"):
        probability = sampling_probability(instance_score(given, frequency, 1 - frequency, score))
        pull[score] = float((probability - 1 / len(given)).abs().sum() / 2)
    return pull


def advise(train: SplitLabels, test: SplitLabels, pull: dict[str, float], own: Settings) -> list[str]:
    """Say what the labels mean for the settings, a sentence or two each.

    Args:
        train: Of the training split.
        test: Of the test split.
        pull: Of :func:`minority_pull`.
        own: What would be trained with.
    """
    epochs, warmup = own.num_train_epochs, own.warmup_epochs
    advice = [
        f"Warm-up: --warmup_epochs {warmup} of {epochs} epochs. A fifth to a quarter is a fair start; refinement that "
        "begins before rare classes are learnt takes their positives for wrong."
    ]
    if train.single_positive:
        advice.append(
            "Labels: no training image has more than one positive. If images show several classes and only one was "
            f"written down, set --relabel_threshold {_SINGLE_POSITIVE_THRESHOLD} (ε of Eq. 9); if classes exclude "
            "one another, this is no multi-label task, and a softmax classifier suits it better."
        )
    else:
        advice.append(
            "Threshold of relabelling: leave --relabel_threshold (ε of Eq. 9) at 0.975. Decision thresholds: tune "
            "them on validation images after training, with `hf-balancemix thresholds`: 0.5 misses many rare ones."
        )
    advice.append(_score_advice(pull))
    if not own.own_groups:
        advice.append(_groups_advice(train.positives, own))
    rare = sum(0 < count < own.min_fit for count in train.positives)
    if rare:
        advice.append(
            f"Rare classes: {rare} with fewer than {own.min_fit} training positives. No mixture is fitted to so few "
            "(--min_fit), so all of these count as clean; collect more, or do not expect much of them."
        )
    if train.num_images < own.total_batch_size:
        advice.append(
            f"Batch: {train.num_images} training images are less than one batch of {own.total_batch_size}. Lower "
            "--total_batch_size."
        )
    if train.without_positives:
        advice.append(f"Never learnt, for there is no training positive: {some(train.without_positives)}.")
    if test.without_positives:
        advice.append(f"Never tested, for there is no test positive: {some(test.without_positives)}.")
    if train.empty:
        share = 100 * len(train.empty) / train.num_images
        advice.append(
            f"Empty images: {len(train.empty)} training images ({share:.1f}%) have no positive. That is right if they "
            "show none of the classes, and label noise if nobody looked."
        )
    return advice


def _score_advice(pull: dict[str, float]) -> str:
    shown = f"{100 * pull['eq3']:.1f}% with eq3, {100 * pull['mean_positive']:.1f}% with mean_positive"
    if pull["mean_positive"] < _FELT:
        sentence = "either will do: the classes are so balanced that the minority sampler has nothing to do"
    else:
        sentence = "eq3, the default, if many labels may be wrong; mean_positive if they are imbalanced but right"
    return f"Minority score: {sentence} (distance from uniform draws at chance level: {shown})."


def _groups_advice(positives: Sequence[int], own: Settings) -> str:
    found = class_groups(positives, (own.medium_shot_from, own.many_shot_from))
    sizes = ", ".join(f"{len(found.get(name, ()))} {name}-shot" for name in ("many", "medium", "few"))
    options = f"--medium_shot_from {own.medium_shot_from} --many_shot_from {own.many_shot_from}"
    if len(found) > 1 or len(positives) < 3:
        return f"Class groups: {options} gives {sizes} classes."
    low, high = (_rounded(float(np.quantile(positives, share))) for share in (1 / 3, 2 / 3))
    if not low < high:
        return f"Class groups: {options} gives {sizes} classes; the classes are too alike for groups."
    return (
        f"Class groups: {options} puts all classes into one ({sizes}). --medium_shot_from {low} --many_shot_from "
        f"{high} divides them about evenly."
    )


def _rounded(number: float) -> int:
    """Two significant digits."""
    return int(float(f"{number:.1e}"))
