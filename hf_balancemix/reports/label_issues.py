"""Label issues: given labels that are probably wrong, the most suspicious first."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from hf_balancemix.label_state import LabelState
from hf_balancemix.messages import mistake
from hf_balancemix.method import refine

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped,unused-ignore]

WRONG_POSITIVE, MISSING_POSITIVE = "wrong positive", "missing positive"
"""The two kinds of a label issue: a given positive that should be absent, a given negative that should be present."""

# What a spreadsheet takes for the start of a formula, behind the marks that say it is none. The last four are what
# some of them read as the first four.
_FORMULA = r"^('*[=+\-@\t\r\n＝＋－＠])"


@dataclass(frozen=True)
class LabelIssues:
    """M label issues, ranked: the first is the most suspicious.

    The suggested label is always the opposite of the given one.

    Attributes:
        rows: (M,) int64 row of the training set.
        classes: (M,) int64 class, an index of ``class_names``.
        given: (M,) uint8 given label, 0 or 1.
        scores: (M,) float32 issue score in [0, 1], descending.
        posteriors: (M,) float32 P(the given label is clean) after the last epoch (Eq. 8).
        confidences: (M,) float32 P(class is present) after the last epoch (Eq. 9).
        class_names: K names.
        image_ids: N names of the training images, by row: file names where they are known.
    """

    rows: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    given: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32]
    posteriors: npt.NDArray[np.float32]
    confidences: npt.NDArray[np.float32]
    class_names: tuple[str, ...]
    image_ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.rows)

    def kinds(self) -> npt.NDArray[np.str_]:
        """Return (M,) kinds, ``WRONG_POSITIVE`` or ``MISSING_POSITIVE``."""
        return np.where(self.given == 1, WRONG_POSITIVE, MISSING_POSITIVE)

    def to_arrow(self) -> pa.Table:
        """One row per issue, ranked.

        Returns:
            The columns ``index`` (row of the training set), ``image``, ``class`` (its name), ``given`` and
            ``suggested`` (0 or 1), ``score``, ``posterior``, ``confidence`` and ``kind``.
        """
        return pa.table(
            {
                "index": self.rows,
                "image": pa.array(self.image_ids, pa.string()).take(pa.array(self.rows)),
                "class": pa.array(self.class_names, pa.string()).take(pa.array(self.classes)),
                "given": self.given,
                "suggested": 1 - self.given,
                "score": self.scores,
                "posterior": self.posteriors,
                "confidence": self.confidences,
                "kind": pa.array([MISSING_POSITIVE, WRONG_POSITIVE]).take(pa.array(self.given)),
            }
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return the table of :meth:`to_arrow` as a data frame."""
        return self.to_arrow().to_pandas()


def find_label_issues(state: LabelState, image_ids: Sequence[str] | None = None, above: float = 0.5) -> LabelIssues:
    """Rank the given labels that are probably wrong.

    The issue score is 1 − the mean of a label's posteriors over all refreshes since the warm-up: a label that the
    model takes for wrong early and late is more suspicious than one that it comes to doubt in the end. On digits with
    injected noise this mean ranked wrong labels better than the last posterior and, where positives are missing, far
    better than the confidence. Labels with one score are ranked by how far the confidence is from them.

    Args:
        state: Of a run that refined labels, best the one after its last epoch. One without ``posterior_mean`` (of an
            older checkpoint) is ranked by its last posterior; one without ``confidence`` has the prediction on the
            unaugmented image in its place.
        image_ids: N names of the images; "row 0", "row 1", ... if None.
        above: Labels with a larger score are issues; from 0 to 1.

    Raises:
        ValueError: ``above`` is out of range, the names are not N, or the state has no posteriors.
    """
    if not 0 <= above < 1:
        raise mistake(
            "a number from 0 to below 1 as `above`", repr(above), "0.5 keeps what is rather wrong than right"
        )
    if image_ids is not None and len(image_ids) != len(state):
        raise mistake(f"{len(state)} image_ids, one per row", str(len(image_ids)), "Name every image of the state")
    posterior, confidence = state.posterior, state.probs if state.confidence is None else state.confidence
    if posterior is None or confidence is None:
        if state.mixtures is not None:
            raise mistake(
                "a label state with posteriors",
                "one of `relabel_views='stream'`, which keeps none",
                "Audit a run with another schedule, 'reuse' or 'epoch', if its 4 bytes per label fit into memory",
            )
        raise mistake(
            "a label state with posteriors",
            "one without, of another method or of the warm-up",
            "Only BalanceMixTrainer estimates them, unless `refinement` is 'none', and only after `warmup_epochs`: "
            "audit a run of it, or one of its later checkpoints",
        )
    mean = posterior if state.posterior_mean is None else state.posterior_mean
    table = 1 - mean.numpy()
    rows, classes = np.nonzero(table > above)
    scores, given = table[rows, classes], state.labels.numpy()[rows, classes]
    confidences = confidence.numpy()[rows, classes]
    order = np.lexsort((-np.abs(given - confidences), -scores))
    rows, classes = rows[order], classes[order]
    return LabelIssues(
        rows=rows,
        classes=classes,
        given=given[order],
        scores=scores[order],
        posteriors=posterior.numpy()[rows, classes],
        confidences=confidences[order],
        class_names=state.class_names,
        image_ids=[f"row {row}" for row in range(len(state))] if image_ids is None else image_ids,
    )


def label_statuses(state: LabelState, relabel_threshold: float, refinement: str) -> npt.NDArray[np.uint8]:
    """Return (N, K) what the last refresh made of each label: ``CLEAN``, ``RELABELLED`` or ``AMBIGUOUS`` (Eq. 8-10).

    Args:
        state: With posteriors; without ``confidence`` a label is clean or ambiguous.
        relabel_threshold: ε of the run.
        refinement: Of the run.
    """
    assert state.posterior is not None
    mode = "clean" if state.confidence is None else refinement
    labels = state.labels.float()
    states: npt.NDArray[np.uint8] = refine(
        labels, state.posterior, state.confidence, relabel_threshold, mode
    ).state.numpy()
    return states


def write_issues(issues: LabelIssues, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``label_issues.csv`` and ``label_issues.parquet``, the table of :meth:`LabelIssues.to_arrow`.

    The CSV is for spreadsheets: UTF-8 that says so (with a byte order mark), and an apostrophe stands before the names
    of images and classes that would be taken for formulas (:func:`plain_name` takes it off). The Parquet file has the
    names as they are.

    Args:
        issues: The issues.
        folder: Is made; files of these names are replaced.

    Returns:
        The two paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = issues.to_arrow()
    paths = folder / "label_issues.csv", folder / "label_issues.parquet"
    pa.parquet.write_table(table, paths[1])
    for name in ("image", "class"):
        safe = pc.replace_substring_regex(table[name], pattern=_FORMULA, replacement=r"'\1")
        table = table.set_column(table.column_names.index(name), name, safe)
    with open(paths[0], "wb") as file:
        file.write("\ufeff".encode())
        pa.csv.write_csv(table, file)
    return paths


def plain_name(cell: str) -> str:
    """Return the name of an image or class that stands in a cell of ``label_issues.csv``."""
    return cell[1:] if cell.startswith("'") and re.match(_FORMULA, cell) else cell
