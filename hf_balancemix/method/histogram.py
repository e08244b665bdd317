"""Losses by class and given label (Eq. 6), as histograms: all that fitting the mixtures needs to know of them.

The losses of class k whose given label is l form the set (k, l). Their histograms are of one size however many losses
there are, and those of two parts of a data set add up to those of the whole: with several processes, `loss_range` is
reduced by minimum and maximum, and `loss_histogram` by sum, in any order with the same result to the last bit.

A bin knows how many losses it holds and their sum. Each bin then stands for losses at their exact mean, and the fit
errs only by how far it bends within one bin. No density is narrower than the covariance floor lets it be, so equal
bins much narrower than that are enough however skewed the losses are. Losses that share a bin with no other
are kept as they are, which is why small sets are fitted exactly.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

INTERVALS = 4096
"""Equal parts of the range of a set: 92 per standard deviation at the default covariance floor."""

BINS = INTERVALS + 2
"""One for each interval without its upper end, one for the largest loss itself, one for infinite losses."""

LEVEL_BITS = 20
LEVELS = INTERVALS * 2**LEVEL_BITS
"""Normalised losses are summed up as whole multiples of 1 / LEVELS, exactly: an int64 has room for 2^31 of them."""

MIN_RANGE = 1e-6
"""Sets whose raw losses span less than this have nothing to separate."""

CHUNK_ENTRIES = 2**15
"""Entries worked on together, in whole rows and at least one. Working memory: about 50 bytes per entry."""


def row_chunks(losses: Tensor, labels: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Go over (N, K) losses and labels in chunks of rows that stay in the processor's cache.

    Yields:
        The rows; their losses in float32, or in float64 if they come so; whether each is of a label 1.
    """
    size = max(1, CHUNK_ENTRIES // max(1, losses.shape[1]))
    for start in range(0, len(losses), size):
        rows = slice(start, start + size)
        yield rows, losses[rows].to(working_dtype(losses)), labels[rows].bool()


def working_dtype(losses: Tensor) -> torch.dtype:
    """What losses are computed with and posteriors returned in: float32, or float64 if the losses are."""
    return torch.promote_types(losses.dtype, torch.float32)


def loss_range(losses: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest finite loss of every class and given label.

    Args:
        losses: (N, K), or a shard of its rows.
        labels: (N, K) given labels, 0 or 1, any dtype.

    Returns:
        Two tables (label value, class), (2, K), float32 or float64: the smallest (∞ in empty sets) and the largest
        (−∞). Over shards, take the minimum of the former and the maximum of the latter.

    Raises:
        ValueError: Shapes are not one common (N, K) with N ≥ 1, a loss is NaN or −∞, or a label is neither 0 nor 1.
    """
    if losses.ndim != 2 or losses.shape != labels.shape or losses.numel() == 0:
        raise ValueError(
            f"losses and labels must share one non-empty shape (N, K), "
            f"got {tuple(losses.shape)} and {tuple(labels.shape)}."
        )
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
    return low, high


def span(low: Tensor, high: Tensor) -> Tensor:
    """What losses above `low` are divided by to be normalised; huge in sets with nothing to separate, all 0 then."""
    return torch.where(high - low >= MIN_RANGE, high - low, torch.finfo(low.dtype).max)


def loss_histogram(losses: Tensor, labels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Histograms of the min–max normalised finite losses of every class and given label.

    Args:
        losses: (N, K), or a shard of its rows, checked by `loss_range`.
        labels: (N, K) given labels, 0 or 1, any dtype.
        low: (2, K) from `loss_range`, of the whole.
        high: (2, K), likewise.

    Returns:
        (2, 2, K, BINS) int64 with (label value, class) in the middle. First the count of losses in each bin, then
        the sum of their normalised values, times LEVELS. Over shards, take the sum. 131 kB per class, so with many
        thousands of classes take some of them (columns) at a time.
    """
    level = span(low, high) / LEVELS
    low = torch.where(low < math.inf, low, 0.0)  # where all losses are infinite
    classes = torch.arange(losses.shape[1], device=losses.device) * BINS
    table = torch.zeros(2, low.numel() * BINS, dtype=torch.int64, device=losses.device)
    for _, loss, positive in row_chunks(losses, labels):
        levels = torch.where(positive, (loss - low[1]) / level[1], (loss - low[0]) / level[0])
        levels = levels.clamp_(0, LEVELS + 2**LEVEL_BITS).long()
        cell = (levels >> LEVEL_BITS).add_(classes).add_(positive, alpha=len(classes) * BINS).flatten()
        table[0].index_add_(0, cell, torch.ones_like(cell))
        table[1].index_add_(0, cell, levels.flatten())
    return table.view(2, *low.shape, BINS)
