"""From label issues, all or those that a person accepted, to a data set with the suggested labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from hf_balancemix.checks import check_dataset
from hf_balancemix.data.columns import Columns, LabelFormat, arrow_columns, find_label_format, read_labels
from hf_balancemix.data.formats import as_stored
from hf_balancemix.messages import mistake, nearest, some
from hf_balancemix.reports.label_issues import LabelIssues, plain_name

GIVEN_COLUMN, STATUS_COLUMN = "given_labels", "label_status"
STATUSES = ("clean", "relabelled", "ambiguous")
"""Names of the values ``CLEAN``, ``RELABELLED`` and ``AMBIGUOUS``, in ``label_status``."""
DECISION_COLUMNS = ("index", "image", "class", "given", "suggested", "decision")
_ACCEPT, _REJECT = "accept", "reject"
_OTHER_DATA = "Take the training split that the labels are of, in its order and before any correction"


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


def read_decisions(
    path: str | os.PathLike[str], class_names: Sequence[str], image_ids: Sequence[str]
) -> tuple[LabelIssues, int]:
    """Read what a person decided about label issues.

    A CSV with the columns of ``DECISION_COLUMNS``; a line without decision is passed over. It may have been through a
    spreadsheet: semicolons or tabs are read as well, and apostrophes before formulas are taken off.

    Args:
        path: The file.
        class_names: K names.
        image_ids: N names of the training images, as :func:`hf_balancemix.data.images.image_names` gives them. The
            folder of an image may be another one now; its file name may not. A decision about "row 17" fits any name.

    Returns:
        The accepted issues, in the order of the file, with scores, posteriors and confidences of NaN; and how many
        were rejected.

    Raises:
        ValueError: Naming the line, for a row, image or class that does not exist, and for anything else amiss.
    """
    class_ids = {name: k for k, name in enumerate(class_names)}
    seen: set[tuple[int, int]] = set()
    accepted: list[tuple[int, int, int]] = []
    for line, cells in _read_lines(Path(path)):
        where = f"in line {line} of {os.fspath(path)!r}"
        decision = cells["decision"].strip().lower()
        if decision not in (_ACCEPT, _REJECT, ""):
            near = nearest(decision, (_ACCEPT, _REJECT))
            raise mistake("the decision accept or reject", f"{cells['decision']!r}{near} {where}", "Correct it")
        row, k, given = _find_label(cells, class_ids, image_ids, where)
        if not decision:
            continue
        if (row, k) in seen:
            raise mistake("one decision about a label", f"another about {cells['class']!r} {where}", "Remove one")
        seen.add((row, k))
        if decision == _ACCEPT:
            accepted.append((row, k, given))
    table = np.array(accepted, dtype=np.int64).reshape(-1, 3)
    unknown = np.full(len(table), np.nan, dtype=np.float32)
    issues = LabelIssues(
        *(table[:, 0], table[:, 1], table[:, 2].astype(np.uint8)),
        *(unknown, unknown, unknown),
        class_names=tuple(class_names),
        image_ids=image_ids,
    )
    return issues, len(seen) - len(accepted)


def _read_lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the number and cells of each line."""
    remedy = "Pass the file that the page of the audit exports"
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max(",;\t", key=header.count)
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter, restval="", strict=True)
            lines = [(reader.line_num, row) for row in reader]
            columns = list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise mistake("a CSV with decisions, in UTF-8", f"{str(path)!r} ({reason})", remedy) from error
    if missing := [name for name in DECISION_COLUMNS if name not in columns]:
        found = f"{some(columns)} in {str(path)!r}, without {missing[0]!r}"
        raise mistake(f"the columns {some(DECISION_COLUMNS)}", found, remedy)
    return lines


def _find_label(
    cells: dict[str, str], class_ids: dict[str, int], image_ids: Sequence[str], where: str
) -> tuple[int, int, int]:
    """Return row, class and given label of a line."""
    index, n = cells["index"].strip(), len(image_ids)
    if not index.isdecimal() or int(index) >= n:
        raise mistake(f"an index from 0 to {n - 1}, for {n} images", f"{cells['index']!r} {where}", _OTHER_DATA)
    row, image, name = int(index), plain_name(cells["image"]), cells["class"]
    name = name if name in class_ids else plain_name(name)
    if name not in class_ids:
        found = f"{name!r}{nearest(name, class_ids)} {where}"
        raise mistake(f"one of the {len(class_ids)} classes of the data", found, _OTHER_DATA)
    same = os.path.basename(image_ids[row]) in (os.path.basename(image), os.path.basename(cells["image"]))
    if not same and image != f"row {row}":
        raise mistake(f"the image {image_ids[row]!r} in row {row}", f"{image!r} {where}", _OTHER_DATA)
    labels = cells["given"].strip(), cells["suggested"].strip()
    if labels not in (("0", "1"), ("1", "0")):
        found = f"{cells['given']!r} and {cells['suggested']!r} {where}"
        raise mistake("a given label of 0 or 1 and the other one suggested", found, "Correct the line")
    return row, class_ids[name], int(labels[0])


def _check_fit(issues: LabelIssues, given: npt.NDArray[np.uint8]) -> None:
    if len(issues.image_ids) != len(given):
        raise mistake(f"{len(issues.image_ids)} rows, those of the issues", str(len(given)), _OTHER_DATA)
    wrong = np.flatnonzero(given[issues.rows, issues.classes] != issues.given)
    if wrong.size:
        row, k, label = (int(part[wrong[0]]) for part in (issues.rows, issues.classes, issues.given))
        expected = f"given label {label} of {issues.class_names[k]!r} in row {row} ({issues.image_ids[row]!r})"
        raise mistake(expected, f"{given[row, k]} in the data, and {wrong.size} such differences", _OTHER_DATA)


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
