"""Folders that commands write to: checked before the work, replaced when the new data set is complete."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets

from hf_balancemix.messages import mistake


def check_output(path: str, overwrite: bool) -> Path:
    """Return the folder for the results if it may be written to; nothing is made yet.

    Raises:
        ValueError: If there is something already, unless it may be replaced, or if it is a file.
    """
    folder = Path(path)
    if os.path.lexists(folder) and not folder.is_dir():
        raise mistake("a folder for the results as --out", f"the file {path!r}", "Choose another name")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        remedy = "Choose another --out, or add --overwrite to replace what is written there"
        raise mistake("no folder, or an empty one, as --out", f"{path!r} with files", remedy)
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
        raise mistake("a folder that can be written to as --out", repr(path), "Choose another one")
    return folder


def check_saved(folder: Path, data_dir: str | None) -> Path:
    """Return the folder for a saved data set if what is there may be replaced: nothing, or another saved data set.

    Raises:
        ValueError: If it holds anything else, or the data that are being corrected.
    """
    if data_dir and Path(data_dir).resolve().is_relative_to(folder.resolve()):
        raise mistake(f"another folder than {str(folder)!r} for the new data set", "the data there", "Choose another")
    if folder.resolve() == Path.cwd():
        raise mistake("another folder than the current one for the new data set", repr(str(folder)), "Name a new one")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "dataset_dict.json").is_file():
        remedy = "Choose another --out: whatever is in this folder would be lost"
        raise mistake(f"nothing but a saved data set to replace in {str(folder)!r}", "other files", remedy)
    return folder


def save_splits(splits: datasets.DatasetDict, folder: Path) -> None:
    """Save a data set with its images; an older one in its place goes when the new one is complete."""
    folder = folder.resolve()  # what a link points to is replaced, not the link
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".saving-") as temporary:
        complete = Path(temporary) / "splits"
        splits.save_to_disk(complete)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(complete, folder)
