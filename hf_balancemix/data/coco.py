"""Microsoft COCO, 2014 and 2017, from its official files: which of the 80 object classes each photograph shows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import datasets
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from hf_balancemix.messages import mistake, some
from hf_balancemix.version import __version__

YEARS = ("2017", "2014")
_SPLITS = {"train": "train", "test": "val"}
_DOWNLOAD = (
    "Download train{0}.zip, val{0}.zip and annotations_trainval{0}.zip from https://cocodataset.org/#download and "
    "unpack all three into that one folder"
)
_REPAIR = "Unpack the official file again, or correct this one"
_ROWS_PER_BATCH = 10_000

_Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # what a column of int64 holds


# Only what is named here is read: the rest of the file, nearly all of it outlines of objects, is skipped. None of it
# can form a reference cycle, and a million objects make work for the garbage collector (`gc=False`).
class _Picture(msgspec.Struct, gc=False):
    id: _Id
    file_name: str


class _Annotation(msgspec.Struct, gc=False):
    id: _Id
    image_id: _Id
    category_id: _Id


class _Category(msgspec.Struct, gc=False):
    id: _Id
    name: str


class _File(msgspec.Struct):
    images: list[_Picture]
    annotations: list[_Annotation]
    categories: Annotated[list[_Category], msgspec.Meta(min_length=1)]


_decoder = msgspec.json.Decoder(_File)


@dataclass(frozen=True)
class _Source:
    """One split on disk; size and time of its annotation file are there to be part of the cache's key."""

    annotations: str
    folder: str
    size: int
    mtime_ns: int


@dataclass
class _Config(datasets.BuilderConfig):
    """What the cached tables depend on."""

    sources: dict[str, _Source] = field(default_factory=dict)
    keep_empty: bool = False
    package: str = ""


