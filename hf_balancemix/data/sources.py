"""Where a user's data may lie: on the Hub, saved by ``datasets``, in Parquet, in images with metadata → raw splits."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetBuildError, DatasetsError

from hf_balancemix.connection import prepare_hub
from hf_balancemix.data.files import describe
from hf_balancemix.data.metadata import EXAMPLE, METADATA_FILES, files_by_split, find_files, read_metadata
from hf_balancemix.messages import mistake

LAYOUT = (
    f"A folder holds images and {EXAMPLE}, in it or in its folders train and test; or Parquet files with a column "
    "image; or what `save_to_disk` wrote"
)


def load_splits(
    data_dir: str | os.PathLike[str] | None, dataset: str | None, dataset_config: str | None
) -> tuple[dict[str, datasets.Dataset], Path | None, str]:
    """Load all splits of a folder or of a data set of the Hub.

    Args:
        data_dir: The folder.
        dataset: Name of a data set on the Hub, in its place.
        dataset_config: Its configuration, if it has several.

    Returns:
        The splits as they are, the folder if it is one, and what to call the source in messages.

    Raises:
        TypeError: An argument of a wrong type.
        ValueError: Both or neither is given, or nothing can be loaded.
    """
    _check_source(data_dir, dataset, dataset_config)
    folder = Path(os.path.abspath(os.path.expanduser(data_dir))) if data_dir else None
    splits = load_local(folder) if folder else load_hub(str(dataset), dataset_config)
    return splits, folder, repr(str(folder or dataset))


def load_hub(name: str, config: str | None) -> dict[str, datasets.Dataset]:
    """Load all splits of a data set of the Hub.

    Raises:
        ValueError: It cannot be loaded, whatever the reason.
    """
    if os.path.exists(name):
        raise mistake("the name of a data set on the Hub as `dataset`", f"the path {name!r}", "Pass it as `data_dir`")
    prepare_hub()
    try:
        return dict(datasets.load_dataset(name, config))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        what = f"the data set {name!r} of the Hub" + (f" with configuration {config!r}" if config else "")
        remedy = (
            "Check the name on https://huggingface.co/datasets and the connection; if it is gated, accept its terms "
            "there and run `hf auth login`; or pass a local copy as `data_dir`"
        )
        raise mistake(what, _reason(error), remedy) from error


def load_local(folder: Path) -> dict[str, datasets.Dataset]:
    """Load all splits in a folder; ``LAYOUT`` says what may be in it.

    Raises:
        ValueError: None of it is there, or it cannot be read.
    """
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return _load_saved(folder)
        if metadata := [file for file in find_files(folder, "metadata.*") if file.name in METADATA_FILES]:
            return read_metadata(folder, metadata)
        if files := find_files(folder, "*.parquet"):
            return _load_parquet(folder, files)
        found = describe(folder)
    except PermissionError as error:
        raise mistake("files that can be read", f"{error.filename!r} ({error.strerror})", "Permit it") from error
    raise mistake("labelled images in `data_dir`", found, f"Correct the path. {LAYOUT}")


def _check_source(data_dir: Any, dataset: Any, dataset_config: Any) -> None:
    for option, value in (("data_dir", data_dir), ("dataset", dataset)):
        if not isinstance(value, str | os.PathLike | None):
            raise TypeError(f"Expected a text as `{option}`, found {value!r}. Pass a path, or the name on the Hub.")
    if bool(data_dir) == bool(dataset):
        found = "both" if data_dir else "neither"
        raise mistake("either `data_dir`, a folder, or `dataset`, a name on the Hub", found, LAYOUT)
    if data_dir and dataset_config:
        raise mistake("`dataset_config` with `dataset`", f"{dataset_config!r} with `data_dir`", "Leave it out")


def _load_saved(folder: Path) -> dict[str, datasets.Dataset]:
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise mistake(
            f"a complete data set of `save_to_disk` in {str(folder)!r}", _reason(error), "Save it again"
        ) from error
    return dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}


def _load_parquet(folder: Path, files: Sequence[Path]) -> dict[str, datasets.Dataset]:
    splits = files_by_split(folder, files)
    try:  # escaped, for it takes names as patterns
        data_files = {split: [glob.escape(str(file)) for file in own] for split, own in splits.items()}
        return dict(datasets.load_dataset("parquet", data_files=data_files))
    except (OSError, ValueError, DatasetsError) as error:
        expected = f"Parquet files with the same columns in {str(folder)!r}"
        raise mistake(expected, _reason(error), "Write the files again") from error


def _reason(error: BaseException) -> str:
    # Errors in building say nothing themselves.
    cause = error.__cause__ if isinstance(error, DatasetBuildError) and error.__cause__ else error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}".rstrip(".")
