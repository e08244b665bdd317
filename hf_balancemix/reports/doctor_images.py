"""A look at images before training: which can be read, how large they are, which come twice, and what a model sees."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from tqdm.auto import tqdm

from hf_balancemix.data.images import UnreadableImageError, image_names, missing_files, read_images
from hf_balancemix.data.transforms import ImageTransform
from hf_balancemix.losses import weighted_bce

_SAMPLE_SEED = 0
_THUMBNAIL = 256
_DEEP = ("I", "F")


@dataclass
class SplitImages:
    """The images of one split, as far as they were read.

    Attributes:
        num_images: N.
        sampled: Rows that were read, ascending: all, or some drawn at random.
        missing: Names of the images without a file, of all N.
        unreadable: Row, file and reason of each image that was read in vain.
        sizes: (width, height) in pixels → how many.
        modes: Pillow's mode ("RGB", "L") → how many.
        hashes: Hash of the decoded pixels → rows, ascending.
        images_per_second: How many one process read.
    """

    num_images: int
    sampled: list[int]
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    hashes: dict[str, list[int]] = field(default_factory=dict)
    images_per_second: float = 0.0

    @property
    def num_read(self) -> int:
        """How many images could be read."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class Duplicate:
    """Images with the same pixels.

    Attributes:
        images: (split, name) of each, two or more.
        across: Whether both splits have one.
        labels_differ: Whether not all have the same labels.
    """

    images: list[tuple[str, str]]
    across: bool
    labels_differ: bool


@dataclass(frozen=True)
class Example:
    """One training image as it is stored and as the model sees it; pictures are ``data:`` addresses.

    Attributes:
        name: Of the image.
        labels: Names of its classes.
        size: Width and height as stored, in pixels.
        original: The image, made smaller if it is large.
        evaluated: After the transform of evaluation.
        trained: After that of training, which draws at random.
    """

    name: str
    labels: list[str]
    size: tuple[int, int]
    original: str
    evaluated: str
    trained: str


def look_at_images(split: datasets.Dataset, name: str, max_images: int) -> SplitImages:
    """Read images of a split, all or a random sample, which is always the same.

    Args:
        split: With the column ``image``.
        name: For the bar.
        max_images: Read at most this many.
    """
    missing = missing_files(split, "image")
    there = np.setdiff1d(np.arange(len(split)), missing)
    if len(there) > max_images:
        there = np.sort(np.random.default_rng(_SAMPLE_SEED).choice(there, max_images, replace=False))
    found = SplitImages(len(split), there.tolist())
    found.missing = _name_rows(split, missing) if missing else []
    images = split.select_columns(["image"])
    start = time.perf_counter()
    for row in tqdm(found.sampled, desc=f"reading {name} images", unit="image", leave=False):
        try:
            image = read_images(images, "image", [row])[0]
        except UnreadableImageError as error:
            what = str(error).removeprefix("Expected a readable image in ")
            found.unreadable.append(what.rpartition(". Mend or delete it")[0] or what)
            continue
        found.sizes[image.size] += 1
        found.modes[image.mode] += 1
        found.hashes.setdefault(pixel_hash(image), []).append(row)
    found.images_per_second = found.num_read / max(time.perf_counter() - start, 1e-9)
    return found


def pixel_hash(image: Any) -> str:
    """Return a hash of the size and pixels of a PIL image, whatever its file format, palette or metadata."""
    # Converting what has more than eight bits a channel would cut it off, and different pictures might become equal.
    pixels = image if image.mode.startswith(_DEEP) else image.convert("RGBA")
    return hashlib.sha256(f"{pixels.mode} {pixels.size}".encode() + pixels.tobytes()).hexdigest()


def find_duplicates(
    images: dict[str, SplitImages], splits: dict[str, datasets.Dataset], labels: dict[str, npt.NDArray[np.int8]]
) -> list[Duplicate]:
    """Find images with the same pixels, those across splits first, then those with different labels.

    Args:
        images: Of :func:`look_at_images`, by split.
        splits: The splits.
        labels: (N, K) of each split.
    """
    places: dict[str, list[tuple[str, int]]] = {}
    for split, found in images.items():
        for key, rows in found.hashes.items():
            places.setdefault(key, []).extend((split, row) for row in rows)
    duplicates = []
    for members in places.values():
        if len(members) > 1:
            given = {(labels[split][row] == 1).tobytes() for split, row in members}
            named = [(split, _name_rows(splits[split], [row])[0]) for split, row in members]
            duplicates.append(Duplicate(named, len({split for split, _ in members}) > 1, len(given) > 1))
    return sorted(duplicates, key=lambda one: (not one.across, not one.labels_differ, -len(one.images)))


