"""A resized copy of a data set's images on disk, so that each is decoded and resized once and not in every epoch.

A file holds what ``ImageTransform.resize`` gives, byte for byte, so a run with it is the run without it. JPEG copies
would take a tenth of the space, but they change the pixels and have to be decoded each time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from hf_balancemix.data.images import file_stamp
from hf_balancemix.messages import mistake

Read = Callable[[Sequence[int]], torch.Tensor]
_FORMAT = 1  # of the files, and of what their names are a digest of
_CHUNK_BYTES = 2**22
_MOST_IN_CHUNK = 256
_HASHED_TOGETHER = 256
_DIGITS = 32
_ROUNDING = 2  # levels by which another processor may round a resized pixel
_ANOTHER = "choose another folder as `image_cache`"


class CachedPixels:
    """The pixels in a cache, read from disk when they are asked for; processes on a machine share the memory.

    ``pixels[index]`` gives (n, 3, H, W) uint8 of the n rows in ``index``.

    Args:
        path: A ``.npy`` file of (N, 3, H, W) uint8.

    Raises:
        ValueError: If the file is not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._pixels = np.asarray(np.load(path, mmap_mode="r"))
        except (OSError, ValueError, EOFError) as error:
            raise mistake(
                "a whole file of the image cache", f"{str(path)!r} ({error})", "Delete it, and it is made anew"
            ) from error

    def __reduce__(self) -> Any:
        return CachedPixels, (self.path,)  # not the pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(self._pixels[list(index)])


