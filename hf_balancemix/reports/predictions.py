"""Scores of images, one row per image, as CSV or JSON lines."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

ENDINGS = (".csv", ".jsonl")
_FILE, _LABELS = "file", "labels"
# Between the labels of an image in a CSV, as `load_folder` reads them.
_DELIMITER = "|"


def check_scores_path(path: str | Path, overwrite: bool = False) -> Path:
    """Return the path of a file of scores if it can be written; nothing is made yet.

    Args:
        path: Where the scores go; ``.csv`` or ``.jsonl``.
        overwrite: Whether an existing file may be replaced.

    Raises:
        ValueError: For another ending, a folder, and an existing file unless ``overwrite``.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"Expected a file for the scores that ends in {' or '.join(ENDINGS)}, found {str(path)!r}. Give it one of "
            "these endings."
        )
    if os.path.isdir(path):
        raise ValueError(f"Expected a file for the scores, found the folder {str(path)!r}. Choose another name.")
    if os.path.exists(path) and not overwrite:
        raise ValueError(
            f"Expected no file at {str(path)!r}, where the scores go, found one. Choose another name, or allow it to "
            "be replaced with --overwrite (`overwrite=True`)."
        )
    return path


class ScoreWriter:
    """Writes the scores of images batch by batch; what was written stays if the run is broken off.

    CSV has a header ``file,<class 1>,...`` and one column per class; JSON lines have one object per image,
    ``{"file": ..., "scores": {class: score}}``. With thresholds a last column ``labels`` has the classes whose score
    reaches theirs, as ``cat|dog``, and in JSON ``"labels": ["cat", "dog"]``. Both are UTF-8. Scores are
    written with the fewest digits that keep different float32 numbers different, so that the file ranks the images as
    the model does.

        with ScoreWriter("scores.csv", class_names) as writer:
            writer.write(files, scores)

    Args:
        path: ``.csv`` or ``.jsonl``; its folder is made.
        class_names: The K names, each once.
        overwrite: Whether an existing file is replaced.
        thresholds: (K,) decision thresholds; no labels are written without.

    Raises:
        ValueError: If :func:`check_scores_path` refuses the path, a class name occurs twice, or in a CSV a class has
            the name of another column, or one that holds the sign between labels.
    """

    def __init__(
        self,
        path: str | Path,
        class_names: Sequence[str],
        overwrite: bool = False,
        thresholds: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self.path = check_scores_path(path, overwrite)
        self.class_names, self.overwrite, self.rows = tuple(class_names), overwrite, 0
        self.thresholds = thresholds
        self._is_csv = self.path.suffix.lower() == ".csv"
        self._file: TextIO | None = None
        self._begun = self._replaces = False
        name, count = Counter(self.class_names).most_common(1)[0] if self.class_names else ("", 0)
        if count != 1:
            found = f"{name!r} {count} times" if count else "no names"
            raise ValueError(f"Expected class names that occur once each, found {found}. Rename them in the model.")
        if self._is_csv:
            self._check_columns()

    def _check_columns(self) -> None:
        """Refuse class names that a CSV cannot hold."""
        remedy = "Write JSON lines instead: a path that ends in .jsonl."
        held = {_FILE: "files"} | ({} if self.thresholds is None else {_LABELS: "labels"})
        for column, what in held.items():
            if column in self.class_names:
                raise ValueError(
                    f"Expected no class called {column!r} in a CSV, where a column of that name holds the {what}, "
                    f"found one. {remedy}"
                )
        if self.thresholds is not None and (odd := [name for name in self.class_names if _DELIMITER in name]):
            raise ValueError(
                f"Expected class names without {_DELIMITER!r} in a CSV, where it stands between the labels of an "
                f"image, found {odd[0]!r}. {remedy}"
            )

    def __enter__(self) -> ScoreWriter:
        """Open the file.

        Raises:
            ValueError: If it cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._replaces = self.overwrite and self.path.exists()
            # "x": another run may have made the file since the check. "r+": an old file stays until there is a row.
            self._file = self.path.open("r+" if self._replaces else "x", encoding="utf-8", newline="")
        except OSError as error:
            raise ValueError(
                f"Expected a file for the scores that can be written, found {str(self.path)!r} ({error.strerror}). "
                "Choose another one."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; without a row, an error leaves things as they were before."""
        if self._file is not None:
            if error is None:
                self._begin()
            self._file.close()
            if not self._begun and not self._replaces:
                self.path.unlink()

    def _begin(self) -> None:
        """Empty a file that is replaced, and write the header; once."""
        if self._begun or self._file is None:
            return
        self._begun = True
        self._file.truncate()
        if self._is_csv:
            csv.writer(self._file).writerow(
                [_FILE, *self.class_names, *([] if self.thresholds is None else [_LABELS])]
            )

    def write(self, files: Sequence[str], scores: npt.NDArray[Any]) -> None:
        """Append rows, and hand them to the operating system.

        Args:
            files: n names.
            scores: (n, K) from 0 to 1.

        Raises:
            ValueError: For another shape, and for scores that are NaN or outside 0 to 1; the first file is named.
        """
        if self._file is None:
            raise ValueError("Expected an open file, found none. Write inside of `with ScoreWriter(...) as writer:`.")
        scores = np.asarray(scores, dtype=np.float32)
        if scores.shape != (len(files), len(self.class_names)):
            raise ValueError(
                f"Expected scores of shape {(len(files), len(self.class_names))}, one row per file and one column per "
                f"class, found {scores.shape}."
            )
        wrong = np.argwhere(~((scores >= 0) & (scores <= 1)))  # NaN too
        if wrong.size:
            row, k = wrong[0].tolist()
            raise ValueError(
                f"Expected scores from 0 to 1, found {scores[row, k]} for class {self.class_names[k]!r} of "
                f"{files[row]!r}. Check the model's weights, or use a wider number format than its own."
            )
        texts = scores.astype(str).tolist()
        labels = self._labels(scores)
        self._begin()
        if self._is_csv:
            cells = [[]] * len(files) if labels is None else [[_DELIMITER.join(own)] for own in labels]
            csv.writer(self._file).writerows(
                [f, *row, *cell] for f, row, cell in zip(files, texts, cells, strict=True)
            )
        else:
            for i, (file, row) in enumerate(zip(files, texts, strict=True)):
                line = {_FILE: file, "scores": dict(zip(self.class_names, map(float, row), strict=True))}
                line |= {} if labels is None else {_LABELS: labels[i]}
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        self.rows += len(files)

    def _labels(self, scores: npt.NDArray[np.float32]) -> list[list[str]] | None:
        """Return the classes of each image whose score reaches their threshold; None without thresholds."""
        if self.thresholds is None:
            return None
        return [[self.class_names[k] for k in np.flatnonzero(row)] for row in scores >= self.thresholds]
