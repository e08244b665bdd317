"""A folder of images with metadata files beside them → one table per split.

``datasets`` has a loader for this layout, "imagefolder". It finds files and splits by patterns, and so reads wrong
files or leaves files out where a folder is called ``a [1]``, ``a*`` or ``Val``, or a picture ``test-1.jpg``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from transformers.utils import logging

from hf_balancemix.messages import mistake

logger = logging.get_logger(__name__)

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
EXAMPLE = (
    'a metadata.jsonl with lines such as {"file_name": "0001.jpg", "labels": ["cat", "dog"]}, or a metadata.csv with '
    "the lines file_name,labels and 0001.jpg,cat|dog"
)
_FILE_COLUMN = "file_name"
_DEPTH = 2
_SHARD = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}")
_KEYWORD = re.compile(
    r"(?:^|[-._ 0-9])(?P<split>train(?:ing)?|val(?:id(?:ation)?)?|dev|test(?:ing)?|eval(?:uation)?)(?:[-._ 0-9]|$)",
    re.IGNORECASE,
)
_SYNONYMS = {"training": "train", "testing": "test", "evaluation": "eval"}


def find_files(folder: Path, pattern: str) -> list[Path]:
    """List the files in a folder and two levels below whose names fit a pattern; hidden ones excepted."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        deep = len(Path(place).relative_to(folder).parts) >= _DEPTH
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names) if fnmatchcase(name, pattern) and name[0] != "."]
    return found


