"""Label issues: given labels that are probably wrong, the most suspicious first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WRONG_POSITIVE, MISSING_POSITIVE = "wrong positive", "missing positive"
"""The two kinds of a label issue: a given positive that should be absent, a given negative that should be present."""


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
