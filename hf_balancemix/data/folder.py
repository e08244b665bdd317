"""A user's own multi-label images, from a folder or from the Hub, as splits "train" and "test"."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils import logging

from hf_balancemix.checks import check_dataset
from hf_balancemix.data.columns import (
    ID_COLUMNS,
    IMAGE_COLUMNS,
    Columns,
    LabelFormat,
    arrow_columns,
    find_image_column,
    find_label_format,
)
from hf_balancemix.data.formats import IGNORED_COLUMN
from hf_balancemix.data.images import stored_paths
from hf_balancemix.data.sources import load_splits
from hf_balancemix.data.sparse_labels import sparse_parts
from hf_balancemix.data.validation import VALIDATION_SPLITS, choose_validation
from hf_balancemix.messages import mistake, nearest

logger = logging.get_logger(__name__)
Result = TypeVar("Result")

TEST_SPLITS = ("test", *VALIDATION_SPLITS)
_SPLIT_SEED = 0


def load_folder(
    data_dir: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    test_fraction: float = 0.2,
    image_column: str | None = None,
    label_column: Columns = None,
    label_delimiter: str | None = None,
    class_names: Sequence[str] | None = None,
) -> datasets.DatasetDict:
    """Load multi-label images of your own, or any data set of the Hub that has several labels per image.

    A folder holds one of these::

        data_dir/train/metadata.jsonl   {"file_name": "0001.jpg", "labels": ["cat", "dog"]}
        data_dir/train/0001.jpg         and the same in test/; or metadata.csv: file_name,labels / 0001.jpg,cat|dog
                                        or metadata.parquet; or all of it in data_dir itself, for one split
        data_dir/train-00000-of-00002.parquet, data_dir/test.parquet, data_dir/train/0.parquet
                                        with a column ``image``: embedded, or paths (relative to data_dir)
        data_dir/dataset_dict.json      and what else ``save_to_disk`` writes

    Labels are read by :func:`hf_balancemix.data.columns.encode_labels`: names, ids, multi-hot, one 0/1 column per
    class, or text. Without ``class_names`` and ``ClassLabel`` the classes are those of both splits together.

    Columns: ``image``, ``labels`` (list of ``ClassLabel``; another column of that name gives way), ``id`` (the row
    number, unless there is an ``id`` or ``image_id``), and all others there are. Image files are neither opened nor
    looked for.

    Args:
        data_dir: The folder.
        dataset: Name of a data set on the Hub, in place of ``data_dir``.
        dataset_config: Its configuration, if it has several.
        train_split: Split to train on; if there is just one, it is taken, whatever its name.
        test_split: Split to test on; the first of ``TEST_SPLITS`` if None.
        test_fraction: Share of the training split that is held out if there is no test split; always the same rows.
        image_column: Found if None.
        label_column: Found if None; a list of names for one 0/1 column per class.
        label_delimiter: What separates labels in a text; found if None.
        class_names: K names.

    Returns:
        Splits ``train`` and ``test``.

    Raises:
        TypeError: An argument of a wrong type.
        ValueError: What is missing or wrong, where, and what to do.
    """
    if not isinstance(test_fraction, float | int) or not 0 < test_fraction < 1:
        raise mistake("a number between 0 and 1 as `test_fraction`", repr(test_fraction), "0.2 holds out a fifth")
    splits, folder, source = load_splits(data_dir, dataset, dataset_config)
    splits = _choose_splits(splits, train_split, test_split, source)
    splits = _each(splits, lambda split: _with_images(split, image_column, folder))
    label_format = _common_format(splits, label_column, class_names, label_delimiter)
    splits = _each(splits, lambda split: as_label_lists(split, label_format))
    if "test" not in splits:
        splits = _hold_out(splits["train"], test_fraction, source)
    splits["train"] = _in_split("train", splits["train"], _without_ignored)
    _check_classes(splits, label_format.class_names)
    return datasets.DatasetDict(splits)


def load_validation(
    data_dir: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    label_column: Columns = None,
    label_delimiter: str | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[str, datasets.Dataset]:
    """Load the split to choose settings on: never the test split, and the training split only if it is named.

    Args:
        data_dir: As of :func:`load_folder`; or the folder of the validation images alone.
        dataset: Name of a data set on the Hub, in place of ``data_dir``.
        dataset_config: Its configuration, if it has several.
        split: The first of ``VALIDATION_SPLITS`` if None, or all, if neither files nor folders are called like splits.
        image_column: Found if None.
        label_column: Found if None; a list of names for one 0/1 column per class.
        label_delimiter: What separates labels in a text; found if None.
        class_names: K names.

    Returns:
        The name of the split, "" for all, and its rows, as :func:`load_folder` gives them.

    Raises:
        TypeError: An argument of a wrong type.
        ValueError: What is missing or wrong, where, and what to do.
    """
    splits, folder, source = load_splits(data_dir, dataset, dataset_config)
    found = choose_validation(splits, split, folder, source)
    shown = found or next(iter(splits))
    rows = _in_split(shown, splits[shown], lambda own: _with_images(own, image_column, folder))
    label_format = _common_format({shown: rows}, label_column, class_names, label_delimiter)
    return found, _in_split(shown, rows, lambda own: as_label_lists(own, label_format))


def as_label_lists(dataset: datasets.Dataset, label_format: LabelFormat) -> datasets.Dataset:
    """Write labels, however they are written, as a column ``labels``: ascending lists of ``ClassLabel``.

    The columns that were read go, as does another one called ``labels``; ``ignored_labels`` and ``clean_labels`` are
    written in the same way; all else stays. A data set that already has its labels so is returned itself.

    Args:
        dataset: N rows.
        label_format: From :func:`hf_balancemix.data.columns.find_label_format`.

    Raises:
        ValueError: For values that are no labels of this format.
    """
    names = label_format.class_names
    formats = {"labels": label_format}
    for column in {IGNORED_COLUMN, "clean_labels"} & set(dataset.column_names) - set(label_format.columns):
        formats[column] = find_label_format(dataset, column, names, label_format.delimiter)
    feature = datasets.List(datasets.ClassLabel(names=list(names)))
    for column, own_format in formats.items():
        parts = [
            pa.ListArray.from_arrays(part.offsets.int().numpy(), part.classes.long().numpy())
            for part in sparse_parts(dataset, own_format)
        ]
        lists = pa.chunked_array(parts, pa.list_(pa.int64()))
        sources = set(label_format.columns) if column == "labels" else {column}
        same = sources == {column} and dataset.features[column] == feature
        if not same or not arrow_columns(dataset, [column])[column].equals(lists):
            gone = sources | {column} & set(dataset.column_names)
            dataset = _replace(dataset, gone, column, lists, feature)
    return dataset


def _without_ignored(dataset: datasets.Dataset) -> datasets.Dataset:
    """Take an empty column ``ignored_labels`` off the training split, where the files give both splits one."""
    if IGNORED_COLUMN not in dataset.column_names:
        return dataset
    if rows := [row for row, ignored in enumerate(dataset[IGNORED_COLUMN]) if ignored]:
        remedy = "Only evaluation leaves labels out: empty the column there, and the classes count as absent"
        raise mistake(f"no {IGNORED_COLUMN!r} in training", f"some in {len(rows)} rows, first {rows[0]}", remedy)
    return dataset.remove_columns(IGNORED_COLUMN)


def _replace(
    dataset: datasets.Dataset, gone: set[str], column: str, values: pa.Array | pa.ChunkedArray, feature: Any
) -> datasets.Dataset:
    # Added first, for a data set forgets its length with its last column.
    added = dataset.add_column(f"new {column}", values, feature=feature)
    return added.remove_columns(sorted(gone)).rename_column(f"new {column}", column)


def _choose_splits(
    splits: dict[str, datasets.Dataset], train: str, test: str | None, source: str
) -> dict[str, datasets.Dataset]:
    if len(splits) == 1 and train == "train":
        train = next(iter(splits))
    test = test or next((name for name in TEST_SPLITS if name in splits and name != train), None)
    for option, name in (("train_split", train), ("test_split", test)):
        if name is not None and name not in splits:
            found = f"{name!r}{nearest(name, splits)}, which is none of {', '.join(map(repr, splits))}"
            raise mistake(f"a split of {source} as `{option}`", found, "Name one of these")
    if train == test:
        raise mistake("two splits", f"{train!r} as both `train_split` and `test_split`", "Leave out `test_split`")
    return {"train": splits[train]} if test is None else {"train": splits[train], "test": splits[test]}


def _each(splits: dict[str, datasets.Dataset], step: Callable[[datasets.Dataset], Result]) -> dict[str, Result]:
    """Do something with each split; what goes wrong is said with its name."""
    return {name: _in_split(name, split, step) for name, split in splits.items()}


def _in_split(name: str, split: datasets.Dataset, step: Callable[[datasets.Dataset], Result]) -> Result:
    try:
        return step(split)
    except ValueError as error:
        raise ValueError(f"{error} (In the {name} split.)") from error


def _with_images(dataset: datasets.Dataset, column: str | None, folder: Path | None) -> datasets.Dataset:
    """The data set with absolute paths, or bytes, in ``image``, and with an ``id``."""
    check_dataset(dataset, "labelled")
    dataset = dataset.with_format(None)
    if column is None:
        stored = [name for name in IMAGE_COLUMNS if name in dataset.features and _is_stored(dataset.features[name])]
        typed = any(isinstance(feature, datasets.Image) for feature in dataset.features.values())
        column = stored[0] if stored and not typed else find_image_column(dataset)
    feature = dataset.features.get(column)
    if feature is None or not (isinstance(feature, datasets.Image) or _is_stored(feature)):
        found = f"{feature}" if feature is not None else f"the columns {', '.join(map(repr, dataset.column_names))}"
        raise mistake(f"images or paths of images in column {column!r}", found, "Name the right one in image_column")
    if column != "image":
        if "image" in dataset.column_names:
            raise mistake(f"no column 'image' beside the images in {column!r}", "one", "Rename or remove it")
        dataset = dataset.rename_column(column, "image")
    if not isinstance(feature, datasets.Image) or not feature.decode:
        dataset = dataset.cast_column("image", datasets.Image())
    paths, embedded = stored_paths(dataset, "image")
    local = [path for path in paths if path and "://" not in path]
    if folder is not None and not any(embedded) and not all(map(os.path.isabs, local)):
        absolute = [os.path.join(folder, path) if path and "://" not in path else path for path in paths]
        images = datasets.Image().cast_storage(pa.array(absolute, pa.string()))
        dataset = _replace(dataset, {"image"}, "image", images, datasets.Image())
    if not any(name in ID_COLUMNS for name in dataset.column_names):
        dataset = dataset.add_column("id", np.arange(len(dataset)))
    return dataset


def _is_stored(feature: Any) -> bool:
    """Whether a column may hold images as ``Image`` stores them: paths, bytes, or both."""
    if isinstance(feature, dict):
        return bool(feature) and set(feature) <= {"bytes", "path"}
    return getattr(feature, "dtype", None) in ("string", "large_string", "binary", "large_binary")


def _common_format(
    splits: dict[str, datasets.Dataset],
    label_column: Columns,
    class_names: Sequence[str] | None,
    delimiter: str | None,
) -> LabelFormat:
    """One label format for all splits, found on all their rows together."""
    first = next(iter(splits.values()))
    shared = [name for name in first.column_names if all(name in split.column_names for split in splits.values())]
    try:
        whole = datasets.concatenate_datasets([split.select_columns(shared) for split in splits.values()])
        label_format = find_label_format(whole, label_column, class_names, delimiter)
    except ValueError:
        # Once more, for the split and the row in it.
        found = _each(splits, lambda split: find_label_format(split, label_column, class_names, delimiter))
        kinds = {name: str(splits[name].features[found[name].columns[0]]) for name in splits}
        if len(set(kinds.values())) > 1:
            different = " and ".join(f"{kind} in {name!r}" for name, kind in kinds.items())
            raise mistake("the same kind of labels in both splits", different, "Write them in the same way") from None
        raise
    if label_format.kind == "columns":
        found = _each(splits, lambda split: find_label_format(split, label_column, class_names, delimiter))
        columns = [set(own.columns) for own in found.values()]
        if odd := sorted(columns[0] ^ columns[-1]):
            remedy = "Add it there, or name the columns of the classes in label_column"
            raise mistake("the same columns of 0 and 1 in both splits", f"{odd[0]!r} in one alone", remedy)
    return label_format


def _hold_out(dataset: datasets.Dataset, fraction: float, source: str) -> dict[str, datasets.Dataset]:
    n = len(dataset)
    if n < 2:
        raise mistake(f"two images or more in {source}, to hold some out for the test", str(n), "Add images")
    # Not `train_test_split`, which writes its indices beside the data.
    held_out = min(max(round(n * fraction), 1), n - 1)
    order = np.random.default_rng(_SPLIT_SEED).permutation(n)
    rows = {"train": np.sort(order[held_out:]), "test": np.sort(order[:held_out])}
    logger.warning(
        f"No test split in {source}: {held_out} of {n} images are held out, {n - held_out} are left to train."
    )
    return {name: dataset.select(index) for name, index in rows.items()}


def _check_classes(splits: dict[str, datasets.Dataset], class_names: Sequence[str]) -> None:
    counts = {}
    for name, split in splits.items():
        present = pc.list_flatten(arrow_columns(split, ["labels"])["labels"])
        counts[name] = np.bincount(present.to_numpy(), minlength=len(class_names))
        if not counts[name].any():
            raise mistake(
                f"labels in the {name} split",
                f"none in {len(split)} rows",
                "Check the label column, or choose other splits",
            )
    unseen = [name for name, *n in zip(class_names, counts["train"], counts["test"], strict=True) if n[0] == 0 < n[1]]
    if unseen:
        shown = ", ".join(map(repr, unseen[:5])) + (", ..." if unseen[5:] else "")
        logger.warning(
            f"Only in the test split, so never learnt: {shown} ({len(unseen)} of {len(class_names)} classes)."
        )
