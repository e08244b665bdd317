"""Which checkpoints of a run are complete. A killed or failed save leaves a folder that must not be resumed from."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from hf_balancemix.label_files import FILE_NAME
from hf_balancemix.label_state import LabelState
from hf_balancemix.training.ema import FILE_NAME as AVERAGE
from hf_balancemix.training.ema import has_average
from hf_balancemix.training.machine import attempt, gather_objects

logger = logging.get_logger(__name__)

# The Trainer's pushes leave out names with an underscore in front: the given labels of the training set stay at home.
FINAL_STATE = "_label_state"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def missing_parts(checkpoint: Path) -> list[str]:
    """Return what a checkpoint lacks for an exact resume; nothing if it is complete.

    The Trainer writes ``trainer_state.json`` after everything else of the first process, so a readable one vouches
    for the rest; the other processes' random states are looked at one by one.
    """
    missing = []
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        missing.append("trainer_state.json")
    try:
        run = LabelState.read_run(checkpoint)
    except ValueError:
        return [*missing, f"a readable {FILE_NAME}"]
    world_size = run["world_size"]
    if run.get("ema_decay") and not has_average(checkpoint):
        missing.append(f"a readable {AVERAGE}")
    states = [f"rng_state_{rank}.pth" for rank in range(world_size)] if world_size > 1 else ["rng_state.pth"]
    return missing + [name for name in states if not zipfile.is_zipfile(checkpoint / name)]


def complete_checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """Return the complete checkpoints below ``output_dir``, oldest first."""
    return [path for path in _checkpoints(Path(output_dir)) if not missing_parts(path)]


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str:
    """Return the newest complete checkpoint; warn of newer ones that are passed over.

    Raises:
        ValueError: If there is none; the message lists incomplete ones.
    """
    partial: list[str] = []
    for path in reversed(_checkpoints(Path(output_dir))):
        missing = missing_parts(path)
        if not missing:
            for line in partial:
                logger.warning(f"Passing over an incomplete checkpoint: {line}.")
            return str(path)
        partial.append(f"{path.name} lacks {', '.join(missing)}")
    raise ValueError(
        f"Expected a complete checkpoint in {output_dir}, found "
        + (f"only incomplete ones ({'; '.join(partial)})" if partial else "none")
        + ". Start the run without resuming."
    )


def find_checkpoint(wanted: str | os.PathLike[str] | bool | None, output_dir: str) -> str | None:
    """Return the folder to resume from: the newest complete one for ``True``, else the one named, if any.

    Raises:
        ValueError: If there is none, or if it is not complete.
    """
    if wanted is True:
        return last_complete_checkpoint(output_dir)
    if not wanted:
        if older := complete_checkpoints(output_dir):
            logger.warning(
                f"Starting anew in {output_dir}, which holds checkpoints of an earlier run up to {older[-1].name}. "
                "`resume_from_checkpoint=True` takes the highest number of both runs: use another `output_dir`, or "
                "remove them."
            )
        return None
    check_complete(Path(wanted))
    return os.fspath(wanted)


def find_checkpoint_of_all(wanted: str | os.PathLike[str] | bool | None, args: TrainingArguments) -> str | None:
    """Do as :func:`find_checkpoint`, on all processes; all must find the same, and see one output folder.

    Raises:
        ValueError: On all of them, if any finds none to resume from, or another one than the others.
    """
    found, error = attempt(lambda: find_checkpoint(wanted, args.output_dir))
    names = gather_objects(str(error) if error else found and Path(found).name, args)
    if len(set(names)) > 1:
        different = "; ".join(f"process {rank}: {name}" for rank, name in enumerate(names) if name != names[0])
        raise ValueError(
            f"Expected the same checkpoint on all processes, found on process 0: {names[0]}; {different}. Put "
            "`output_dir` on a file system that all machines share."
        )
    if error:
        raise error
    _check_shared(args)
    return found


def _check_shared(args: TrainingArguments) -> None:
    """Warn if another process does not see what the first one writes into the output folder."""
    if args.world_size == 1:
        return
    folder = Path(args.output_dir)

    def mark() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".shared-", dir=folder)).name

    own, error = attempt(mark) if args.process_index == 0 else (None, None)
    marker = gather_objects(own, args, error)[0]
    blind = gather_objects((folder / marker).is_dir(), args).count(False)
    if args.process_index == 0:
        (folder / marker).rmdir()
        if blind:
            logger.warning(
                f"Expected one `output_dir` for all processes, found that {blind} of {args.world_size} do not see "
                f"what is written to {folder}: no checkpoint of this run can be resumed from. Put it on a file system "
                "that all machines share."
            )


def check_complete(checkpoint: Path) -> None:
    """Refuse a checkpoint that cannot be resumed from.

    Raises:
        ValueError: Naming the missing files and a complete checkpoint beside it, if there is one.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"Expected a checkpoint folder, found nothing at {checkpoint}. Check the path.")
    missing = missing_parts(checkpoint)
    if missing:
        others = complete_checkpoints(checkpoint.parent)
        raise ValueError(
            f"Expected a complete checkpoint, found that {checkpoint} lacks {', '.join(missing)}. "
            + (f"Resume from {others[-1]}." if others else "Start the run without resuming.")
        )


