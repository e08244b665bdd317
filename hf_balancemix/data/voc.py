"""Pascal VOC 2007 and 2012: 20 classes, some of them visible in an image only as objects marked difficult."""

from __future__ import annotations

import os
from pathlib import Path

import datasets

from hf_balancemix.data.files import data_folders, describe, image_table, read_lines
from hf_balancemix.messages import nearest

CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
YEARS = ("07", "12", "07+12")
DIFFICULT_TRAIN = ("negative", "positive")
DIFFICULT_EVAL = ("ignore", "negative", "positive")
_TRAIN_SETS = {
    "07": [("VOC2007", "trainval")],
    "12": [("VOC2012", "train")],
    "07+12": [("VOC2007", "trainval"), ("VOC2012", "trainval")],
}
_TEST_SET = {"07": ("VOC2007", "test"), "12": ("VOC2012", "val"), "07+12": ("VOC2007", "test")}
_PRESENT, _DIFFICULT, _ABSENT = "1", "0", "-1"  # as the image-set files write them


def load_voc(
    data_dir: str | os.PathLike[str] | None = None,
    year: str = "07+12",
    difficult_train: str = "negative",
    difficult_eval: str = "ignore",
) -> datasets.DatasetDict:
    """Load Pascal VOC from the unpacked archives; nothing is downloaded and no picture is opened.

    VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar, unpacked in one folder, give

        VOCdevkit/VOC2007/ImageSets/Main/{class}_{set}.txt    VOCdevkit/VOC2012/ImageSets/Main/{class}_{set}.txt
        VOCdevkit/VOC2007/JPEGImages/000005.jpg               VOCdevkit/VOC2012/JPEGImages/2008_000008.jpg

    ===== =================================================== ===========================================
    year  train                                               test
    ===== =================================================== ===========================================
    07    2007 trainval, 5,011 images                         2007 test, 4,952
    12    2012 train, 5,717                                   2012 val, 5,823 (the test labels are secret)
    07+12 2007 trainval, then 2012 trainval (11,540), 16,551  2007 test, 4,952 (the split of BalanceMix)
    ===== =================================================== ===========================================

    Where a class is only visible in objects marked difficult, the image-set file says 0 instead of 1 or −1. The
    official evaluation leaves such an image out of that class. Published code also counts it as positive in training
    and test, as negative in both, or as positive in training and leaves it out in the test. The choice moves the mAP,
    so numbers compare only within one convention.

    Columns: ``image``, ``labels`` (list of ``ClassLabel``, 20 names in alphabetical order), ``id`` ("VOC2007/000005"),
    and ``ignored_labels`` in a test split with ``difficult_eval="ignore"``. Rows are in the order of the files.

    Source: "The PASCAL Visual Object Classes (VOC) Challenge", M. Everingham et al., IJCV 88, 2010;
    http://host.robots.ox.ac.uk/pascal/VOC/.

    Args:
        data_dir: The folder VOCdevkit or the one it is in.
        year: One of ``YEARS``.
        difficult_train: What a class seen only in difficult objects is in training: "negative" or "positive".
        difficult_eval: And in the test: "ignore" (in ``ignored_labels``, not in ``labels``), "negative", "positive".

    Returns:
        Splits ``train`` and ``test``.

    Raises:
        TypeError: ``data_dir`` is no path.
        ValueError: An unknown option, another folder layout, missing files, or a line that is no entry of a set.
    """
    for option, value, known in (
        ("year", year, YEARS),
        ("difficult_train", difficult_train, DIFFICULT_TRAIN),
        ("difficult_eval", difficult_eval, DIFFICULT_EVAL),
    ):
        if value not in known:
            expected = " or ".join(map(repr, known))
            raise ValueError(f"Expected `{option}` to be {expected}, found {value!r}{nearest(value, known)}.")
    devkit = _find_devkit(data_dir, year)
    train = {image: row for subset in _TRAIN_SETS[year] for image, row in _read_set(devkit, *subset).items()}
    test = _read_set(devkit, *_TEST_SET[year])
    ignored = _labels(test, _DIFFICULT) if difficult_eval == "ignore" else None
    return datasets.DatasetDict(
        train=_split(devkit, "train", train, difficult_train),
        test=_split(devkit, "test", test, difficult_eval, ignored),
    )


