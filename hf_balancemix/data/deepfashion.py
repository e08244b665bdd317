"""DeepFashion, "Category and Attribute Prediction Benchmark": the subset with 26 fine-grained attributes."""

from __future__ import annotations

import os
from pathlib import Path

import datasets

from hf_balancemix.data.files import data_folders, describe, image_table, read_lines

_FOLDER = "Category and Attribute Prediction Benchmark"
_SPLITS = {"train": ("train", "val"), "test": ("test",)}
_NAMES_FILE = "list_attr_cloth.txt"
_FILES = (_NAMES_FILE, *(f"{part}{end}.txt" for part in ("train", "val", "test") for end in ("", "_attr")))
_LAYOUT = (
    f'DeepFashion, "{_FOLDER}" (a folder with the files {", ".join(_FILES)} in Anno_fine, and with the '
    "pictures, unpacked from Img/img.zip, in Img/img or img; https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html)"
)


def load_deepfashion(data_dir: str | os.PathLike[str] | None = None) -> datasets.DatasetDict:
    """Load the fine-grained attributes of DeepFashion; nothing is downloaded and no picture is opened.

    The folder as it is published, with ``Img/img.zip`` unpacked:

        Category and Attribute Prediction Benchmark/
            Anno_fine/list_attr_cloth.txt            26 attributes: a count, a heading, a name and a type per line
            Anno_fine/{train,val,test}.txt           one path per line: img/Sheer_Blouse/img_00000001.jpg
            Anno_fine/{train,val,test}_attr.txt      one line of 26 values, 0 or 1, for each of these
            Img/img/Sheer_Blouse/img_00000001.jpg    (img/Sheer_Blouse/img_00000001.jpg is found, too)

    The splits are those of BalanceMix: ``train`` is train, then val, 14,000 + 2,000 images, ``test`` is test, 4,000.

    Columns: ``image``, ``labels`` (list of ``ClassLabel``, names in the order of the file), ``id`` (the listed path).

    Source: "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations", Z. Liu et al.,
    CVPR 2016; https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/AttributePrediction.html.

    Args:
        data_dir: The folder above, or the one it is in.

    Returns:
        Splits ``train`` and ``test``.

    Raises:
        TypeError: ``data_dir`` is no path.
        ValueError: Another folder layout, missing files, files that do not fit together, a value other than 0 and 1,
            or a picture that is listed twice.
    """
    root = _find_root(data_dir)
    # Where upper and lower case are one, `img` would also match `Img`, and the pictures would be sought one too high.
    images = root / "Img" if (root / "Img" / "img").is_dir() else root
    class_names = _read_names(root / "Anno_fine" / _NAMES_FILE)
    origin: dict[str, str] = {}  # the line of each picture
    splits = {}
    for split, parts in _SPLITS.items():
        labels: dict[str, list[int]] = {}
        for part in parts:
            for number, (path, row) in enumerate(_read_part(root / "Anno_fine", part, len(class_names)), start=1):
                place = f"line {number} of {part}.txt"
                if path in origin:
                    raise ValueError(
                        f"Expected each picture once in the training and test lists, found {path!r} in {origin[path]} "
                        f"and in {place}, in {str(root / 'Anno_fine')!r}. Unpack the lists again, or take it out of "
                        "one, with its line of attributes."
                    )
                origin[path], labels[path] = place, row
        paths = [str(images / path) for path in labels]
        splits[split] = image_table(split, class_names, paths, list(labels.values()), list(labels))
    return datasets.DatasetDict(splits)


def _find_root(data_dir: str | os.PathLike[str] | None) -> Path:
    places = data_folders(data_dir, _FOLDER, _LAYOUT)
    missing = {place: _missing(place) for place in places}
    best = min(places, key=lambda place: len(missing[place]))
    if absent := missing[best]:
        some = ", ".join(absent[:3]) + (" and others" if absent[3:] else "")
        raise ValueError(
            f"Expected {_LAYOUT}, found {describe(best)}, without {some}. Unpack what is missing, and pass that "
            "folder or the one it is in as `data_dir`."
        )
    return best


def _missing(root: Path) -> list[str]:
    pictures = [] if (root / "Img" / "img").is_dir() or (root / "img").is_dir() else ["Img/img"]
    return pictures + [f"Anno_fine/{name}" for name in _FILES if not (root / "Anno_fine" / name).is_file()]


def _read_names(path: Path) -> list[str]:
    """The names of the attributes: they may hold blanks, their types do not."""
    lines = read_lines(path)
    entries = [line.rsplit(maxsplit=1) for line in lines[2:]]
    for number, entry in enumerate(entries, start=3):
        if len(entry) < 2 or not entry[1].isdecimal():
            raise ValueError(
                f"Expected the name of an attribute and the number of its type, found {lines[number - 1]!r} in line "
                f"{number} of {str(path)!r}. Unpack the file again."
            )
    names = [entry[0].strip() for entry in entries]
    if not names or lines[0].strip() != str(len(names)) or len(set(names)) < len(names):
        raise ValueError(
            "Expected the number of attributes, a line with headings, then as many lines with different names, found "
            f"{lines[0]!r} and {len(set(names))} different names in {len(names)} lines in {str(path)!r}. Unpack it "
            "again."
        )
    return names


def _read_part(folder: Path, part: str, k: int) -> list[tuple[str, list[int]]]:
    """The paths of one list, each with the attributes it has."""
    listed, attributes = folder / f"{part}.txt", folder / f"{part}_attr.txt"
    paths, rows = [line.strip() for line in read_lines(listed)], [line.split() for line in read_lines(attributes)]
    if len(paths) != len(rows):
        raise ValueError(
            f"Expected a line of attributes for each of the {len(paths)} pictures of {str(listed)!r}, found "
            f"{len(rows)} lines in {str(attributes)!r}. Unpack both files again."
        )
    for number, (path, row) in enumerate(zip(paths, rows, strict=True), start=1):
        if not path:
            raise ValueError(
                f"Expected the path of a picture, found nothing in line {number} of {str(listed)!r}. Unpack it again."
            )
        if len(row) != k or not set(row) <= {"0", "1"}:
            wrong = [value for value in row if value not in ("0", "1")]
            found = f"{wrong[0]!r}" if wrong and len(row) == k else f"{len(row)} values"
            raise ValueError(
                f"Expected {k} values, 0 or 1, one for each attribute, found {found} in line {number} of "
                f"{str(attributes)!r}. Unpack the file again."
            )
    return [(path, [i for i, value in enumerate(row) if value == "1"]) for path, row in zip(paths, rows, strict=True)]
