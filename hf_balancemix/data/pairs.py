"""The road of one mini-batch: which images are paired, how they are read, and what the loss is told about them.

One sampler yields *items* ``(members, token, views)``: the rows that belong together (one for plain training; the
random half and the minority half for BalanceMix), a token from which the pair's augmentation and mixing coefficient
follow, and how many augmented views to draw. Whole items travel through samplers, ranks and workers, so a pair is
never taken apart, and what happens to it does not depend on how pairs are batched.

Pixels travel as bytes, a quarter of what floats would take between processes and to the device;
``ImageTransform.finish`` normalises them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from hf_balancemix.data.augmentations import Seed
from hf_balancemix.data.image_cache import open_image_cache
from hf_balancemix.data.images import read_images
from hf_balancemix.data.transforms import ImageTransform
from hf_balancemix.method import draw, draw_lambda

Item = tuple[tuple[int, ...], int, int]
# The views of a pair draw from (token, member, view). NumPy pads seeds with zeros, so λ needs a member of its own.
_LAMBDA_STREAM = 9
CHUNK_ITEMS = 2**16


class PairSampler(Sampler[Item]):
    """Yields one epoch of items, the same on every rank; accelerate deals whole batches of them to the ranks.

    Deliberately not a ``RandomSampler``: accelerate replaces those. It has no ``set_epoch`` either: accelerate does
    not deliver that call in a resumed epoch, so the epoch is asked for instead.

    Relations: against ``torch.utils.data.WeightedRandomSampler`` it draws from its own generator, seeded by (seed,
    epoch) alone, so ranks agree and a resumed run sees the same stream.

    Args:
        num_rows: N, the number of training images.
        seed: Seed of the run.
        epoch: Called at the start of each epoch; returns its number.
        minority_probability: Called at the start of each epoch; returns the (N,) probability of the minority half
            (Eq. 4), or ``None`` for uniform draws. ``"random"`` instead of a function: the second half is a second
            plain shuffle (two random samplers). ``"batch"``: it is a permutation of the same batch (plain Mixup).
            ``None`` instead of a function: no second half.
        views: Called at the start of each epoch; returns how many augmented views each image needs.
        batch_size: Images per optimiser step over all processes and accumulated batches; only ``"batch"`` needs it.
        rows: (n,) the rows to draw from, where they are not all of ``num_rows``.
    """

    def __init__(
        self,
        num_rows: int,
        seed: int,
        epoch: Callable[[], int],
        minority_probability: Callable[[], torch.Tensor | None] | str | None = None,
        views: Callable[[], int] = lambda: 1,
        batch_size: int = 1,
        rows: torch.Tensor | None = None,
    ) -> None:
        self.num_rows, self.seed, self.epoch = num_rows, seed, epoch
        self.minority_probability, self.views = minority_probability, views
        self.batch_size, self.rows = batch_size, rows

    def __len__(self) -> int:
        return self.num_rows if self.rows is None else len(self.rows)

    def __iter__(self) -> Iterator[Item]:
        generator = torch.Generator().manual_seed(stream_seed(self.seed, self.epoch()))
        halves, views = self._halves(generator), self.views()
        # Lists of a whole epoch would take ten times its memory; the same tokens come in parts of any size.
        for parts in zip(*halves, strict=True):
            tokens = torch.randint(2**62, (len(parts[0]),), generator=generator)
            rows = (part if self.rows is None else self.rows[part] for part in parts)
            members = zip(*(part.tolist() for part in rows), strict=True)
            # Without a line of Python for each: every process goes through the items of all.
            yield from zip(members, tokens.tolist(), repeat(views, len(tokens)), strict=True)

    def _halves(self, generator: torch.Generator) -> list[Iterable[torch.Tensor]]:
        """Return the rows of each member, in order and in parts of one length; draw them before the tokens."""
        halves = [torch.randperm(len(self), generator=generator)]
        if self.minority_probability == "random":
            halves.append(torch.randperm(len(self), generator=generator))
        elif self.minority_probability == "batch":
            batches = halves[0].split(self.batch_size)
            halves.append(torch.cat([batch[torch.randperm(len(batch), generator=generator)] for batch in batches]))
        elif callable(self.minority_probability):
            probability = self.minority_probability()
            if probability is None:
                probability = torch.full((self.num_rows,), 1.0 / self.num_rows, dtype=torch.float64)
            halves.append(draw(probability, self.num_rows, generator))
        return [half.split(CHUNK_ITEMS) for half in halves]


def stream_seed(seed: int, epoch: int) -> int:
    """Return a number of 32 bits, which is all that PyTorch takes of a seed, for the epoch of a run."""
    if seed < 2**12:  # 2**20 epochs of 2**12 seeds do not collide
        return (seed << 20) + epoch
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


class ImageRows:
    """Reads images of a ``datasets.Dataset`` by row, decoded and resized; optionally keeps them in memory.

    Args:
        dataset: Any map-style ``datasets.Dataset``.
        image_column: Name of its image column.
        transform: Gives the geometry (size) of the pixels.
        cache: Keep all N images in memory after the first read: N·3·H·W bytes.
        cache_dir: Folder in which they are kept for other runs (``open_image_cache``); no pixel changes by it.
    """

    def __init__(
        self,
        dataset: Any,
        image_column: str,
        transform: ImageTransform,
        cache: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        self.rows = dataset.select_columns([image_column])
        self.column, self.transform = image_column, transform
        self.pixels: Any = None
        if cache_dir is not None:
            self.pixels = open_image_cache(cache_dir, self.rows, image_column, transform.geometry, self._read)
        if cache:
            self.pixels = self[range(len(dataset))]

    def __len__(self) -> int:
        return len(self.rows)

    def _read(self, index: Sequence[int]) -> torch.Tensor:
        # One batched read; rows that occur twice are decoded once.
        unique = sorted(set(index))
        pixels = self.transform.resize(read_images(self.rows, self.column, unique), unique)
        if len(unique) == len(index) and unique == list(index):
            return pixels
        position = {row: i for i, row in enumerate(unique)}
        return pixels[[position[row] for row in index]]

    def __getitem__(self, index: Sequence[int]) -> torch.Tensor:
        """Return (n, 3, H, W) uint8 pixels of the n rows in ``index``."""
        return self._read(index) if self.pixels is None else self.pixels[list(index)]


class PairDataset(Dataset[dict[str, torch.Tensor]]):
    """Turns a batch of items into tensors: both halves are read in one call and augmented by the pair's token.

    ``__getitems__`` gives a ready batch: ``pixel_values`` (B, members, views, 3, H, W) uint8, ``index``
    (B, members) int64, ``mix_lambda`` (B,) float32: in [1/2, 1] (Eq. 5), or in [0, 1] if it is not ``folded``. Where
    the device augments, there is one image each (B, members, 1, 3, H, W), and ``drawn`` (B, members, views, P) int64.
    """

    def __init__(
        self, images: ImageRows, transform: ImageTransform, mix_alpha: float = 0.0, folded: bool = True
    ) -> None:
        self.images, self.transform, self.mix_alpha, self.folded = images, transform, mix_alpha, folded

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        """Read one batch of items."""
        index = [row for members, _, _ in items for row in members]
        batch, members, views = len(items), len(items[0][0]), items[0][2]
        seeds = [(token, m, v) for _, token, _ in items for m in range(members) for v in range(views)]
        return {
            **_views(self.images[index], self.transform, seeds, (batch, members)),
            "index": torch.tensor(index).view(batch, members),
            "mix_lambda": draw_lambda(
                self.mix_alpha, [(token, _LAMBDA_STREAM) for _, token, _ in items], self.folded
            ).float(),
        }


class ViewDataset(Dataset[dict[str, torch.Tensor]]):
    """Every training image once: an unaugmented view and seeded augmented views, for the pass at the epoch's start.

    ``__getitems__`` gives uint8 ``pixel_values`` (n, views, 3, H, W), or what ``ImageTransform.views`` makes them of.
    Views depend on (seed, epoch, row, view) alone.

    Args:
        images: Where the pixels come from.
        transform: Augmentation.
        clean: Whether the first view is the plain image.
        augmented: How many augmented views follow.
        seed: Seed of the run.
        epoch: Epoch that is being prepared.
    """

    def __init__(
        self, images: ImageRows, transform: ImageTransform, clean: bool, augmented: int, seed: int, epoch: int
    ) -> None:
        self.images, self.transform = images, transform
        self.clean, self.augmented, self.key = clean, augmented, (seed, epoch)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, index: Sequence[int]) -> dict[str, torch.Tensor]:
        """Read one batch of rows."""
        pixels = self.images[index]
        if not self.augmented:
            return {"pixel_values": pixels.unsqueeze(1)}
        seeds = [(*self.key, row, v) for row in index for v in range(self.augmented)]
        batch = _views(pixels, self.transform, seeds, (len(index),))
        if self.clean and "drawn" not in batch:
            batch["pixel_values"] = torch.cat([pixels.unsqueeze(1), batch["pixel_values"]], dim=1)
        return batch


class EvalDataset(Dataset[dict[str, torch.Tensor]]):
    """Plain images with their labels, if any: ``pixel_values`` (n, 3, H, W) uint8, ``labels`` (n, K) float32."""

    def __init__(self, images: ImageRows, labels: torch.Tensor | None) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, index: Sequence[int]) -> dict[str, torch.Tensor]:
        """Read one batch of rows."""
        batch = {"pixel_values": self.images[index]}
        if self.labels is not None:
            batch["labels"] = self.labels[list(index)].float()
        return batch


def _views(
    pixels: torch.Tensor, transform: ImageTransform, seeds: Sequence[Seed], shape: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """Make the views of images (n, 3, H, W), one for each seed, or leave it to the device; n is that of ``shape``."""
    if transform.on_device:
        drawn = transform.draw(seeds, *pixels.shape[-2:]).unflatten(0, (*shape, -1))
        return {"pixel_values": pixels.view(*shape, 1, *pixels.shape[1:]), "drawn": drawn}
    views = len(seeds) // len(pixels)
    made = transform.augment(pixels.repeat_interleave(views, dim=0), seeds)
    return {"pixel_values": made.view(*shape, views, *pixels.shape[1:])}


def as_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Collate function of the data sets above: their ``__getitems__`` already gives whole batches."""
    return batch
