"""From label issues, all or those that a person accepted, to a data set with the suggested labels."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from hf_balancemix.checks import check_dataset
from hf_balancemix.data.columns import Columns, LabelFormat, arrow_columns, find_label_format, read_labels
from hf_balancemix.data.formats import as_stored
from hf_balancemix.messages import mistake
from hf_balancemix.reports.label_issues import LabelIssues

GIVEN_COLUMN, STATUS_COLUMN = "given_labels", "label_status"
STATUSES = ("clean", "relabelled", "ambiguous")
"""Names of the values ``CLEAN``, ``RELABELLED`` and ``AMBIGUOUS``, in ``label_status``."""
OTHER_DATA = "Take the training split that the labels are of, in its order and before any correction"
"""What to do about issues that are of other rows than the data."""


def corrected_dataset(
    dataset: datasets.Dataset,
    issues: LabelIssues,
    label_column: Columns = None,
    delimiter: str | None = None,
    statuses: npt.NDArray[np.uint8] | None = None,
) -> datasets.Dataset:
    """Apply the suggestion of every issue.

    The labels are written as they were: names, text, ids, multi-hot, or one column per class. Rows without an issue
    keep their value as it is. Columns that come anew take the place of any of these names:

    * ``given_labels``: the labels as they were, in their layout; lists of names where each class has a column.
    * ``label_status``, with ``statuses``: K of "clean", "relabelled" and "ambiguous", in the order of the classes.
      What training made of a label by its last posterior and confidence (Eq. 8-10) need not be what is suggested here
      by the issue score.

    Args:
        dataset: The N training images, with the given labels.
        issues: About these rows; ``issues.class_names`` are all K classes.
        label_column: As in :func:`hf_balancemix.data.columns.encode_labels`; found if None.
        delimiter: What separates labels in a text; found if None.
        statuses: (N, K) of :func:`hf_balancemix.reports.label_issues.label_statuses`.

    Raises:
        TypeError: ``dataset`` is no ``datasets.Dataset``.
        ValueError: If the data have other rows, classes or given labels than the issues.
    """
    check_dataset(dataset, "training")
    dataset = as_stored(dataset)
    label_format = find_label_format(dataset, label_column, issues.class_names, delimiter)
    columns, k = label_format.columns, len(label_format.class_names)
    if taken := {GIVEN_COLUMN, STATUS_COLUMN} & set(columns):
        raise mistake(f"labels in another column than {min(taken)!r}", "them there", "Rename the column")
    stored = arrow_columns(dataset, columns).combine_chunks()
    given = read_labels(stored, label_format)
    _check_fit(issues, given)
    corrected = given.copy()
    corrected[issues.rows, issues.classes] = 1 - issues.given
    changed = pa.array((corrected != given).any(axis=1))
    gone = {GIVEN_COLUMN, STATUS_COLUMN} if statuses is not None else {GIVEN_COLUMN}
    dataset = dataset.remove_columns(sorted(gone & set(dataset.column_names)))
    if label_format.kind == "columns":
        names = datasets.List(datasets.Value("string"))
        dataset = dataset.add_column(GIVEN_COLUMN, _name_lists(given, label_format), feature=names)
    for j, column in enumerate(columns):
        new = _written(corrected[:, j] if label_format.kind == "columns" else corrected, label_format, stored[column])
        values, feature = _choose(changed, new, stored[column]), dataset.features[column]
        old = f"{column}, as it was" if label_format.kind == "columns" else GIVEN_COLUMN
        dataset = dataset.rename_column(column, old).add_column(column, values, feature=feature)
        if label_format.kind == "columns":
            dataset = dataset.remove_columns(old)
    if statuses is not None:
        status = datasets.List(datasets.ClassLabel(names=list(STATUSES)), length=k)
        values = pa.FixedSizeListArray.from_arrays(pa.array(statuses.ravel().astype(np.int64)), k)
        dataset = dataset.add_column(STATUS_COLUMN, values, feature=status)
    return dataset


def _check_fit(issues: LabelIssues, given: npt.NDArray[np.uint8]) -> None:
    if len(issues.image_ids) != len(given):
        raise mistake(f"{len(issues.image_ids)} rows, those of the issues", str(len(given)), OTHER_DATA)
    wrong = np.flatnonzero(given[issues.rows, issues.classes] != issues.given)
    if wrong.size:
        row, k, label = (int(part[wrong[0]]) for part in (issues.rows, issues.classes, issues.given))
        expected = f"given label {label} of {issues.class_names[k]!r} in row {row} ({issues.image_ids[row]!r})"
        raise mistake(expected, f"{given[row, k]} in the data, and {wrong.size} such differences", OTHER_DATA)


def _name_lists(labels: npt.NDArray[np.uint8], label_format: LabelFormat) -> pa.ListArray:
    lists = _id_lists(labels)
    return pa.ListArray.from_arrays(lists.offsets, pa.array(label_format.class_names, pa.string()).take(lists.values))


def _id_lists(labels: npt.NDArray[np.uint8]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(labels.sum(axis=1, dtype=np.int64))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.nonzero(labels)[1]))


def _written(labels: npt.NDArray[np.uint8], label_format: LabelFormat, stored: pa.ChunkedArray) -> pa.Array:
    """Write labels (N, K), or those of one class (N,), as ``stored`` has them."""
    kind, wanted = label_format.kind, stored.type
    if kind == "columns":
        return pa.array(labels).cast(wanted)
    if kind == "names":
        lists = _name_lists(labels, label_format)
        texts = lists if label_format.delimiter is None else pc.binary_join(lists, label_format.delimiter)
        return texts.cast(wanted)
    if kind == "ids":
        return _id_lists(labels).cast(wanted)
    values = pa.array(labels.ravel()).cast(wanted.value_type)
    if pa.types.is_fixed_size_list(wanted):
        return pa.FixedSizeListArray.from_arrays(values, labels.shape[1])
    offsets = np.arange(len(labels) + 1) * labels.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values).cast(wanted)


def _choose(changed: pa.Array, new: pa.Array, old: pa.ChunkedArray) -> Any:
    """Return the new values in changed rows, the old ones elsewhere."""
    chosen = pc.if_else(changed, new, old)
    return chosen.combine_chunks() if isinstance(chosen, pa.ChunkedArray) else chosen