def files_by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Tell splits by the names of folders and files, as the Hub does; "train" if no name says anything.

    Raises:
        ValueError: If only some names say which split it is.
    """
    splits: dict[str, list[Path]] = {}
    unknown = []
    for file in files:
        split = split_name(file.relative_to(folder))
        splits.setdefault(split or "train", []).append(file)
        unknown += [] if split else [file]
    if unknown and len(unknown) < len(files):
        known = next(file for file in files if file not in unknown)
        raise ValueError(
            f"Expected every file in a folder called like its split, as {str(known)!r} is, found {str(unknown[0])!r}. "
            "Move it into train, test or validation, or out of the data folder."
        )
    if len(unknown) > 1:
        logger.warning(f"Read as one split: {len(unknown)} files from {str(unknown[0])!r} to {str(unknown[-1])!r}.")
    return splits


def split_name(path: Path) -> str | None:
    """Return the split that a path, relative to the data folder, speaks of; None if it speaks of none."""
    if shard := _SHARD.fullmatch(path.stem):
        return shard["split"]
    for part in (*path.parent.parts, path.stem):
        if found := _KEYWORD.search(part):
            split = found["split"].lower()
            return _SYNONYMS.get(split, split)
    return None


def read_metadata(folder: Path, files: Sequence[Path]) -> dict[str, datasets.Dataset]:
    """Read metadata files: one row per line, ``image`` in place of ``file_name``, in memory; no image is opened.

    Args:
        folder: The data folder.
        files: Its metadata files; names of images are relative to the file that has them.

    Raises:
        ValueError: For what is no such file; its path and the line or row are named.
    """
    for first, second in pairwise(files):
        if first.parent == second.parent:
            found = f"{first.name!r} and {second.name!r} in {str(first.parent)!r}"
            raise mistake("one metadata file in a folder", found, "Remove one")
    splits: dict[str, list[pa.Table]] = {}
    for split, own in files_by_split(folder, files).items():
        for file in own:
            named = split_name(file.relative_to(folder)) is not None
            parts = {split: _read_table(file)} if named else _by_folder(folder, file, split)
            for name, table in parts.items():
                splits.setdefault(name, []).append(table)
    try:  # One table first: a column then has one type in all splits, even where one has nothing but empty lists.
        whole = pa.concat_tables([t for own in splits.values() for t in own], promote_options="permissive")
    except pa.ArrowException as error:
        raise mistake(
            f"each column to hold the same kind of values in all metadata files of {str(folder)!r}",
            _one_line(error),
            "Write it in the same way everywhere",
        ) from None
    features = datasets.Features.from_arrow_schema(whole.schema) | {"image": datasets.Image()}
    images = whole["image"].to_pylist()
    _check_covered(folder, images)
    _warn_of_unlisted(images)
    data, start = {}, 0
    for split, tables in splits.items():
        names = list(dict.fromkeys(name for table in tables for name in table.column_names))
        part = whole.slice(start, sum(table.num_rows for table in tables))
        start += part.num_rows
        _check_unique(split, part["image"])
        columns = {name: part[name] for name in names}
        data[split] = datasets.Dataset.from_dict(columns, datasets.Features({name: features[name] for name in names}))
    return data


def _by_folder(folder: Path, file: Path, split: str) -> dict[str, pa.Table]:
    """Read a metadata file that no folder gives to a split, by the folders of its images, such as train/0001.jpg."""
    table = _read_table(file)
    places = [Path(os.path.relpath(image, folder)).parent for image in table["image"].to_pylist()]
    found = [split_name(place / "any") for place in places]
    if None not in found:
        return {
            name: table.filter(pa.array([name == each for each in found])) for name in dict.fromkeys(found) if name
        }
    if any(found):
        entry = found.index(None) + 1
        other = f"entry {entry} of {str(file)!r} in none, and others in {next(filter(None, found))!r}"
        raise mistake("every image in the folder of its split, or all in one split", other, "Move the images")
    return {split: table}


def _read_table(file: Path) -> pa.Table:
    """One metadata file, with the absolute path of each image in the column ``image``."""
    content = file.read_bytes()
    try:
        if file.suffix == ".parquet":
            table = pyarrow.parquet.read_table(BytesIO(content))
        elif file.suffix == ".jsonl":
            table = _parse_json_lines(file, content.decode("utf-8-sig"))
        else:
            table = _parse_csv(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at position {error.start}"
        raise mistake(f"text in UTF-8 in {str(file)!r}", found, "Save the file as UTF-8") from None
    except pa.ArrowException as error:
        remedy = 'Correct it; in CSV give every row one value per column, with quotes around "cat, dog"'
        raise mistake(f"a table in {str(file)!r}", _one_line(error), remedy) from None
    names = table.column_names
    remedy = f"Write {EXAMPLE}"
    if _FILE_COLUMN not in names:
        found = f"the columns {', '.join(map(repr, names))}" if names else "no line"
        raise mistake(f"a column {_FILE_COLUMN!r} in {str(file)!r}", found, remedy)
    if len(set(names)) < len(names) or "image" in names:
        found = next(name for name in names if names.count(name) > 1 or name == "image")
        beside = f", beside {_FILE_COLUMN!r}" if found == "image" else " more than once"
        raise mistake(f"each column once in {str(file)!r}", f"{found!r}{beside}", "Rename or remove it")
    images = []
    for entry, name in enumerate(table[_FILE_COLUMN].to_pylist(), start=1):
        if not isinstance(name, str) or not name:
            raise mistake(f"the name of a file in entry {entry} of {str(file)!r}", repr(name), remedy)
        images.append(os.path.normpath(os.path.join(file.parent, name)))
    if not images:
        raise mistake(f"at least one image in {str(file)!r}", "none", remedy)
    return table.drop_columns([_FILE_COLUMN]).append_column("image", pa.array(images, pa.string()))


def _parse_csv(text: str) -> pa.Table:
    return pyarrow.csv.read_csv(
        BytesIO(text.encode()),
        read_options=pyarrow.csv.ReadOptions(use_threads=False),  # errors then name the row
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types={_FILE_COLUMN: pa.string()}),
    )


def _parse_json_lines(file: Path, text: str) -> pa.Table:
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row, problem = json.loads(line), ""
        except json.JSONDecodeError as error:
            row, problem = None, f" ({error.msg} at character {error.pos + 1})"
        if not isinstance(row, dict):
            found = f"{line[:80]!r} in line {number}{problem}"
            raise mistake(f"one JSON object per line in {str(file)!r}", found, f"Write {EXAMPLE}")
        rows.append((number, row))
    return pa.table(
        {name: _column(file, name, rows) for name in dict.fromkeys(name for _, row in rows for name in row)}
    )


def _column(file: Path, name: str, rows: Sequence[tuple[int, dict[str, Any]]]) -> pa.Array:
    try:
        return pa.array([row.get(name) for _, row in rows])
    except (pa.ArrowException, OverflowError) as error:
        kinds: dict[str, str] = {}
        for number, row in rows:
            kinds.setdefault(_kind(row.get(name)), f"{row.get(name)!r} in line {number}")
        found = [text for kind, text in kinds.items() if kind]
        raise mistake(
            f"the same kind of value as {name!r} in every line of {str(file)!r}",
            " and ".join(found[:2]) if len(found) > 1 else _one_line(error),
            "Write it in the same way everywhere, labels as a list",
        ) from None


def _kind(value: Any) -> str:
    """Name the type of a JSON value, of a list with the types in it; "" for null and the empty list, which fit all."""
    if isinstance(value, list):
        inner = " and ".join(sorted({_kind(item) for item in value} - {""}))
        return f"list of {inner}" if inner else ""
    return "" if value is None else type(value).__name__


def _check_unique(split: str, images: pa.ChunkedArray) -> None:
    times = images.value_counts()
    repeated = times.filter(pc.greater(times.field("counts"), 1)).field("values")
    if len(repeated):
        more = f" and {len(repeated) - 1} other images" if len(repeated) > 1 else ""
        raise mistake(
            f"each image once in the metadata of split {split!r}",
            f"{repeated[0].as_py()!r}{more} several times",
            'Write all labels of an image into one entry: ["cat", "dog"] in JSON, cat|dog in CSV',
        )


def _check_covered(folder: Path, images: Sequence[str]) -> None:
    """Refuse a split's folder with images none of which is listed: without its metadata the split would vanish."""
    for child in sorted(path for path in folder.iterdir() if path.is_dir() and split_name(path / "any")):
        inside = [file for file in find_files(child, "*") if file.name.lower().endswith(_image_endings())]
        if inside and not any(image.startswith(f"{child}{os.sep}") for image in images):
            found = f"{len(inside)} images in {str(child)!r} and none of them in a metadata file"
            raise mistake("metadata for the images of every split", found, f"Write {EXAMPLE}; or move the folder away")


def _image_endings() -> tuple[str, ...]:
    return tuple(PIL.Image.registered_extensions())


def _warn_of_unlisted(images: Sequence[str]) -> None:
    """Say how many images lie beside those in the metadata without being in it."""
    listed: dict[str, set[str]] = {}
    for image in images:
        folder, name = os.path.split(image)
        listed.setdefault(folder, set()).add(name)
    endings = _image_endings()
    unlisted = [
        os.path.join(folder, name)
        for folder, names in listed.items()
        if os.path.isdir(folder)
        for name in sorted(set(os.listdir(folder)) - names)
        if name.lower().endswith(endings) and not name.startswith(".")
    ]
    if unlisted:
        logger.warning(f"Images left out because no metadata file has them: {len(unlisted)}, as {unlisted[0]!r}.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