def open_image_cache(
    folder: str | os.PathLike[str], dataset: Any, column: str, geometry: str, read: Read
) -> CachedPixels:
    """Open the cache of a data set's images, and make it first where there is none.

    The name of its file is a digest of the images (path, size and time of each file; the bytes of embedded ones) and
    of the geometry. So a folder may serve any number of splits, seeds and sizes, and images that changed get a file
    of their own. One process makes a file while the others on the machine, of this run or another, wait for it. One
    that is broken off goes on where it was. The file is never changed when it is complete.

    Args:
        folder: Made if needed.
        dataset: N rows.
        column: Its image column.
        geometry: Text that is another one if images are resized otherwise (``ImageTransform.geometry``).
        read: From row numbers to (n, 3, H, W) uint8, decoded and resized.

    Raises:
        ValueError: If the folder cannot be written to, the disk is too small, or a file there is damaged or holds
            other pixels. ``UnreadableImageError`` if an image cannot be read.
    """
    first = read([0])
    folder = Path(os.path.expanduser(folder))
    path = folder / f"{len(dataset)}-{_known_digest(folder, dataset, column, geometry)}.npy"
    if not path.exists():
        with _only_one(folder, path.with_suffix(".lock")):
            if not path.exists():
                _make(path, len(dataset), first, read)
    pixels = CachedPixels(path)
    for row in sorted({0, len(dataset) // 2, len(dataset) - 1}):
        if not _same(pixels[[row]], first if row == 0 else read([row])):
            raise mistake(
                f"the pixels of row {row} in the image cache {str(path)!r}",
                "others: it was made with another version of Pillow, torchvision or the image processor",
                f"Delete it, and it is made anew; or {_ANOTHER}",
            )
    return pixels


def _known_digest(folder: Path, dataset: Any, column: str, geometry: str) -> str:
    """Do as ``_digest``; embedded images are read once for each data set as ``datasets`` tells them apart."""
    key = f"{_FORMAT} {geometry} {dataset.features[column]!r} {dataset._fingerprint}"
    note = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.digest"
    if note.exists() and len(known := note.read_text(encoding="utf-8")) == _DIGITS:
        return known
    digest, embedded = _digest(dataset, column, geometry)
    if embedded:  # else a file might change
        with _clear_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            note.write_text(digest, encoding="utf-8")
    return digest


def _digest(dataset: Any, column: str, geometry: str) -> tuple[str, bool]:
    """What tells images and geometry apart; embedded images are read, files are only looked at. Are all embedded?"""
    embedded = True
    digest = hashlib.sha256(f"{_FORMAT} {geometry} {dataset.features[column]!r}".encode())
    batches = dataset.with_format("arrow").iter(batch_size=_HASHED_TOGETHER)
    steps = -(-len(dataset) // _HASHED_TOGETHER)
    for batch in _bar(batches, total=steps, desc="Looking at the images", unit="batch"):
        paths, contents = (pc.struct_field(batch[column], name) for name in ("path", "bytes"))
        for path, content in zip(paths.to_pylist(), contents, strict=True):
            if content.is_valid:
                digest.update(f"{len(content.as_buffer())} ".encode())
                digest.update(content.as_buffer())
            else:
                embedded = False
                digest.update(repr(file_stamp(path)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:_DIGITS], embedded


@contextmanager
def _only_one(folder: Path, lock_file: Path) -> Iterator[None]:
    """Hold a lock, which the system takes away from a process that ends in any way."""
    lock = FileLock(lock_file)
    with _clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                tqdm.write(f"Image cache: waiting for the process that makes {lock_file.stem}", file=sys.stderr)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _clear_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise mistake(
            "an `image_cache` that can be written to",
            f"{str(path)!r} ({error.strerror or error})",
            f"Permit it, or make space, and start again, which goes on where it was; or {_ANOTHER}",
        ) from error


def _make(path: Path, num_rows: int, first: torch.Tensor, read: Read) -> None:
    """Write a header and all pixels, in order: the length of the file tells how far it is."""
    part, header, row_bytes = path.with_suffix(".part"), _header((num_rows, *first.shape[1:])), first.numel()
    done = _rows_there(part, header, first)
    _check_space(path, num_rows, done, first)
    chunk = max(1, min(_MOST_IN_CHUNK, _CHUNK_BYTES // row_bytes))
    with _clear_errors(part):
        file = part.open("r+b" if done else "wb", buffering=0)
    with file, _bar(total=num_rows, initial=done, desc="Image cache", unit="image") as bar:
        _write(file, header)
        file.truncate(len(header) + done * row_bytes)
        file.seek(0, os.SEEK_END)
        for pixels in _read_all(read, range(done, num_rows), chunk):
            if pixels.shape[1:] != first.shape[1:]:
                raise mistake(
                    "an image processor that gives one size",
                    f"sizes {tuple(first.shape[1:])} and {tuple(pixels.shape[1:])}",
                    "Set `processor.size` to a height and width, or switch centre cropping on",
                )
            _write(file, pixels.contiguous().numpy())
            bar.update(len(pixels))
        with _clear_errors(part):
            os.fsync(file.fileno())  # else a power cut could leave a whole file without its pixels
    with _clear_errors(path):
        os.replace(part, path)


def _header(shape: tuple[int, ...]) -> bytes:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _rows_there(part: Path, header: bytes, first: torch.Tensor) -> int:
    """How many rows an earlier process left; none if its first one was decoded or resized otherwise."""
    if not part.exists():
        return 0
    with part.open("rb") as file:
        start, row = file.read(len(header)), np.frombuffer(file.read(first.numel()), dtype=np.uint8)
        whole = row.size == first.numel() and start == header
        if not whole or not torch.equal(torch.from_numpy(row.copy()).view(first.shape), first):
            return 0
        return (file.seek(0, os.SEEK_END) - len(header)) // first.numel()


def _check_space(path: Path, num_rows: int, done: int, first: torch.Tensor) -> None:
    """Print how much space a cache takes; refuse to begin one that does not fit."""
    folder = path.parent
    free, needed = shutil.disk_usage(folder).free, (num_rows - done) * first.numel()
    size = f"{num_rows:,} images of {first.shape[-1]} × {first.shape[-2]} pixels"
    if free < needed:
        raise mistake(
            f"{_text(needed)} of space for {size} in the image cache {str(folder)!r}",
            _text(free),
            f"Make space, {_ANOTHER}, or leave it out",
        )
    there = f" ({done:,} of them are there)" if done else ""
    others = [file for file in folder.iterdir() if file.suffix in (".npy", ".part") and file.stem != path.stem]
    # Its process may just rename one of them.
    other = f"{_text(sum(file_stamp(str(file))[1] for file in others))} of other images and " if others else ""
    tqdm.write(
        f"Image cache: {size}{there} take {_text(num_rows * first.numel())} in {str(folder)!r}, where there are "
        f"{other}{_text(free)} of space",
        file=sys.stderr,
    )


def _read_all(read: Read, rows: range, chunk: int) -> Iterator[torch.Tensor]:
    """Read rows in order, on all cores: training has not begun.

    In threads: decoding and resizing let others run, and pixels need not travel between processes.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads_of_torch = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting: deque[Future[torch.Tensor]] = deque()
            for start in range(rows.start, rows.stop, chunk):
                waiting.append(pool.submit(read, range(start, min(start + chunk, rows.stop))))
                if len(waiting) > 2 * cores:  # no more: a disk may be slower than the cores
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads_of_torch)  # new threads of this process would have one, too


def _write(file: Any, content: Any) -> None:
    rest = memoryview(content).cast("B")
    with _clear_errors(file.name):
        while rest:  # a disk that is nearly full takes a part
            rest = rest[file.write(rest) :]


def _text(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def _same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and int((found.int() - expected.int()).abs().max()) <= _ROUNDING


def _bar(*args: Any, **options: Any) -> Any:
    """A bar that only shows where it takes long, and writes few lines into a file."""
    return tqdm(*args, delay=1, mininterval=0.5 if sys.stderr.isatty() else 30, **options)