class _Coco(datasets.ArrowBasedBuilder):
    """Keeps the tables and class names in the cache of ``datasets``: locked, and renamed into place when complete."""

    BUILDER_CONFIG_CLASS = _Config

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(homepage="https://cocodataset.org")

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        # All is read and checked here: what is raised while rows are written would arrive wrapped by `datasets`.
        files = {}
        for split, source in datasets.utils.tqdm(self.config.sources.items(), desc="Reading COCO's annotations"):
            files[split] = _read(source, self.config.keep_empty)
        categories = files["train"][0]
        _check_same(self.config.sources, categories, files["test"][0])
        names = [category.name for category in categories]
        self.info.features = datasets.Features(
            {
                "image": datasets.Image(),
                "labels": datasets.List(datasets.ClassLabel(names=names)),
                "id": datasets.Value("int64"),
            }
        )
        return [datasets.SplitGenerator(split, {"table": table}) for split, (_, table) in files.items()]

    def _generate_tables(self, table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        for start in range(0, table.num_rows, _ROWS_PER_BATCH):
            yield start, table.slice(start, _ROWS_PER_BATCH)


def load_coco(
    data_dir: str | os.PathLike | None = None,
    year: str | None = None,
    keep_empty: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> datasets.DatasetDict:
    """Load COCO as a multi-label set: an image has a class if at least one object of it is annotated.

    The folder is what the official zips unpack to; nothing is downloaded::

        data_dir/annotations/instances_train2017.json    data_dir/train2017/*.jpg    -> "train"
        data_dir/annotations/instances_val2017.json      data_dir/val2017/*.jpg      -> "test"

    or the same with 2014. The classes are the file's categories in the order of their ids, which have gaps: 80
    classes, numbered from 0 to 79. Crowds (``iscrowd`` of 1) count as annotations. Images without any are left out,
    which leaves 117,266 of the 118,287 training images of 2017.

    Columns: ``image``, ``labels`` (list of ``ClassLabel``) and ``id``, COCO's image id, by which rows are sorted.
    The images stay where they are and are neither opened nor looked for. The tables are kept in the cache of
    ``datasets`` and read anew when an annotation file changes.

    Source: "Microsoft COCO: Common Objects in Context", T.-Y. Lin et al., ECCV 2014. https://cocodataset.org

    Args:
        data_dir: The folder; ``~`` is the home folder.
        year: "2017" or "2014"; if None the one that is there, 2017 if both are.
        keep_empty: Keep images without annotations, as rows without labels.
        cache_dir: Where the tables are kept; if None in ``datasets.config.HF_DATASETS_CACHE``.

    Returns:
        Splits ``train`` and ``test`` (COCO's validation set: its test set has no public labels).

    Raises:
        TypeError: ``data_dir`` is no path, or ``year`` no text.
        ValueError: A file or folder is missing, an annotation file cannot be right (the first bad entry is named), or
            ``cache_dir`` holds "::".
    """
    root, year = find_coco(data_dir, year)
    cache = str(cache_dir or datasets.config.HF_DATASETS_CACHE)
    if "::" in cache:  # `datasets` would cut it there, and take one cached set for another
        raise mistake("cache_dir without '::', which separates file systems", repr(cache), "Choose another folder")
    parts = [root / part for part in _parts(year)]
    sources = {}
    for split, path, folder in zip(_SPLITS, parts[:2], parts[2:], strict=True):
        stat = path.stat()
        sources[split] = _Source(str(path), str(folder), stat.st_size, stat.st_mtime_ns)
    builder = _Coco(
        cache_dir=cache,
        dataset_name="hf_balancemix_coco",
        sources=sources,
        keep_empty=bool(keep_empty),
        package=__version__,
    )
    builder.download_and_prepare()
    return builder.as_dataset()


def _parts(year: str) -> list[str]:
    """Paths below ``data_dir``: the annotation files, then the image folders, of ``_SPLITS`` in order."""
    files = [f"annotations/instances_{name}{year}.json" for name in _SPLITS.values()]
    return files + [f"{name}{year}/" for name in _SPLITS.values()]


def find_coco(data_dir: Any, year: Any = None) -> tuple[Path, str]:
    """Return the folder, and the year that :func:`load_coco` takes; both raise the same."""
    if year not in (*YEARS, None):
        kind = ValueError if isinstance(year, str) else TypeError
        raise kind(f'Expected year "2017", "2014" or None, found {year!r}. Leave it unset to take what is there.')
    if not isinstance(data_dir, str | os.PathLike | None):
        raise TypeError(f"Expected data_dir as a path, found {data_dir!r}. Pass the folder that holds COCO.")
    years = YEARS if year is None else (year,)
    expected = f"data_dir (--data_dir) to hold COCO: {', '.join(_parts(years[0]))}"
    expected += " (or all with 2014)" if year is None else ""
    if not data_dir:
        raise mistake(expected, f"data_dir={data_dir!r}", f"{_DOWNLOAD.format(years[0])}, then pass it")
    root = Path(os.path.abspath(os.path.expanduser(data_dir)))
    if not root.is_dir():
        raise mistake(expected, f"no folder {str(root)!r}", f"Correct the path. {_DOWNLOAD.format(years[0])}")
    missing = {y: [part for part in _parts(y) if not (root / part).exists()] for y in years}
    best = min(years, key=lambda y: len(missing[y]))
    if not missing[best]:
        return root, best
    entries = sorted(os.listdir(root))
    lacks = "has none of these" if missing[best] == _parts(best) else f"lacks {', '.join(missing[best])}"
    found = f"{str(root)!r}, which {lacks} and holds {some(entries) if entries else 'nothing'}"
    raise mistake(expected, found, _DOWNLOAD.format(best) + ("" if year is None else ", or leave year unset"))


def _read(source: _Source, keep_empty: bool) -> tuple[list[_Category], pa.Table]:
    """Read one annotation file: its categories by id, and one row per image by id."""
    path = source.annotations
    try:
        file = _decoder.decode(Path(path).read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise mistake(f"COCO's annotations as JSON in {path!r}", f"a problem: {error}", _REPAIR) from None
    categories = sorted(file.categories, key=lambda category: category.id)
    pictures = sorted(file.images, key=lambda picture: picture.id)
    ids = [picture.id for picture in pictures]
    category_ids = [category.id for category in categories]
    _check_unique(path, "category id", category_ids)
    _check_unique(path, "category name", [category.name for category in categories])
    _check_unique(path, "image id", ids)

    rows = _positions(path, file.annotations, "image_id", ids)
    classes = _positions(path, file.annotations, "category_id", category_ids)
    k = len(categories)
    pairs = np.unique(rows * k + classes)  # sorted by row, then class; several boxes of one class count once
    counts = np.bincount(pairs // k, minlength=len(ids))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    table = pa.table(
        {
            "image": [os.path.join(source.folder, picture.file_name) for picture in pictures],
            "labels": pa.ListArray.from_arrays(offsets, pairs % k),
            "id": ids,
        }
    )
    if not keep_empty:
        table = table.filter(pa.array(counts > 0))
    if table.num_rows == 0:
        found = f"none, of {len(ids)} images and {len(file.annotations)} annotations"
        remedy = "Unpack the official file again" + ("; keep_empty=True keeps images without any" if len(ids) else "")
        raise mistake(f"at least one annotated image in {path!r}", found, remedy)
    return categories, table


def _positions(
    path: str, annotations: Sequence[_Annotation], name: str, known: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Where the id called ``name`` of each annotation stands among the known ones."""
    wanted = np.fromiter((getattr(a, name) for a in annotations), np.int64, len(annotations))
    found = pc.index_in(pa.array(wanted), value_set=pa.array(known, pa.int64()))
    if found.null_count:
        bad = annotations[found.is_null().index(True).as_py()]
        what = f"annotation {bad.id} of image {bad.image_id} with category {bad.category_id}"
        raise mistake(f"{name} to be one of the {len(known)} in {path!r}", f"{getattr(bad, name)} in {what}", _REPAIR)
    return found.to_numpy().astype(np.int64)


def _check_unique(path: str, what: str, values: Sequence[int | str]) -> None:
    for value, count in Counter(values).most_common(1):
        if count > 1:
            raise mistake(f"each {what} once in {path!r}", f"{value!r} in {count} entries", _REPAIR)


def _check_same(sources: dict[str, _Source], train: list[_Category], test: list[_Category]) -> None:
    first, second = ([(category.id, category.name) for category in each] for each in (train, test))
    if first != second:
        only = [some([pair for pair in a if pair not in b]) for a, b in ((first, second), (second, first))]
        expected = f"the same categories in {sources['train'].annotations!r} and {sources['test'].annotations!r}"
        raise mistake(expected, f"(id, name) {only[0]} only in the former, {only[1]} only in the latter", _REPAIR)
