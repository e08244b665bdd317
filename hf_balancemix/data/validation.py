"""The split that settings are chosen on: not the test split, and not unasked the training split."""

from __future__ import annotations

from pathlib import Path

import datasets

from hf_balancemix.data.metadata import find_files, split_name
from hf_balancemix.messages import mistake, nearest

VALIDATION_SPLITS = ("validation", "val", "valid", "dev", "eval")


def choose_validation(splits: dict[str, datasets.Dataset], split: str | None, folder: Path | None, source: str) -> str:
    """Choose the split to set thresholds and the like on.

    Args:
        splits: All there are, by name.
        split: Its name; the first of ``VALIDATION_SPLITS`` if None.
        folder: That they are from, if they are from one.
        source: What to call them in messages.

    Returns:
        Its name; "" for all of a folder in which no name speaks of splits.

    Raises:
        ValueError: If there is no such split, or it is a test split.
    """
    # "train" is also what the only split is called where nothing speaks of splits.
    if split is None and folder is not None and list(splits) == ["train"] and not _names_splits(folder):
        own = split_name(Path(folder.name, "any")) or ""
        _refuse_test(own, source)
        if own != "train":
            return ""
    names = ", ".join(map(repr, splits))
    found = split or next((name for name in VALIDATION_SPLITS if name in splits), None)
    if found is None:
        remedy = "Hold out some of the training images as a split of that name, or name another one with --split"
        raise mistake(f"a validation split in {source} ({', '.join(VALIDATION_SPLITS)})", names, remedy)
    _refuse_test(found, source)
    if found not in splits:
        near = nearest(found, splits)
        raise mistake(f"a split of {source}, one of {names}", f"{found!r}{near}", "Name one of these")
    return found


def _names_splits(folder: Path) -> bool:
    """Whether a file of the data, or a folder of images, is called like a split."""
    files = [*find_files(folder, "metadata.*"), *find_files(folder, "*.parquet")]
    parts = [path / "any" for path in folder.iterdir() if path.is_dir()]
    named = any(split_name(path.relative_to(folder)) for path in (*files, *parts))
    return named or (folder / "dataset_dict.json").is_file()


def _refuse_test(split: str, source: str) -> None:
    if split.lower().startswith("test"):
        raise mistake(
            f"a split of {source} that is not the test split",
            repr(split),
            "What is chosen on the test images is not tested by them: hold out some of the training images, and name "
            "their split or folder",
        )
