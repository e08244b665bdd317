"""Images that are missing or cannot be read: found and named, and left out if wanted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow.compute as pc
from datasets.fingerprint import Hasher
from datasets.utils.file_utils import is_local_path

from hf_balancemix.checks import check_dataset
from hf_balancemix.data.columns import ID_COLUMNS, find_image_column

_SKIP = "leave unreadable images out: `--on_bad_image skip`, or in code `drop_unreadable(dataset)`"
_BATCH = 100
_SHOWN = 5
_READABLE = "readable"


class UnreadableImageError(ValueError):
    """An image that is missing, damaged or none at all; the message names its row and file."""

    def __init__(self, message: str) -> None:
        # The DataLoader makes the error of a worker anew, with the worker's whole traceback as its message.
        if message.startswith("Caught "):
            message = message.partition(f"{__name__}.{type(self).__name__}: ")[2].strip() or message
        super().__init__(message)


def read_images(dataset: datasets.Dataset, image_column: str, index: Sequence[int]) -> list[Any]:
    """Read the images of some rows in one go, in the order of ``index``.

    Args:
        dataset: Preferably with the image column alone: whatever else is in it is read, too.
        image_column: Of feature ``Image``; what other columns hold is returned as it is.
        index: Row numbers.

    Raises:
        UnreadableImageError: Naming the first row whose image cannot be read, its file and the reason.
    """
    try:
        images = list(dataset[list(index)][image_column])
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything for a damaged file; what is no such error goes on
        unreadable = _first_unreadable(dataset, image_column, index)
        if unreadable is None:
            raise
        raise unreadable from error
    if any(image is None for image in images) and (nothing := _first_unreadable(dataset, image_column, index)):
        raise nothing
    return images


def missing_files(dataset: datasets.Dataset, image_column: str) -> list[int]:
    """List the rows whose image is a file that does not exist; embedded and remote images count as present."""
    if not _holds_images(dataset, image_column):
        return []
    paths, embedded = stored_paths(dataset, image_column)
    local = {
        row: path
        for row, (path, inside) in enumerate(zip(paths, embedded, strict=True))
        if path is not None and not inside and is_local_path(path)
    }
    # A look at each folder is much quicker than one at each file, above all over a network.
    present = {folder: _names_in(folder) for folder in {os.path.dirname(path) for path in local.values()}}
    absent = [row for row, path in local.items() if os.path.basename(path) not in present[os.path.dirname(path)]]
    # A file system may know a file under another spelling than the one it lists (case, accents).
    return [row for row in absent if not os.path.exists(local[row])]


def check_files(dataset: datasets.Dataset, image_column: str, split: str) -> None:
    """Refuse a split of which image files are missing; no file is opened.

    Raises:
        ValueError: With their number and the first names.
    """
    missing = missing_files(dataset, image_column)
    if missing:
        names = image_names(dataset.select(missing[:_SHOWN]), image_column)
        more = f" and {len(missing) - _SHOWN} more" if missing[_SHOWN:] else ""
        raise ValueError(
            f"Expected all {len(dataset)} images of the {split} split to be there, found {len(missing)} missing: "
            f"{', '.join(map(repr, names))}{more}. Correct the folder, complete the download, or {_SKIP}."
        )


def stored_paths(dataset: datasets.Dataset, column: str) -> tuple[list[str | None], list[bool]]:
    """List the path of each image, or None, and whether its bytes are embedded; ``column`` is of feature ``Image``."""
    paths: list[str | None] = []
    embedded: list[bool] = []
    # In batches: embedded bytes may be many, and a selection of rows copies them.
    for batch in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        paths += pc.struct_field(batch[column], "path").to_pylist()
        embedded += pc.is_valid(pc.struct_field(batch[column], "bytes")).to_pylist()
    return paths, embedded


def file_stamp(path: str | None) -> tuple[str | None, int, int]:
    """Return path, size and time of change of a file; zeros where there is no local one."""
    try:
        state = os.stat(path or "")
    except (OSError, ValueError):  # missing, remote, or no path at all
        return path, 0, 0
    return path, state.st_size, state.st_mtime_ns


def image_names(dataset: datasets.Dataset, image_column: str) -> list[str]:
    """Name each of the N images: by its path, embedded or not; else by its ``id``, else as "row 17"."""
    check_dataset(dataset, "image")
    paths = stored_paths(dataset, image_column)[0] if _holds_images(dataset, image_column) else [None] * len(dataset)
    # Rows are counted anew in every selection; ids stay.
    id_column = next((name for name in ID_COLUMNS if name in dataset.column_names), None)
    ids = [f"row {row}" for row in range(len(dataset))] if id_column is None else map(str, dataset[id_column])
    return [name if path is None else path for path, name in zip(paths, ids, strict=True)]


def drop_unreadable(
    dataset: datasets.Dataset, image_column: str | None = None, num_proc: int | None = None
) -> tuple[datasets.Dataset, list[str]]:
    """Read every image once and leave out those that cannot be read.

    What was found is kept in the cache of ``datasets`` until a file changes.

    Args:
        dataset: N rows.
        image_column: Its image column; found if None.
        num_proc: Processes that read.

    Returns:
        The rows with a readable image, and the names (``image_names``) of the others, in order.

    Raises:
        TypeError: ``dataset`` is no ``datasets.Dataset``.
        ValueError: There is no image column, or no image can be read.
    """
    check_dataset(dataset, "image")
    column = image_column or find_image_column(dataset)
    if not _holds_images(dataset, column):
        return dataset, []
    paths, embedded = stored_paths(dataset, column)
    known: Any = [file_stamp(path) for path, inside in zip(paths, embedded, strict=True) if not inside]
    # Readable is what Pillow reads: another version may read more. The fingerprint stands for embedded bytes.
    key = Hasher.hash([known, PIL.__version__, dataset._fingerprint if any(embedded) else len(dataset)])
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "hf_balancemix_images"
    cache.mkdir(parents=True, exist_ok=True)
    found = _undecoded(dataset, column).map(
        _check_batch,
        batched=True,
        batch_size=_BATCH,
        input_columns=[column],
        remove_columns=[column],
        features=datasets.Features({_READABLE: datasets.Value("bool")}),
        cache_file_name=str(cache / f"{key}.arrow"),
        new_fingerprint=key,
        num_proc=num_proc,
        desc="Checking images",
    )
    readable = np.array(found[:][_READABLE])
    # The cache may remember what was no fault of the file: too many open files, a network that was away.
    doubtful = np.flatnonzero(~readable)
    reasons = [_unreadable(cell) for cell in _undecoded(dataset, column)[doubtful.tolist()][column]]
    readable[doubtful] = [reason is None for reason in reasons]
    if not readable.any():
        raise ValueError(
            f"Expected at least one readable image, found none in {len(dataset)} rows, the first being "
            f"{image_names(dataset.select([0]), column)[0]!r} ({reasons[0]}). Check the folder and the image column."
        )
    if readable.all():
        return dataset, []
    names = image_names(dataset, column)
    return dataset.select(np.flatnonzero(readable)), [names[row] for row in np.flatnonzero(~readable)]


def _check_batch(cells: Sequence[Any]) -> dict[str, list[bool]]:
    return {_READABLE: [_unreadable(cell) is None for cell in cells]}


def _unreadable(cell: Any) -> str | None:
    """Why an undecoded cell of an image column cannot be read as ``datasets`` does it; None if it can."""
    if cell is None or cell["bytes"] is None is cell["path"]:
        return "there is no image"
    try:
        if cell["bytes"] is None and not is_local_path(cell["path"]):
            datasets.Image().decode_example(cell)
            return None
        with PIL.Image.open(cell["path"] if cell["bytes"] is None else BytesIO(cell["bytes"])) as image:
            # A JPEG is read to its end, but at an eighth of its size, in about half the time.
            image.draft("RGB", (1, 1))
            image.load()
            PIL.ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:  # says nothing about the image
        raise
    except PIL.UnidentifiedImageError:
        return "no image, or one of an unknown format"
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return None


def _first_unreadable(
    dataset: datasets.Dataset, image_column: str, index: Sequence[int]
) -> UnreadableImageError | None:
    if not _holds_images(dataset, image_column):
        return None
    for row, cell in zip(index, _undecoded(dataset, image_column)[list(index)][image_column], strict=True):
        if (reason := _unreadable(cell)) is not None:
            on_disk = cell is not None and cell["bytes"] is None and cell["path"] is not None
            found = repr(cell["path"]) if on_disk else "none"
            return UnreadableImageError(
                f"Expected a readable image in row {row}, found {found} ({reason}). Mend or delete it, or {_SKIP}."
            )
    return None


def _holds_images(dataset: datasets.Dataset, column: str) -> bool:
    return isinstance(dataset.features.get(column), datasets.Image)


def _undecoded(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    stored = dataset.with_format(None).select_columns([column])
    return stored.cast_column(column, datasets.Image(decode=False))


def _names_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()
