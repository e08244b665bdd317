"""Labels of a data set as the list of its positives, for sets whose table would not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hf_balancemix.data.columns import Columns, LabelFormat, Names, arrow_columns, find_label_format, read_positives
from hf_balancemix.method import SparseLabels

_VALUES, _ROWS = 2**22, 2**16  # so many of a multi-hot column are read at a time, or so many rows of ids or names


def sparse_labels(
    dataset: Any, label_column: Columns = None, class_names: Names | None = None, delimiter: str | None = None
) -> tuple[SparseLabels, Names]:
    """Read what ``encode_labels`` reads, with the same arguments, rules and errors, and not as a table.

    Returns:
        The labels, and the K class names.
    """
    label_format = find_label_format(dataset, label_column, class_names, delimiter)
    offsets, classes = [torch.zeros(1, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int32)]
    for part in sparse_parts(dataset, label_format):
        offsets.append(part.offsets[1:] + offsets[-1][-1])
        classes.append(part.classes)
    names = label_format.class_names
    return SparseLabels(torch.cat(offsets), torch.cat(classes), len(names)), names


def sparse_parts(dataset: Any, label_format: LabelFormat) -> Iterator[SparseLabels]:
    """Read what ``encode_labels`` reads, with the same rules and errors, a few rows at a time and not as a table.

    Args:
        dataset: N rows; its transforms are not run.
        label_format: From ``find_label_format``.

    Yields:
        The labels of the next rows.
    """
    k = len(label_format.class_names)
    height = _ROWS if label_format.kind in ("ids", "names") else max(1, _VALUES // k)
    for start in range(0, len(dataset), height):
        part = dataset.select(range(start, min(start + height, len(dataset))))
        rows, classes = read_positives(arrow_columns(part, label_format.columns), label_format, start)
        yield SparseLabels.of(torch.as_tensor(rows - start), torch.as_tensor(classes), len(part), k)
