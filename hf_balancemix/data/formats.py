"""Data sets as the trainers read them: no output format, no transform, noise on the fly, labels left out."""

from __future__ import annotations

import datasets
import numpy as np
import numpy.typing as npt

from hf_balancemix.data.columns import LabelTable, encode_labels
from hf_balancemix.data.noise import NoiseTransform, inject_noise

# Classes left out of the evaluation of an image, such as those it only shows in difficult objects.
IGNORED_COLUMN = "ignored_labels"


def as_stored(dataset: datasets.Dataset) -> datasets.Dataset:
    """Return a data set whose rows are what it stores.

    The trainers read labels column-wise and make the transforms themselves, from the image processor. A format
    ("torch", "numpy", …) is taken off. A :class:`NoiseTransform` is worked into the columns, with the same labels.

    Raises:
        ValueError: If the data set has any other transform: what it does to labels cannot be known.
    """
    layout = dataset.format
    if layout["type"] != "custom":
        return dataset.with_format(None) if layout["type"] else dataset
    transform = layout["format_kwargs"]["transform"]
    if not isinstance(transform, NoiseTransform):
        raise ValueError(
            "Expected a data set without transform, found one with "
            f"{getattr(transform, '__name__', type(transform).__name__)}: the trainer makes its transforms from the "
            "image processor and `augmentation`. Take it off with `dataset.with_format(None)`; what changes labels or "
            "pictures for good belongs into `dataset.map(...)`."
        )
    columns = transform.label_format.columns
    return inject_noise(
        dataset.with_format(None),
        [step.spec for step in transform.steps],
        label_column=list(columns) if transform.label_format.kind == "columns" else columns[0],
        id_column=transform.id_column,
        class_names=transform.label_format.class_names,
        delimiter=transform.label_format.delimiter,
    )


def evaluation_labels(dataset: datasets.Dataset, table: LabelTable) -> npt.NDArray[np.int8]:
    """Return the labels (N, K) to evaluate against: 1 present, 0 absent, -1 left out (``ignored_labels``).

    Args:
        dataset: N rows; its column ``ignored_labels``, if there is one, is a label column as ``encode_labels`` reads.
        table: Its labels.

    Raises:
        ValueError: If a class is both present and left out in one row.
    """
    labels = table.labels.astype(np.int8)
    if IGNORED_COLUMN in dataset.column_names:
        ignored = encode_labels(dataset, IGNORED_COLUMN, table.class_names).labels == 1
        if (both := np.argwhere(ignored & (labels == 1))).size:
            row, k = both[0].tolist()
            raise ValueError(
                f"Expected each class among the labels or in column {IGNORED_COLUMN!r}, found "
                f"{table.class_names[k]!r} in both, in row {row}. Take it out of one of them."
            )
        labels[ignored] = -1
    return labels


def refuse_ignored(dataset: datasets.Dataset) -> None:
    """Refuse a training set with labels that are left out.

    Raises:
        ValueError: If it has a column ``ignored_labels``.
    """
    if IGNORED_COLUMN in dataset.column_names:
        raise ValueError(
            f"Expected a training set in which every class is present or absent, found a column {IGNORED_COLUMN!r}: "
            "only evaluation leaves labels out. Drop it with `dataset.remove_columns(...)`; its classes then count as "
            "absent."
        )