def _find_devkit(data_dir: str | os.PathLike[str] | None, year: str) -> Path:
    sets = [*_TRAIN_SETS[year], _TEST_SET[year]]
    folders = dict.fromkeys(folder for folder, _ in sets)
    layout = (
        f"Pascal VOC, year {year!r} ({' and '.join(f'VOCdevkit/{name}' for name in folders)} with "
        f"ImageSets/Main and JPEGImages, from {', '.join(dict.fromkeys(_archive(*subset) for subset in sets))}, which "
        "all unpack into VOCdevkit; http://host.robots.ox.ac.uk/pascal/VOC)"
    )
    places = data_folders(data_dir, "VOCdevkit", layout)
    missing = {place: [f for f in folders if not (place / f / "ImageSets" / "Main").is_dir()] for place in places}
    best = min(places, key=lambda place: len(missing[place]))
    if missing[best]:
        absent = " and ".join(f"{name}/ImageSets/Main" for name in missing[best])
        raise ValueError(
            f"Expected {layout}, found {describe(best)}, without {absent}. Unpack what is missing, and pass VOCdevkit "
            "or the folder it is in as `data_dir`."
        )
    return best


def _archive(folder: str, subset: str) -> str:
    if folder == "VOC2012":
        return "VOCtrainval_11-May-2012.tar"
    return "VOCtest_06-Nov-2007.tar" if subset == "test" else "VOCtrainval_06-Nov-2007.tar"


def _read_set(devkit: Path, folder: str, subset: str) -> dict[str, tuple[str, ...]]:
    """The 20 values of each image of one set, by id, in the order of the files."""
    main = devkit / folder / "ImageSets" / "Main"
    files = [main / f"{name}_{subset}.txt" for name in CLASS_NAMES]
    if missing := [path for path in files if not path.is_file()]:
        raise ValueError(
            f"Expected one file for each of the 20 classes in {str(main)!r}, found {20 - len(missing)} called "
            f"*_{subset}.txt, without {missing[0].name!r}. Unpack {_archive(folder, subset)} in "
            f"{str(devkit.parent)!r}."
        )
    images: list[str] = []
    columns: list[list[str]] = []
    for path in files:
        names, values = _read_class(path)
        images = images or names
        if names != images:
            differing = (row for row, pair in enumerate(zip(names, images, strict=False)) if pair[0] != pair[1])
            row = next(differing, min(len(names), len(images)))
            here, there = (repr(found[row]) if row < len(found) else "the end" for found in (names, images))
            raise ValueError(
                f"Expected the same images in the same order in all class files of a set, found {here} in line "
                f"{row + 1} of {str(path)!r} and {there} in that of {files[0].name!r}. Unpack "
                f"{_archive(folder, subset)} again."
            )
        columns.append(values)
    return {f"{folder}/{image}": row for image, row in zip(images, zip(*columns, strict=True), strict=True)}


def _read_class(path: Path) -> tuple[list[str], list[str]]:
    """Names of the images in one class file, and their values."""
    entries: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        image, value = fields if len(fields := line.split()) == 2 else ("", "")
        if value not in (_PRESENT, _DIFFICULT, _ABSENT) or image in entries:
            found = f"{image!r} a second time" if image in entries else repr(line)
            raise ValueError(
                "Expected the name of an image and 1, 0 or -1, each image once, found "
                f"{found} in line {number} of {str(path)!r}. Unpack the file again, or correct the line."
            )
        entries[image] = value
    return list(entries), list(entries.values())


def _labels(images: dict[str, tuple[str, ...]], *wanted: str) -> list[list[int]]:
    return [[k for k, value in enumerate(row) if value in wanted] for row in images.values()]


def _split(
    devkit: Path,
    split: str,
    images: dict[str, tuple[str, ...]],
    difficult: str,
    ignored: list[list[int]] | None = None,
) -> datasets.Dataset:
    paths = [
        str(devkit / folder / "JPEGImages" / f"{name}.jpg") for folder, name in (key.split("/") for key in images)
    ]
    positive = (_PRESENT, _DIFFICULT) if difficult == "positive" else (_PRESENT,)
    return image_table(split, CLASS_NAMES, paths, _labels(images, *positive), list(images), ignored)
