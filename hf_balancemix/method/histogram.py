"""Losses by class and given label (Eq. 6), as histograms: all that fitting the mixtures needs to know of them.

The losses of class k whose given label is l form the set (k, l). Its histogram has one size however many losses there
are, takes them in any number of parts, and those of two parts of a data set add up to that of the whole: no process
needs all losses, and none needs to keep its own.

A bin knows how many losses it holds and their sum. Each bin then stands for losses at their exact mean, and the fit
errs only by how far it bends within one bin. No density is narrower than the covariance floor lets it be, so bins
much narrower than that are enough however skewed the losses are. Losses that share a bin with no other are kept as
they are, which is why small sets are fitted exactly.

The bins of a set are equal, and a power of two wide: the smallest with which they cover its range. A range that grows
makes the bins wider by merging neighbours, so the bins at the end do not depend on the order of the losses.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BINS = 4096
"""Bins of a set, half of which or more its range fills: 46 or more per standard deviation at the default floor."""

MIN_RANGE = 1e-6
"""Sets whose raw losses span less than this have nothing to separate."""

CHUNK_ENTRIES = 2**17
"""Entries worked on together, in whole rows and at least one. Working memory: about 50 bytes per entry."""

_NARROWEST = -40
_SETS_MOVED = 64
_FRACTION_BITS = 30  # no bin is narrower than the largest loss by more: floats do not resolve it


class LossHistogram:
    """The finite losses of every class and given label, counted and summed up in bins.

    Leading indices are (label value, class). 66 kB per class and label value.

    Attributes:
        low: (2, K) float64, smallest loss so far; ∞ in empty sets.
        high: (2, K) float64, largest finite loss so far; −∞ in empty sets.
        exponent: (2, K) int64, binary logarithm of the width of a bin.
        origin: (2, K) int64, start of the first bin in widths of a bin.
        count: (2, K, BINS) int64, losses in each bin.
        total: (2, K, BINS) float64, their sum.

    Args:
        num_labels: K.
        device: Where the losses are.
    """

    def __init__(self, num_labels: int, device: torch.device | str = "cpu") -> None:
        self.low = torch.full((2, num_labels), math.inf, dtype=torch.float64, device=device)
        self.high = -self.low
        self.exponent = torch.full((2, num_labels), _NARROWEST, device=device)
        self.origin = torch.zeros_like(self.exponent)
        # One more at the end, for the losses that are not counted.
        self._count = torch.zeros(2 * num_labels * BINS + 1, dtype=torch.int64, device=device)
        self._total = torch.zeros_like(self._count, dtype=torch.float64)

    @property
    def count(self) -> Tensor:
        """Losses in each bin, (2, K, BINS) int64."""
        return self._count[:-1].view(*self.low.shape, BINS)

    @property
    def total(self) -> Tensor:
        """Sum of the losses in each bin, (2, K, BINS) float64."""
        return self._total[:-1].view(*self.low.shape, BINS)

    def add(self, losses: Tensor, labels: Tensor) -> None:
        """Take in some rows.

        Args:
            losses: (n, K), floating point; infinite ones are left out.
            labels: (n, K) given labels, 0 or 1, any dtype.

        Raises:
            ValueError: Shapes are not one common (n, K) with n ≥ 1, a loss is NaN or −∞, or a label is neither 0
                nor 1. Nothing is taken in then.
        """
        if losses.ndim != 2 or losses.shape != labels.shape or losses.numel() == 0:
            raise ValueError(
                f"losses and labels must share one non-empty shape (N, K), "
                f"got {tuple(losses.shape)} and {tuple(labels.shape)}."
            )
        self._widen(*_loss_range(losses, labels))
        # Exact: the width is a power of two, and whole numbers are subtracted.
        scale = _power_of_two(-self.exponent).to(working_dtype(losses))
        origin = self.origin.to(scale.dtype)
        first = torch.arange(0, self.count.numel(), BINS, device=losses.device).view_as(self.origin)
        for _, loss, positive in row_chunks(losses, labels):
            bins = torch.where(positive, scale[1], scale[0]).mul_(loss).floor_()
            bins = bins.sub_(torch.where(positive, origin[1], origin[0])).clamp_(0, BINS - 1).long()
            cell = bins.add_(torch.where(positive, first[1], first[0]))
            cell = cell.masked_fill_(loss == math.inf, len(self._count) - 1).flatten()
            self._count.scatter_add_(0, cell, torch.ones_like(cell))
            self._total.scatter_add_(0, cell, loss.flatten().double())

    def reduce(self, all_reduce: Callable[[Tensor, str], None]) -> None:
        """Add up the histograms of all processes.

        Args:
            all_reduce: Combines a tensor over the processes in place, by "min", "max" or "sum".
        """
        low, high = self.low.clone(), self.high.clone()
        all_reduce(low, "min")
        all_reduce(high, "max")
        self._widen(low, high)
        self._count[-1], self._total[-1] = 0, 0.0
        all_reduce(self._count, "sum")
        all_reduce(self._total, "sum")

    def _widen(self, low: Tensor, high: Tensor) -> None:
        """Cover ``low`` (2, K) to ``high`` (2, K) as well."""
        filled = self.low <= self.high
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        known = self.low <= self.high
        low, high = (torch.where(known, end, 0.0) for end in (self.low, self.high))
        fitting = _binary_exponent((high - low) / (BINS - 2))
        resolved = _binary_exponent(torch.maximum(high.abs(), low.abs())) - _FRACTION_BITS
        exponent = torch.maximum(fitting, resolved).clamp(min=_NARROWEST)
        origin = (low * _power_of_two(-exponent)).floor().long()
        moved = (filled & ((exponent != self.exponent) | (origin != self.origin))).flatten().nonzero().flatten()
        for some in moved.split(_SETS_MOVED):
            steps = (exponent - self.exponent).flatten()[some, None].clamp(max=62)
            bins = torch.arange(BINS, device=low.device) + self.origin.flatten()[some, None]
            cell = ((bins >> steps) - origin.flatten()[some, None]).clamp_(0, BINS - 1)  # beyond it nothing is counted
            for table in (self.count.view(-1, BINS), self.total.view(-1, BINS)):
                old = table[some]
                table[some] = torch.zeros_like(old).scatter_add_(1, cell, old)
        self.exponent, self.origin = exponent, origin


def row_chunks(losses: Tensor, labels: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Go over (N, K) losses and labels in chunks of rows that stay in the processor's cache.

    Yields:
        The rows; their losses in float32, or in float64 if they come so; whether each is of a label 1.
    """
    size = max(1, CHUNK_ENTRIES // max(1, losses.shape[1]))
    for start in range(0, len(losses), size):
        rows = slice(start, start + size)
        yield rows, losses[rows].to(working_dtype(losses)), labels[rows].bool()


def span(low: Tensor, high: Tensor) -> Tensor:
    """What losses above `low` are divided by to be normalised; huge in sets with nothing to separate, all 0 then."""
    return torch.where(high - low >= MIN_RANGE, high - low, torch.finfo(low.dtype).max)


def working_dtype(losses: Tensor) -> torch.dtype:
    """What losses are computed with and posteriors returned in: float32, or float64 if the losses are."""
    return torch.promote_types(losses.dtype, torch.float32)


def _binary_exponent(value: Tensor) -> Tensor:
    """Return the smallest e with value < 2^e, int64; no more than any other for 0."""
    return torch.where(value > 0, torch.frexp(value).exponent.long(), _NARROWEST)


def _power_of_two(exponent: Tensor) -> Tensor:
    return torch.pow(2.0, exponent.double())


def _loss_range(losses: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest finite loss of every set, (2, K) float64; refuse losses and labels that are none."""
    low = losses.new_full((2, losses.shape[1]), math.inf, dtype=working_dtype(losses))
    high = -low
    valid_labels = torch.ones((), dtype=torch.bool, device=losses.device)
    for rows, loss, positive in row_chunks(losses, labels):
        valid_labels &= (labels[rows] == positive).all()
        finite = torch.where(loss < math.inf, loss, -math.inf)
        smallest = torch.where(positive, math.inf, loss), torch.where(positive, loss, math.inf)
        largest = torch.where(positive, -math.inf, finite), torch.where(positive, finite, -math.inf)
        low = torch.minimum(low, torch.stack([part.amin(dim=0) for part in smallest]))
        high = torch.maximum(high, torch.stack([part.amax(dim=0) for part in largest]))
    if bool((low.isnan() | (low == -math.inf)).any()):
        raise ValueError(
            "losses must not be NaN or -inf; the model that produced them has diverged or lost precision."
        )
    if not bool(valid_labels):
        raise ValueError("labels must be 0 or 1; found other values.")
    return low.double(), high.double()
