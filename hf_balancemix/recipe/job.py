"""The data of a recipe, loaded and checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from accelerate import PartialState
from datasets import DatasetDict
from datasets import disable_progress_bars as disable_map_bars
from tqdm.auto import tqdm

from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.formats import evaluation_labels
from hf_balancemix.data.images import check_files, drop_unreadable
from hf_balancemix.data.sparse_labels import sparse_labels
from hf_balancemix.messages import some
from hf_balancemix.method import SparseLabels
from hf_balancemix.recipe.command import Command, Recipe
from hf_balancemix.recipe.options import RecipeArguments

# Smaller sets are mapped in less time than a bar takes to read.
_BAR_FROM = 10_000
_TOGETHER = 2**24  # labels of a table made at a time


@dataclass(frozen=True)
class Job:
    """What all runs of one command share.

    Attributes:
        options: The recipe's options.
        splits: "train" and "test", with the given labels.
        class_names: K names.
        train_counts: (K,) positives per class in training, of the clean labels where they are known.
        groups: Class groups by name, or None for many-, medium- and few-shot classes by ``train_counts``.
        unreadable: How many images of each split were left out.
        digest: Of class names and labels: other data have another one.
        command_line: That repeats the command, for the cards.
    """

    options: RecipeArguments
    splits: DatasetDict
    class_names: tuple[str, ...]
    train_counts: npt.NDArray[np.int64]
    groups: Mapping[str, Sequence[str]] | None
    unreadable: dict[str, int]
    digest: str
    command_line: str = ""


def load_job(recipe: Recipe, command: Command) -> Job:
    """Load both splits, on the first process of a machine before the others, which then find caches.

    Raises:
        ValueError: For missing images, unless they are to be left out, and for a test split without labels.
    """
    state, options = PartialState(), command.options
    unreadable: dict[str, list[str]] = {}
    with state.local_main_process_first():
        splits = recipe.load(**command.data)
        if not state.is_main_process or len(splits["train"]) < _BAR_FROM:
            disable_map_bars()
        for name in splits if command.training else ("test",):
            if options.on_bad_image == "skip":
                workers = command.args.dataloader_num_workers or None
                splits[name], unreadable[name] = drop_unreadable(splits[name], num_proc=workers)
            else:
                check_files(splits[name], "image", name)
    train, class_names = sparse_labels(splits["train"])
    test = encode_labels(splits["test"], class_names=class_names)
    if not test.labels.any():
        raise ValueError("Expected a test split with at least one label, found none in any row. Check the labels.")
    # Class groups stay the same under any noise, where the truth is known.
    known = "clean_labels" in splits["train"].column_names
    clean = sparse_labels(splits["train"], "clean_labels", class_names)[0] if known else train
    if state.is_main_process:
        _note_unreadable(command.output_dir / "unreadable_images.json", unreadable)
        counts = f"{len(train)} training and {len(test.labels)} test images"
        tqdm.write(f"{recipe.name}: {counts}, {len(class_names)} classes: {some(class_names)}")
    return Job(
        options=options,
        splits=splits,
        class_names=class_names,
        train_counts=clean.counts.numpy(),
        groups=recipe.groups,
        unreadable={name: len(dropped) for name, dropped in unreadable.items()},
        digest=labels_digest(class_names, train, evaluation_labels(splits["test"], test)),
        command_line=command.line,
    )


def labels_digest(class_names: Sequence[str], train: SparseLabels, test: npt.NDArray[np.int8]) -> str:
    """Return what tells data apart, by class names and labels: training and test, whose entries may be ignored."""
    parts = hashlib.sha256(json.dumps([class_names, train.shape, test.shape]).encode())
    height = max(8, _TOGETHER // train.num_labels // 8 * 8)  # rows whose bits fill whole bytes
    for start in range(0, len(train), height):
        parts.update(np.packbits(train.dense(slice(start, start + height)).numpy()).tobytes())
    parts.update(np.ascontiguousarray(test).tobytes())
    return parts.hexdigest()[:16]


def _note_unreadable(path: Path, unreadable: dict[str, list[str]]) -> None:
    """List what is left out; a list of what has been mended since goes."""
    if any(unreadable.values()):
        write_json(path, unreadable)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Replace the file in one step: a reader, or a killed run, never leaves half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    os.replace(temporary, path)
