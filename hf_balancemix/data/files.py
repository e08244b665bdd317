"""Small things that loaders of data in files share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import datasets

from hf_balancemix.data.formats import IGNORED_COLUMN


def data_folders(data_dir: str | os.PathLike[str] | None, inner: str, layout: str) -> list[Path]:
    """Absolute paths at which a data set may begin: ``data_dir`` and the folder ``inner`` in it.

    Raises:
        TypeError: ``data_dir`` is no path.
        ValueError: It is None; the message gives the ``layout``.
    """
    if data_dir is None:
        raise ValueError(f"Expected `data_dir` (--data_dir), found none. Pass the folder that holds {layout}.")
    if not isinstance(data_dir, str | os.PathLike):
        raise TypeError(f"Expected a path as `data_dir`, found {data_dir!r}. Pass a text or a `pathlib.Path`.")
    folder = Path(os.path.abspath(os.path.expanduser(data_dir)))
    return [folder, folder / inner]


def describe(path: Path) -> str:
    """What is at a path, for messages: a file, nothing, or a folder and the first names in it."""
    if not path.is_dir():
        return f"{'a file' if path.exists() else 'nothing'} at {str(path)!r}"
    names = sorted(os.listdir(path))
    more = f" and {len(names) - 8} more" if names[8:] else ""
    return f"{str(path)!r} with {', '.join(map(repr, names[:8])) or 'nothing in it'}{more}"


def read_lines(path: Path) -> list[str]:
    """Lines of a text file in UTF-8, without their ends and without empty lines at the end of the file.

    Raises:
        ValueError: The file is not UTF-8, or holds nothing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at position {error.start}"
        raise ValueError(f"Expected text in UTF-8 in {str(path)!r}, found {found}. Unpack the file again.") from None
    if not text:
        raise ValueError(f"Expected one line or more in {str(path)!r}, found none. Unpack the file again.")
    return text.split("\n")


def image_table(
    split: str,
    class_names: Sequence[str],
    paths: Sequence[str],
    labels: Sequence[Sequence[int]],
    ids: Sequence[str],
    ignored: Sequence[Sequence[int]] | None = None,
) -> datasets.Dataset:
    """A split in memory that refers to N image files: ``image``, ``labels``, ``id`` and perhaps ``ignored_labels``.

    Args:
        split: Its name.
        class_names: K names.
        paths: N absolute paths.
        labels: N ascending lists of class indices.
        ids: N texts.
        ignored: N ascending lists of class indices, or None for no such column.
    """
    classes = datasets.List(datasets.ClassLabel(names=list(class_names)))
    features: dict[str, object] = {"image": datasets.Image(), "labels": classes, "id": datasets.Value("string")}
    columns: dict[str, Sequence[object]] = {"image": paths, "labels": labels, "id": ids}
    if ignored is not None:
        features[IGNORED_COLUMN], columns[IGNORED_COLUMN] = classes, ignored
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features), split=split)
