"""What a comparison would take: runs, steps, disk and hours, before it is begun."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import datasets
from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_balancemix.build import build_model
from hf_balancemix.compare.cells import Cell, cell_id
from hf_balancemix.compare.progress import Speeds, duration, training_steps, work
from hf_balancemix.compare.results import Results
from hf_balancemix.compare.run import forget
from hf_balancemix.recipe.job import Job
from hf_balancemix.recipe.options import Plan
from hf_balancemix.recipe.run import train
from hf_balancemix.reports.tables import text_table
from hf_balancemix.training.arguments import BalanceMixTrainingArguments

# Batches that are timed, on the processor and on a device, where the rest of an epoch would weigh too much; on the
# processor only as many pixels of each, which say as much there.
_BATCHES = (4, 20)
_EPOCHS = 3
_PIXELS = 1_600_000
_GIGABYTE = 1e9
# Weights, and what the optimisers keep of each: SGD its momentum, Adam and its kind two moments.
_COPIES = {"sgd": 2}


class _Clock(TrainerCallback):
    """Notes when each epoch ends: between two of these lie an evaluation, a refresh and the steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def print_estimate(cells: Sequence[Cell], jobs: Mapping[str, Job], results: Results, at_once: int) -> None:
    """Print the runs of a comparison, and the steps, disk and hours that those not yet finished would take.

    Args:
        cells: Of its grid.
        jobs: Their data.
        results: Where finished ones are found; their seconds tell how long others take.
        at_once: How many would run at a time.
    """
    finished = {cell_id(line["settings"]) for line in results.read()}
    speeds = Speeds(results.read_times())
    rows, total_steps, total_seconds, kinds = [], 0, 0.0, dict[tuple[str, str], list[Cell]]()
    for cell in cells:
        kinds.setdefault((cell.plan.settings["method"], work(cell.plan.settings)), []).append(cell)
    bar = tqdm(kinds.items(), desc="timing", leave=False)
    for (method, what), members in bar:
        bar.set_postfix_str(method)
        pending = [cell for cell in members if cell.id not in finished]
        steps = sum(training_steps(cell, jobs[cell.request.data_key]) for cell in pending)
        measured = speeds.measured(members[0])
        source = "finished runs"
        if pending and measured is None:
            measured, source = _time_steps(pending[0], jobs[pending[0].request.data_key]), "a few steps"
        seconds = steps * (measured or 0.0)
        total_steps, total_seconds = total_steps + steps, total_seconds + seconds
        counts = [str(len(members)), str(len(members) - len(pending)), f"{steps:,}", duration(seconds)]
        rows.append([method, *counts, source if pending else "", what])
    left = sum(cell.id not in finished for cell in cells)
    tqdm.write(text_table(["method", "runs", "finished", "steps to go", "time", "measured by", "work"], rows))
    summary = f"{len(cells)} runs, {len(cells) - left} finished; to go: {left} runs, {total_steps:,} optimiser steps, "
    summary += f"about {duration(total_seconds)} one after the other"
    if at_once > 1:
        summary += f", {duration(total_seconds / at_once)} if the {at_once} at a time do not slow one another down"
    tqdm.write(f"\n{summary}.\n{_disk(cells, jobs, at_once)}")


def _disk(cells: Sequence[Cell], jobs: Mapping[str, Job], at_once: int) -> str:
    """Say what models and checkpoints take."""
    largest, models = 0.0, 0.0
    sizes: dict[str, float] = {}
    for cell in cells:
        options, job = cell.request.command.options, jobs[cell.request.data_key]
        key = f"{options}"
        if key not in sizes:
            model, _ = build_model(options.backbone, job.class_names, options.image_size, False, options.head)
            sizes[key] = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / _GIGABYTE
        networks = 2 if cell.plan.settings["method"] == "co_teaching" else 1
        args = cell.plan.args
        kept = (args.save_total_limit or math.inf) + 1  # the new one is written before the old one goes
        copies = _COPIES.get(str(getattr(args.optim, "value", args.optim)), 3)
        largest = max(largest, networks * sizes[key] * (copies * kept + 1))
        models += networks * sizes[key]
    running = "all checkpoints of every run" if math.isinf(largest) else f"about {_size(at_once * largest)}"
    return f"Disk: {running} while it goes on; then the results only, or with --keep_models {_size(models)} of models."


def _size(gigabytes: float) -> str:
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.0f} MB"


def _time_steps(cell: Cell, job: Job) -> float:
    """Return the seconds per step of a cell, with its share of evaluations and refreshes, from short epochs."""
    args, options = cell.plan.args, cell.request.command.options
    train_split, test_split = job.splits["train"], job.splits["test"]
    batch, on_device = args.train_batch_size * args.gradient_accumulation_steps, args.device.type != "cpu"
    if not on_device:
        batch = min(batch, max(2, _PIXELS // (options.image_size or 224) ** 2))
    rows = min(len(train_split), batch * args.world_size * _BATCHES[on_device])
    tests = max(1, min(len(test_split), round(rows * len(test_split) / len(train_split))))
    splits = datasets.DatasetDict(train=train_split.select(range(rows)), test=test_split.select(range(tests)))
    changed = {
        "num_train_epochs": _EPOCHS,
        "max_steps": -1,
        "warmup_epochs": 1,
        "save_strategy": "no",
        "per_device_train_batch_size": min(batch, rows // args.world_size),
        "gradient_accumulation_steps": 1,
        "logging_strategy": "no",
    }
    values = {f.name: getattr(args, f.name) for f in fields(args) if f.init} | changed
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        short = BalanceMixTrainingArguments(**{**values, "output_dir": folder})
        plan = Plan(short, cell.plan.settings)
        train(replace(job, options=replace(options, resume=False), splits=splits), plan, clock)
    forget()
    seconds_per_row = (clock.ends[-1] - clock.ends[-2]) / rows
    return seconds_per_row * len(train_split) * args.num_train_epochs / max(1, training_steps(cell, job))
