"""The decisions of a person about label issues, as the page of an audit exports them."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_balancemix.messages import mistake, nearest, some
from hf_balancemix.reports.corrections import OTHER_DATA
from hf_balancemix.reports.label_issues import LabelIssues, plain_name

DECISION_COLUMNS = ("index", "image", "class", "given", "suggested", "decision")
_ACCEPT, _REJECT = "accept", "reject"


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
        raise mistake(f"an index from 0 to {n - 1}, for {n} images", f"{cells['index']!r} {where}", OTHER_DATA)
    row, image, name = int(index), plain_name(cells["image"]), cells["class"]
    name = name if name in class_ids else plain_name(name)
    if name not in class_ids:
        found = f"{name!r}{nearest(name, class_ids)} {where}"
        raise mistake(f"one of the {len(class_ids)} classes of the data", found, OTHER_DATA)
    same = os.path.basename(image_ids[row]) in (os.path.basename(image), os.path.basename(cells["image"]))
    if not same and image != f"row {row}":
        raise mistake(f"the image {image_ids[row]!r} in row {row}", f"{image!r} {where}", OTHER_DATA)
    labels = cells["given"].strip(), cells["suggested"].strip()
    if labels not in (("0", "1"), ("1", "0")):
        found = f"{cells['given']!r} and {cells['suggested']!r} {where}"
        raise mistake("a given label of 0 or 1 and the other one suggested", found, "Correct the line")
    return row, class_ids[name], int(labels[0])
