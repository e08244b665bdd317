"""Labels of a data set as the list of its positives, for sets whose table would not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_balancemix.data.columns import Columns, Names, arrow_columns, find_label_format, read_positives
from hf_balancemix.method import SparseLabels


def encode_sparse(
    dataset: Any, label_column: Columns = None, class_names: Sequence[str] | None = None, delimiter: str | None = None
) -> tuple[SparseLabels, Names]:
    """Read what ``encode_labels`` reads, with the same arguments, rules and errors, but not as a table.

    Memory grows with the rows and the positives where the column holds ids or names; multi-hot columns are large
    themselves.

    Returns:
        The labels, and the K class names.
    """
    label_format = find_label_format(dataset, label_column, class_names, delimiter)
    rows, classes = read_positives(arrow_columns(dataset, label_format.columns), label_format)
    names = label_format.class_names
    return SparseLabels.of(torch.as_tensor(rows), torch.as_tensor(classes), len(dataset), len(names)), names
