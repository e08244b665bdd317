"""From which score on a class is predicted: thresholds tuned for F1, and where a model keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_balancemix.messages import mistake

# Of a configuration: threshold by class name. Stock transformers keeps entries that it does not know.
CONFIG_ENTRY = "decision_thresholds"
DEFAULT_THRESHOLD = 0.5
# The best threshold for fewer says more about these few images than about the class.
MIN_POSITIVES = 5


def f1_thresholds(
    labels: npt.ArrayLike, probs: npt.ArrayLike, min_positives: int = MIN_POSITIVES
) -> npt.NDArray[np.float64]:
    """Return for every class the threshold with the best F1 on these images, over all thresholds there are.

    A class is predicted where its score is at least the threshold. Images with the same score stand on the same side
    of any threshold, so only the distinct scores are tried; the threshold lies in the middle between the lowest score
    that is predicted and the next one below. Of several with the best F1 the highest is taken: it predicts least.

    F1 is that of each class for itself (scikit-learn's ``f1_score`` with ``average=None``). Tune on a validation
    split, for on the images that it was tuned on the F1 is the best possible, and on others lower.

    Args:
        labels: (N, K) 1 present, 0 absent, below 0 left out.
        probs: (N, K) scores from 0 to 1.
        min_positives: A class with fewer positives, and with none in any case, gets ``DEFAULT_THRESHOLD``.

    Returns:
        (K,) thresholds, which single precision holds if that is the precision of ``probs``.

    Raises:
        ValueError: For shapes that differ or are not (N, K), labels above 1, and scores that are not from 0 to 1.
    """
    labels, probs = _checked(labels, probs)
    thresholds = np.full(labels.shape[1], DEFAULT_THRESHOLD)
    for k in range(labels.shape[1]):
        counted = labels[:, k] >= 0
        positive, scores = labels[counted, k] == 1, probs[counted, k]
        if positive.sum() >= max(min_positives, 1):
            thresholds[k] = _best_threshold(positive, scores)
    return thresholds


def class_f1(
    labels: npt.ArrayLike, probs: npt.ArrayLike, thresholds: npt.ArrayLike = DEFAULT_THRESHOLD
) -> npt.NDArray[np.float64]:
    """Return the F1 of every class at its threshold.

    Args:
        labels: (N, K) 1 present, 0 absent, below 0 left out.
        probs: (N, K) scores from 0 to 1.
        thresholds: One number, or (K,) numbers.

    Returns:
        (K,) fractions; 0 for a class that is nowhere present and nowhere predicted.

    Raises:
        ValueError: As :func:`f1_thresholds`.
    """
    labels, probs = _checked(labels, probs)
    predicted = (probs >= np.asarray(thresholds)) & (labels >= 0)
    hits = np.count_nonzero(predicted & (labels == 1), axis=0)
    total = np.count_nonzero(predicted, axis=0) + np.count_nonzero(labels == 1, axis=0)
    return np.asarray(2 * hits / np.maximum(total, 1), dtype=np.float64)


def read_thresholds(config: Any) -> npt.NDArray[np.float64] | None:
    """Return the (K,) decision thresholds of a model's configuration, in the order of its classes; None without any.

    Args:
        config: The configuration; ``decision_thresholds`` holds a number by class name.

    Raises:
        ValueError: If they are not one number from 0 to 1 for each class of the model.
    """
    entry = getattr(config, CONFIG_ENTRY, None)
    if entry is None:
        return None
    remedy = f"Tune them anew with `hf-balancemix thresholds`, or take {CONFIG_ENTRY!r} out of its config.json"
    expected = "one decision threshold from 0 to 1 for each class of the model"
    names = [config.id2label[k] for k in range(config.num_labels)]
    if not isinstance(entry, dict):
        raise mistake(expected, repr(entry), remedy)
    if odd := sorted(set(entry) ^ set(names)):
        found = f"{len(entry)} for {len(names)} classes, {odd[0]!r} in one alone"
        raise mistake(expected, found, remedy)
    for name, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise mistake(expected, f"{value!r} for {name!r}", remedy)
    return np.array([entry[name] for name in names], dtype=np.float64)


def save_thresholds(folder: str | os.PathLike[str], class_names: Sequence[str], thresholds: npt.ArrayLike) -> Path:
    """Write decision thresholds into a checkpoint's ``config.json``, in place of those there are.

    All else in it stays as it is. ``from_pretrained`` and ``save_pretrained`` keep them.

    Args:
        folder: The checkpoint.
        class_names: The K names of its classes.
        thresholds: (K,) numbers.

    Returns:
        The file.

    Raises:
        ValueError: If two classes have one name, or if the file cannot be written.
    """
    if doubled := [name for i, name in enumerate(class_names) if name in class_names[:i]]:
        raise mistake("class names that occur once each", f"{doubled[0]!r} twice", "Rename them in config.json")
    path = Path(folder) / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content[CONFIG_ENTRY] = dict(zip(class_names, np.asarray(thresholds, dtype=float).tolist(), strict=True))
    temporary = path.with_name("config.json.tmp")
    try:  # in one step: a model without a whole configuration cannot be loaded
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        found = f"{str(path)!r} ({error.strerror})"
        raise mistake("a checkpoint that can be written", found, "Copy it to a place where you may write") from error
    return path


def _best_threshold(positive: npt.NDArray[np.bool_], scores: npt.NDArray[Any]) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # of each run of equal scores
    hits = np.cumsum(positive[order])[last]
    best = int(np.argmax(2 * hits / (last + 1 + positive.sum())))  # the first: the highest of equals
    score = ranked[last[best]]
    below = ranked[last[best] + 1] if best + 1 < len(last) else ranked.dtype.type(0)
    middle = below + (score - below) / 2
    return float(middle if below < middle <= score else score)  # there may be no number between them


def _checked(labels: npt.ArrayLike, probs: npt.ArrayLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    labels, probs = np.asarray(labels), np.asarray(probs)
    if labels.dtype.kind == "b":
        labels = labels.astype(np.int8)
    if not np.issubdtype(probs.dtype, np.floating):
        probs = probs.astype(np.float64)
    if labels.ndim != 2 or labels.shape != probs.shape:
        raise mistake(
            "labels and scores of one shape (N, K)", f"{labels.shape} and {probs.shape}", "Pass one row per image"
        )
    if not ((labels == 1) | (labels <= 0)).all():
        found = np.unique(labels[~((labels == 1) | (labels <= 0))])[:5].tolist()
        raise mistake("labels of 1, 0 and, for what is left out, below 0", str(found), "Pass multi-hot labels")
    if (wrong := np.argwhere(~((probs >= 0) & (probs <= 1)))).size:  # NaN too
        row, k = wrong[0].tolist()
        found = f"{probs[row, k]} in row {row}, class {k}"
        raise mistake("scores from 0 to 1", found, "Pass the sigmoid of the logits")
    return labels, probs
