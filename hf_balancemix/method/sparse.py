"""Labels of which few are 1, held as the list of these: what a table of N × K entries would have room for no more."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_TOGETHER = 2**22  # positives gone over at a time


@dataclass(frozen=True, eq=False)
class SparseLabels:
    """(N, K) labels in compressed rows: 4 bytes for each positive and 8 for each row.

    Attributes:
        offsets: (N + 1,) int64; row i has the positives from ``offsets[i]`` up to ``offsets[i + 1]``.
        classes: (positives,) int32, growing within a row.
        num_labels: K.
    """

    offsets: Tensor
    classes: Tensor
    num_labels: int

    @classmethod
    def of(cls, rows: Tensor, classes: Tensor, num_rows: int, num_labels: int) -> SparseLabels:
        """Take the rows and classes (positives,) of the positives, in any order; repeated ones count once."""
        places = torch.unique(rows.long() * num_labels + classes.long())  # sorted
        counts = torch.bincount(places // num_labels, minlength=num_rows)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(dim=0)])
        return cls(offsets, (places % num_labels).int(), num_labels)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def equals(self, other: SparseLabels | None) -> bool:
        """Say whether the other labels are the same."""
        return (
            other is not None
            and self.shape == other.shape
            and torch.equal(self.offsets, other.offsets)
            and torch.equal(self.classes, other.classes)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return len(self), self.num_labels

    def dense(self, rows: Tensor | slice) -> Tensor:
        """Return the (..., K) uint8 labels of rows (...)."""
        start, stop = self.offsets[:-1][rows], self.offsets[1:][rows]
        lengths = (stop - start).flatten()
        owner = torch.repeat_interleave(lengths)
        first = lengths.cumsum(dim=0) - lengths
        place = torch.arange(len(owner)) - (first - start.flatten())[owner]
        out = torch.zeros(len(lengths), self.num_labels, dtype=torch.uint8)
        out[owner, self.classes[place].long()] = 1
        return out.view(*start.shape, self.num_labels)

    def part(self, start: int, stop: int) -> SparseLabels:
        """Return the labels of rows ``start`` up to ``stop``, in the same memory but for the offsets."""
        offsets = self.offsets[start : stop + 1]
        return SparseLabels(offsets - offsets[0], self.classes[offsets[0] : offsets[-1]], self.num_labels)

    @functools.cached_property
    def counts(self) -> Tensor:
        """(K,) int64, the positives of each class."""
        found = torch.zeros(self.num_labels, dtype=torch.int64)
        for part in self.classes.split(_TOGETHER):  # copied as int64 to be counted
            found += torch.bincount(part, minlength=self.num_labels)
        return found

    def positives(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows and classes of the positives, some at a time."""
        for start in range(0, len(self.classes), _TOGETHER):
            classes = self.classes[start : start + _TOGETHER].long()
            place = torch.arange(start, start + len(classes))
            yield torch.searchsorted(self.offsets, place, right=True) - 1, classes