def _checkpoints(folder: Path) -> list[Path]:
    numbered = [(int(m.group(1)), p) for p in folder.glob("checkpoint-*") if (m := _NAME.match(p.name))]
    return [path for _, path in sorted(numbered)]


def load_weights(model: PreTrainedModel, checkpoint: str) -> None:
    """Load weights as ``from_pretrained`` does, all of them or none.

    Raises:
        ValueError: If they are missing, damaged or another model's.
    """
    model.load_state_dict(read_weights(model, checkpoint), strict=True)


def read_weights(model: PreTrainedModel, checkpoint: str) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint under the names that the model uses.

    The stock Trainer (5.23) loads the file's tensors by name and passes over those it does not know. But
    ``save_pretrained`` writes many models (ViT, Swin, …) under older names than the model uses, so a resumed or best
    ViT silently keeps its random or last weights. ``test_canaries.py`` says when that has changed.

    Raises:
        ValueError: If they are missing, damaged or another model's.
    """
    model_class: Any = type(model)
    try:
        loaded, info = model_class.from_pretrained(checkpoint, output_loading_info=True)
        weights: dict[str, torch.Tensor] = loaded.state_dict()
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"without {missing[0]}")  # which would be drawn at random
        if {n: v.shape for n, v in weights.items()} != {n: v.shape for n, v in model.state_dict().items()}:
            raise ValueError("they are another model's")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"Expected the weights of this {model_class.__name__} in {checkpoint}, found none that can be loaded "
            f"({reason}). Take another checkpoint of the same run, or start a new run."
        ) from error
    return weights


def steps_per_epoch(args: TrainingArguments, rows: int, batch_size: int) -> int:
    """Return the optimiser steps of one epoch of ``rows`` images, as Trainer and accelerate count them."""
    rounded = math.floor if args.dataloader_drop_last else math.ceil
    batches = rounded(rounded(rows / batch_size) / args.world_size)
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))


def save_final_state(state: LabelState, output_dir: str, run: dict[str, Any]) -> None:
    """Write the statistics of the final model; a full disk costs these only, not the trained model."""
    folder = Path(output_dir) / FINAL_STATE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        state.save(folder, run)
    except (OSError, SafetensorError) as error:
        logger.warning(f"The final label state could not be written to {folder} ({error}); the model is not affected.")


def remove_final_state(output_dir: str) -> None:
    """Remove the statistics of an earlier final model: if this run is broken off, they are not of its model."""
    (Path(output_dir) / FINAL_STATE / FILE_NAME).unlink(missing_ok=True)


def interrupted(output_dir: str, step: int) -> str:
    """Return what to tell a user who stopped the run."""
    kept = [path for path in complete_checkpoints(output_dir) if int(path.name.split("-")[1]) <= step]
    if not kept:
        return "Interrupted. No checkpoint was written yet; the run starts again from the beginning."
    return (
        f"Interrupted after step {step}. Kept: {kept[-1]}. Resume with `trainer.train(resume_from_checkpoint=True)` "
        "and the same settings (recipes: the same command and `--resume`)."
    )


def unsaved(folder: Path, error: Exception) -> OSError:
    """Remove a checkpoint that was broken off while it was written; return an error that says what is kept."""
    shutil.rmtree(folder, ignore_errors=True)
    kept = complete_checkpoints(folder.parent)
    return OSError(
        f"Saving {folder} failed ({error}). "
        + (f"Kept: {kept[-1]}. " if kept else "No earlier checkpoint exists. ")
        + "Free some disk space or choose another `output_dir`, then resume with "
        "`train(resume_from_checkpoint=True)`."
    )
