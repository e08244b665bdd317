"""What a run shows while it goes on."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_balancemix.recipe.job import write_json
from hf_balancemix.training.refresh import PredictedMemory

# A bar that is written to a file gets a line each time.
_SECONDS = 0.5 if sys.stderr.isatty() else 30.0
_LINES_PER_RUN = 10
_NAMES = {"map": "mAP", "ema_map": "EMA mAP"}


# What a refresh logs, in the order of a line.
_REFRESH = {
    "clean": "{:.1%} clean",
    "relabelled": "{:.1%} relabelled",
    "ambiguous": "{:.1%} ambiguous",
    "relabel_flips": "{:.2%} flipped",
    "mean_posterior": "mean posterior {:.3f}",
    "effective_sample_share": "effective sample {:.1%}",
}


def refresh_text(logs: Mapping[str, float]) -> str:
    """Return a line on a refresh of BalanceMix from what the trainer logged; nothing for another log.

    It has the shares of clean, relabelled and ambiguous labels and of those that changed since the refresh before
    (flipped), the mean posterior, the effective sample size of the minority sampler as a share of the images, and the
    seconds that it took; of these what is known.
    """
    found = [form.format(logs[name]) for name, form in _REFRESH.items() if name in logs]
    return ", ".join([*found, f"refresh {logs['refresh_seconds']:.1f} s"]) if found else ""


def memory_text(num_rows: int, num_labels: int, predicted: PredictedMemory) -> str:
    """Return a line on the memory that the statistics of a data set take, and what a refresh of them adds."""
    held, refresh, shared = (value / 1e6 for value in predicted)
    once = f"; once on each machine, {shared:,.1f} MB in temporary files" if shared else ""
    return (
        f"statistics of {num_rows:,} images x {num_labels:,} classes take {held:,.1f} MB of memory, and about "
        f"{refresh:,.1f} MB more during a refresh{once}"
    )


class Progress(TrainerCallback):
    """A bar of optimiser steps with the last test mAP, one per evaluation, and a line about every tenth of the run.

    Where labels are refined or a minority is sampled, each refresh adds a line (:func:`refresh_text`).

    Args:
        label: In front of the bars.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Any = None
        self.evaluation: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar of steps; a resumed run begins where it goes on."""
        disable = not state.is_world_process_zero
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.label,
            unit="step",
            disable=disable,
            mininterval=_SECONDS,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move on."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Move the bar of the evaluation on."""
        if not state.is_world_process_zero:
            return
        if self.evaluation is not None and self.evaluation.n >= self.evaluation.total:
            self._close_evaluation()  # the averaged weights have a turn of their own
        if self.evaluation is None:
            # Shown only where it takes long.
            self.evaluation = tqdm(
                total=len(eval_dataloader), desc="evaluation", unit="batch", leave=False, delay=2, mininterval=_SECONDS
            )
        self.evaluation.update()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the last mAP, and write a line about ten times per run."""
        self._close_evaluation()
        metrics = kwargs["metrics"]
        if self.bar is None or "eval_map" not in metrics:
            return
        groups = [name for name in ("many", "medium", "few") if f"eval_{name}" in metrics]
        shown = ["map", "ema_map", *(groups if len(groups) > 1 else [])]  # a single group says the same again
        found = [(_NAMES.get(name, name), metrics[f"eval_{name}"]) for name in shown if f"eval_{name}" in metrics]
        text = ", ".join(f"{name} {value:.1f}" for name, value in found)
        self.bar.set_postfix_str(text, refresh=False)
        epoch, every = round(state.epoch or 0), math.ceil(state.num_train_epochs / _LINES_PER_RUN)
        if state.is_world_process_zero and epoch % every == 0:
            tqdm.write(f"{self.label}: epoch {epoch}, {text}", file=sys.stderr)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a line for each refresh."""
        if state.is_world_process_zero and (text := refresh_text(logs or {})):
            tqdm.write(f"{self.label}: epoch {round(state.epoch or 0)}, {text}", file=sys.stderr)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Close the bar of the prediction."""
        self._close_evaluation()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _close_evaluation(self) -> None:
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None


class Stopwatch(TrainerCallback):
    """Counts the seconds of a training over all its resumes; what a killed process did behind its save is lost.

    Args:
        folder: Of the run. The count at each checkpoint is kept there, in ``seconds.json``.

    Attributes:
        seconds: From the beginning to the last event.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "seconds.json"
        self.seconds = 0.0
        self._start = 0.0
        self._at_step: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start, at the count of the checkpoint that a resumed run goes on from."""
        noted = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        # A process that was killed right behind a save may not have noted it.
        self._at_step = {step: seconds for step, seconds in noted.items() if int(step) <= state.global_step}
        self._start = time.perf_counter() - max(self._at_step.values(), default=0.0)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the count."""
        self.seconds = time.perf_counter() - self._start
        self._at_step[str(state.global_step)] = round(self.seconds, 3)
        if state.is_world_process_zero:
            write_json(self.path, self._at_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self._start