def advise_images(images: dict[str, SplitImages], duplicates: Sequence[Duplicate]) -> list[str]:
    """Say what to do about images that cannot be read and about duplicates, a sentence or two each."""
    advice = []
    unreadable = sum(len(found.missing) + len(found.unreadable) for found in images.values())
    if unreadable:
        advice.append(
            f"Unreadable images: {unreadable}. Mend them, or complete the download; --on_bad_image skip leaves them "
            "out."
        )
    if across := sum(one.across for one in duplicates):
        advice.append(
            f"Duplicates: equal images in both splits ({across} times) make results on the test split too good. "
            "Remove them from one."
        )
    if differ := sum(one.labels_differ for one in duplicates):
        advice.append(
            f"Duplicates: equal images with different labels ({differ} times); some of their labels are wrong."
        )
    return advice


def show_examples(
    split: datasets.Dataset,
    rows: Sequence[int],
    transform: ImageTransform,
    labels: npt.NDArray[np.int8],
    class_names: Sequence[str],
) -> tuple[list[Example], tuple[float, float]]:
    """Send training images through the transforms.

    Args:
        split: The training split.
        rows: That can be read.
        transform: Of the model.
        labels: (N, K) of the split.
        class_names: K names.

    Returns:
        The images, and the smallest and largest number that the model is given of them.
    """
    originals = read_images(split.select_columns(["image"]), "image", rows)
    resized = transform.resize(originals, rows)
    augmented = transform.augment(resized, [(_SAMPLE_SEED, row) for row in rows])
    finished = transform.finish(resized)
    examples = []
    names = _name_rows(split, rows)
    for name, row, original, evaluated, trained in zip(names, rows, originals, resized, augmented, strict=True):
        small = _viewable(original)
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        own = [class_names[k] for k in np.flatnonzero(labels[row] == 1).tolist()]
        pictures = [_picture(small), *(_picture(_from_tensor(pixels)) for pixels in (evaluated, trained))]
        examples.append(Example(name, own, original.size, *pictures))
    return examples, (float(finished.min()), float(finished.max()))


@torch.no_grad()
def untrained_loss(
    model: Any,
    split: datasets.Dataset,
    rows: Sequence[int],
    transform: ImageTransform,
    labels: npt.NDArray[np.int8],
) -> tuple[float, tuple[int, ...]]:
    """Return the loss (Eq. 1: summed over classes) of a model on some training images, and the shape of the input.

    The model is in the mode of training, as in the first step: an untrained batch normalisation knows no statistics.
    """
    pixels = transform.finish(transform.resize(read_images(split.select_columns(["image"]), "image", rows), rows))
    model.train(len(rows) > 1)  # statistics of a batch of one would be zero
    logits = model(pixel_values=pixels).logits
    targets = torch.from_numpy((labels[list(rows)] == 1).astype(np.float32))
    return float(weighted_bce(logits, targets)), tuple(pixels.shape)


def chance_loss(num_labels: int) -> float:
    """Return the loss (Eq. 1) of a model that gives every class a probability of one half: K·ln 2."""
    return num_labels * math.log(2)


def _name_rows(split: datasets.Dataset, rows: Sequence[int]) -> list[str]:
    """Name some images; without path and id by the row of the whole split, for a selection counts anew."""
    names = image_names(split.select(list(rows)), "image")
    return [
        f"row {row}" if name == f"row {place}" else name
        for place, (row, name) in enumerate(zip(rows, names, strict=True))
    ]


def _from_tensor(pixels: torch.Tensor) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _viewable(image: Any) -> Any:
    """Copy in RGB; of deep images the range is stretched, for a browser shows eight bits."""
    if not image.mode.startswith(_DEEP):
        return image.convert("RGB")
    values = np.asarray(image, dtype=np.float64)
    span = float(np.ptp(values)) or 1.0
    return PIL.Image.fromarray(((values - values.min()) / span * 255).astype(np.uint8)).convert("RGB")


def _picture(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return as_address(buffer.getvalue())


def as_address(png: bytes) -> str:
    """Return a PNG as a ``data:`` address, which needs no file beside the page."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
