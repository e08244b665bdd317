"""A small multi-label set for tests and first runs: scikit-learn's digits with 17 attributes, long-tailed."""

from __future__ import annotations

import datasets
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ATTRIBUTES = {
    "even": (0, 2, 4, 6, 8),
    "prime": (2, 3, 5, 7),
    "has a loop": (0, 6, 8, 9),
    "five or more": (5, 6, 7, 8, 9),
    "straight strokes": (1, 4, 7),
    "square": (0, 1, 4, 9),
    "multiple of three": (3, 6, 9),
}
CLASS_NAMES = (*DIGIT_NAMES, *ATTRIBUTES)
RARE_CLASSES = DIGIT_NAMES[6:]
_TRAIN_SIZE = 1200
_IMBALANCE = 5.0


def digit_attributes() -> npt.NDArray[np.uint8]:
    """Table (10, 17) uint8: which classes, in the order of ``CLASS_NAMES``, each digit has."""
    table = np.zeros((10, len(CLASS_NAMES)), dtype=np.uint8)
    table[np.arange(10), np.arange(10)] = 1
    for column, digits in enumerate(ATTRIBUTES.values(), start=10):
        table[list(digits), column] = 1
    return table


def load_digits_attributes(seed: int = 0) -> datasets.DatasetDict:
    """Load the digits as a multi-label set; nothing is downloaded.

    The 1,797 images are shuffled. The last 597 are the test split, clean and complete. Of the first 1,200 an image of
    digit d is kept with probability 5^(−d/9), 627 in all with seed 0, so that ``RARE_CLASSES`` are the tail.

    Columns: ``image`` (8×8 grey, 0 to 255), ``labels`` (list of ``ClassLabel``, 17 names), ``digit``, and ``id``, the
    position in scikit-learn's set. The given labels are clean; see ``inject_noise``.

    Source: "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning Repository,
    1998, its test part as shipped with scikit-learn (``sklearn.datasets.load_digits``).

    Args:
        seed: Of the split and the long tail. Keep it fixed while training seeds vary, or runs see different images.

    Returns:
        Splits ``train`` and ``test``.
    """
    images, digits = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(digits))
    kept = rng.random(_TRAIN_SIZE) < _IMBALANCE ** (-digits[order[:_TRAIN_SIZE]] / 9)
    rows = {"train": order[:_TRAIN_SIZE][kept], "test": order[_TRAIN_SIZE:]}
    grey = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    label_ids = [np.flatnonzero(row) for row in digit_attributes()]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "labels": datasets.List(datasets.ClassLabel(names=list(CLASS_NAMES))),
            "digit": datasets.Value("int64"),
            "id": datasets.Value("int64"),
        }
    )
    splits = {}
    for name, index in rows.items():
        table = {"image": list(grey[index]), "labels": [label_ids[d] for d in digits[index]]}
        table |= {"digit": digits[index], "id": index}
        splits[name] = datasets.Dataset.from_dict(table, features=features, split=name)
    return datasets.DatasetDict(splits)
