"""Running cells: one after the other in this process, and what is left behind."""

from __future__ import annotations

import gc
import json
import logging
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_balancemix.compare.cells import Cell, cell_id
from hf_balancemix.compare.progress import Overview, work
from hf_balancemix.compare.results import Line, Results, result_line
from hf_balancemix.recipe.job import Job, write_json
from hf_balancemix.recipe.run import evaluate, train

_DONE = ".done"
_SECONDS = 0.5


class Report(TrainerCallback):
    """Tells how much of a training is done, twice a second at most: the steps of small runs are quick.

    Args:
        tell: Takes the share that is done.
    """

    def __init__(self, tell: Callable[[float], None]) -> None:
        self.tell = tell
        self._last = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell where it goes on."""
        if state.is_world_process_zero:
            self.tell(state.global_step / state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell it."""
        now = time.monotonic()
        if state.is_world_process_zero and now - self._last > _SECONDS:
            self._last = now
            self.tell(state.global_step / state.max_steps)


def run_cell(cell: Cell, job: Job, progress: TrainerCallback) -> tuple[Line, Line]:
    """Train a cell, or go on with it, and evaluate it.

    Returns:
        Its line of the results, and what it took.
    """
    plan = cell.plan
    _accept_settings(plan.folder, plan.settings)
    trainer, training = train(replace(job, options=cell.request.command.options), plan, progress)
    record = evaluate(job, trainer).record()
    device = trainer.args.device
    times = {
        "cell": cell.id,
        **{name: plan.settings[name] for name in ("method", "noise", "noise_rate", "seed")},
        "work": work(plan.settings),
        "steps": trainer.state.max_steps,
        "seconds": training["seconds"],
        "resumed": training["resumed"],
        "processes": trainer.args.world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return result_line(plan.settings, record, training), times


def _accept_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Bring the note of a broken-off run up to date where only what does not count is written otherwise."""
    path, state = folder / "settings.json", PartialState()
    with state.main_process_first():
        if state.is_main_process and path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if cell_id(before) == cell_id(settings):
                write_json(path, settings)


def forget() -> None:
    """Let go of the last cell, its model and its precision, before the next one is built."""
    gc.collect()
    AcceleratorState._reset_state()  # else accelerate refuses a trainer with another precision (1.15)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def clear(cell: Cell, keep_models: bool) -> None:
    """Remove what a finished cell has left on the disk: its checkpoints and, unless it is to be kept, its model."""
    folder = cell.plan.folder
    if keep_models:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)
    elif folder.is_dir():
        # Under another name first: what a kill leaves half removed must not be gone on with.
        doomed = folder.with_name(folder.name + _DONE)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def clear_remains(output_dir: Path, finished: Sequence[Cell], keep_models: bool) -> None:
    """Remove what finished cells should not have left: an earlier process was killed before it had done so."""
    for doomed in (output_dir / "cells").glob(f"*{_DONE}"):
        shutil.rmtree(doomed, ignore_errors=True)
    for cell in finished:
        if any(cell.plan.folder.glob("checkpoint-*")):  # where a model was kept on purpose there are none
            clear(cell, keep_models)


def log_file(output_dir: Path, cell: Cell) -> Path:
    """Return where a cell's messages go, or its traceback if it fails."""
    path = output_dir / "logs" / f"{cell.plan.folder.name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def run_here(
    cells: Sequence[Cell], jobs: Mapping[str, Job], results: Results, overview: Overview, keep_models: bool
) -> dict[str, str]:
    """Run cells one after the other; a failing one does not keep the others from running.

    Returns:
        What went wrong, by the cell's id.
    """
    state, failed = PartialState(), dict[str, str]()
    # How a script goes on after Ctrl-C is of no use here, where the same command does it.
    logging.getLogger("hf_balancemix.training.resumable").addFilter(
        lambda record: not record.getMessage().startswith("Interrupted")
    )
    for cell in cells:
        overview.begin(cell)
        try:
            result, times = run_cell(cell, jobs[cell.request.data_key], Report(overview.teller(cell)))
        except Exception as error:
            if state.num_processes > 1:  # the others may be waiting for this one
                raise
            failed[cell.id] = first_line(error)
            path = log_file(results.path.parent, cell)
            path.write_text(traceback.format_exc(), encoding="utf-8")
            tqdm.write(f"{cell.label}: failed, {failed[cell.id]}", file=sys.stderr)
            overview.end(cell, None)
        else:
            if state.is_main_process:
                results.add(result, times)
                clear(cell, keep_models)
            overview.end(cell, times)
        forget()
    return failed


def first_line(error: BaseException) -> str:
    """Return kind and message of an error in one line."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
