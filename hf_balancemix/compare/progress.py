"""How far a comparison is: a bar over its cells with the time left, and how long cells take."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from hf_balancemix.compare.cells import Cell
from hf_balancemix.compare.results import Line
from hf_balancemix.recipe.job import Job
from hf_balancemix.training.checkpoints import steps_per_epoch

# A bar that is written to a file gets a line each time.
_SECONDS = 1.0 if sys.stderr.isatty() else 60.0
_ENOUGH = 0.02  # of a run, to tell how long all of it takes


def work(settings: Mapping[str, Any]) -> str:
    """Return what decides, beside the method, how long a step takes."""
    shown = [str(settings[name]) for name in ("backbone", "head") if name in settings]
    shown += [f"{settings['image_size']} px", f"{settings['images_per_step']} images a step", settings["augmentation"]]
    shown += [name for name in ("bf16", "fp16") if str(settings.get(name)) == "True"]
    return ", ".join([str(settings["data"].get("recipe")), *shown])


def training_steps(cell: Cell, job: Job) -> int:
    """Return the optimiser steps of a cell."""
    args, rows = cell.plan.args, len(job.splits["train"])
    if args.max_steps > 0:
        return args.max_steps
    if cell.plan.settings["method"] == "t_estimator":
        rows -= max(1, round(args.validation_fraction * rows))
    return math.ceil(args.num_train_epochs * steps_per_epoch(args, rows, args.train_batch_size))


class Speeds:
    """Seconds per optimiser step, evaluation and refreshes included, by method and work.

    Args:
        times: Lines of ``times.jsonl``.
    """

    def __init__(self, times: Iterable[Line]) -> None:
        self._seconds: dict[tuple[str, str], list[float]] = {}
        for line in times:
            self.add(line)

    def add(self, line: Line) -> None:
        """Count a finished run."""
        if line.get("steps"):
            self._seconds.setdefault((line["method"], line["work"]), []).append(line["seconds"] / line["steps"])

    def measured(self, cell: Cell) -> float | None:
        """Return what a step of such a cell took, if there was one."""
        known = self._seconds.get((cell.plan.settings["method"], work(cell.plan.settings)))
        return statistics.median(known) if known else None

    def likely(self, cell: Cell) -> float | None:
        """Return the same, or the mean of the other methods, if there is any."""
        own = self.measured(cell)
        others = [
            statistics.median(known) for (_, what), known in self._seconds.items() if what == work(cell.plan.settings)
        ]
        return own if own is not None else statistics.mean(others) if others else None


@dataclass
class _Running:
    """A cell that is running: since when, which share of it is done, and which was done before it was resumed."""

    cell: Cell
    began: float
    share: float = 0.0
    before: float | None = None


class Overview:
    """A bar over the cells, with what is running and the time left; used from one thread.

    Args:
        cells: To be run.
        steps: Optimiser steps of each, by id.
        speeds: What is known of their speed.
        finished: How many were finished before.
        at_once: How many run at a time.
        shown: Whether this process shows anything.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        steps: Mapping[str, int],
        speeds: Speeds,
        finished: int = 0,
        at_once: int = 1,
        shown: bool = True,
    ) -> None:
        self.waiting = {cell.id: cell for cell in cells}
        self.running: dict[str, _Running] = {}
        self.steps, self.speeds, self.at_once = steps, speeds, at_once
        self.bar = tqdm(
            total=len(cells) + finished,
            initial=finished,
            disable=not shown,
            mininterval=_SECONDS,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar:20}| {n:.1f} of {total} runs, {elapsed}{postfix}",
        )
        self._ended = float(finished)

    def begin(self, cell: Cell) -> None:
        """Note that a cell begins."""
        del self.waiting[cell.id]
        self.running[cell.id] = _Running(cell, time.monotonic())
        self._show(force=True)

    def teller(self, cell: Cell) -> Callable[[float], None]:
        """Return what takes the share of the cell that is done."""
        return lambda share: self.tell(cell, share)

    def tell(self, cell: Cell, share: float) -> None:
        """Note how much of a cell is done; for the first time when its training begins."""
        running = self.running[cell.id]
        if running.before is None:  # the training begins, perhaps in the middle
            running.before, running.began = share, time.monotonic()
        running.share = share
        self._show()

    def end(self, cell: Cell, times: Line | None) -> None:
        """Note that a cell has ended; without times it has failed."""
        del self.running[cell.id]
        if times is not None:
            self.speeds.add(times)
        self._ended += 1
        self._show(force=True)

    def seconds_left(self) -> float | None:
        """Return the time left, as far as it can be told."""
        parts = [(running.cell, 1 - running.share) for running in self.running.values()]
        parts += [(cell, 1.0) for cell in self.waiting.values()]
        left = 0.0
        for cell, part in parts:
            per_step = self.speeds.likely(cell) or self._of_running(cell)
            if per_step is None:
                return None
            left += part * per_step * self.steps[cell.id]
        return left / max(1, min(self.at_once, len(parts)))

    def close(self) -> None:
        """End the bar."""
        self.bar.close()

    def _of_running(self, cell: Cell) -> float | None:
        """Return the seconds per step of what is running: of the same method, or else of any."""
        found = {
            other.cell.plan.settings["method"]: (time.monotonic() - other.began) / (done * self.steps[other.cell.id])
            for other in self.running.values()
            if (done := other.share - (other.before or 0.0)) > _ENOUGH
        }
        return found.get(cell.plan.settings["method"], next(iter(found.values()), None))

    def _show(self, force: bool = False) -> None:
        if self.bar.disable:
            return
        self.bar.n = self._ended + sum(running.share for running in self.running.values())
        if force or time.time() - self.bar.last_print_t >= self.bar.mininterval:
            left = self.seconds_left()
            now = "; ".join(f"{running.cell.label} ({running.share:.0%})" for running in self.running.values())
            text = "time left unknown yet" if left is None else f"about {duration(left)} left"
            self.bar.set_postfix_str(f"{text}; {now}" if now else text, refresh=True)
            self.bar.last_print_t = time.time()


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
