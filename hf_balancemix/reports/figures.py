"""All figures for which a group of runs has the numbers, and what is missing for the others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm.auto import tqdm

from hf_balancemix.drawing import MissingNumbersError
from hf_balancemix.label_state import LabelState
from hf_balancemix.metrics import class_groups
from hf_balancemix.reports.class_plots import (
    plot_ap_against_frequency,
    plot_class_counts,
    plot_confidence_against_ap,
)
from hf_balancemix.reports.label_plots import plot_loss_histograms, plot_relabelled
from hf_balancemix.reports.plots import (
    plot_label_quality,
    plot_label_shares,
    plot_map_over_epochs,
    plot_sampling_over_epochs,
)

# Options of a run that `label_posteriors` takes, under its names for them.
_MIXTURE = {
    "min_fit": "min_fit",
    "monotone": "monotone_posterior",
    "trust_positives": "trust_positives",
    "separation": "mixture_separation",
    "disagreement": "mixture_disagreement",
}
_OVER_EPOCHS = {
    "sampling": plot_sampling_over_epochs,
    "label_shares": plot_label_shares,
    "label_quality": plot_label_quality,
}


@dataclass(frozen=True)
class RunNumbers:
    """What is known of a run.

    Attributes:
        entry: Of ``results.json``.
        state: Its final label state, if it has one.
        no_state: Why it has none.
        images: Returns the image of a row of its training set, where that is at hand.
        no_images: Why it is not.
        clean_labels: (N, K) truth, where it is known.
        groups: Class names by name of the group, or None for many-, medium- and few-shot classes.
    """

    entry: dict[str, Any]
    state: LabelState | None = None
    no_state: str = ""
    images: Callable[[int], Image.Image] | None = None
    no_images: str = ""
    clean_labels: npt.NDArray[Any] | None = None
    groups: Mapping[str, Sequence[str]] | None = None


def write_figures(runs: Sequence[RunNumbers], folder: Path, title: str = "") -> tuple[list[Path], dict[str, str]]:
    """Write every figure that the runs have the numbers for, as PNG with a CSV beside it.

    Args:
        runs: On the same data under the same noise, of any methods and seeds; variants have names of their own
            (:func:`named_apart`).
        folder: Where they go; files of the same name are replaced.
        title: Above the figures of several methods.

    Returns:
        The pictures, and for each figure that is missing the reason.
    """
    written: list[Path] = []
    absent: dict[str, str] = {}
    jobs = list(_figures(runs, title))
    for name, draw in tqdm(jobs, desc="figures", unit="figure", delay=2, leave=False):
        path = folder / f"{name}.png"
        try:
            draw(path)
            written.append(path)
        except MissingNumbersError as error:
            absent[name] = str(error)
    return written, absent


def _figures(runs: Sequence[RunNumbers], title: str) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Yield the name of each figure and what draws it."""
    entries = [run.entry for run in runs]
    yield "map_over_epochs", lambda path: plot_map_over_epochs(entries, path, title)
    counted = next((run for run in runs if run.state is not None), runs[0])
    yield "class_counts", lambda path: _counts(counted, path, title)
    yield "ap_against_frequency", lambda path: _frequency(runs, counted, path, title)
    for method in dict.fromkeys(entry["method"] for entry in entries):
        own = [entry for entry in entries if entry["method"] == method]
        heading = f"{method}, {title}"
        for name, plot in _OVER_EPOCHS.items():
            yield f"{name}-{method}", lambda path, plot=plot, own=own, h=heading: plot(own, path, h)  # type: ignore[misc]
    for run in runs:
        label = f"{run.entry['method']}-seed{run.entry['seed']}"
        for name, of_run in _OF_RUN.items():
            yield f"{name}-{label}", lambda path, of_run=of_run, r=run: of_run(r, path, _heading(r, title))  # type: ignore[misc]


def _heading(run: RunNumbers, title: str) -> str:
    return f"{run.entry['method']}, seed {run.entry['seed']}, {title}"


def named_apart(runs: Sequence[RunNumbers], settings_of: Callable[[dict[str, Any]], Any]) -> list[RunNumbers]:
    """Number the variants of a method: runs whose settings differ in more than the seed are not seeds of one.

    Args:
        runs: Of any methods.
        settings_of: Returns what of a run's settings counts, with the seed.

    Returns:
        The runs; of a method with variants the one with the shortest settings keeps its name.
    """
    keys = []
    for run in runs:
        counted = {name: value for name, value in settings_of(run.entry["settings"]).items() if name != "seed"}
        keys.append(json.dumps(counted, sort_keys=True, default=str))
    out = []
    for run, key in zip(runs, keys, strict=True):
        method = run.entry["method"]
        own = dict.fromkeys(k for k, other in zip(keys, runs, strict=True) if other.entry["method"] == method)
        number = sorted(own, key=len).index(key) + 1
        entry = {**run.entry, "method": method if number == 1 else f"{method}-{number}"}
        out.append(RunNumbers(**{**vars(run), "entry": entry}))
    return out


def _state(run: RunNumbers) -> LabelState:
    if run.state is None:
        raise MissingNumbersError(run.no_state)
    return run.state


def _counts_of(state: LabelState) -> npt.NDArray[np.int64]:
    return state.labels.sum(dim=0, dtype=None).numpy().astype(np.int64)


def _thresholds(run: RunNumbers) -> tuple[float, float]:
    settings = run.entry["settings"]
    return float(settings.get("medium_shot_from", 1000)), float(settings.get("many_shot_from", 10000))


def _ap(run: RunNumbers, class_names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return (K,) AP in points, NaN where there is none."""
    known = run.entry.get("per_class_ap", {})
    return np.array([math.nan if known.get(name) is None else known[name] for name in class_names])


def _counts(run: RunNumbers, path: Path, title: str) -> None:
    state = _state(run)
    plot_class_counts(_counts_of(state), len(state), state.class_names, path, _thresholds(run), title)


def _frequency(runs: Sequence[RunNumbers], counted: RunNumbers, path: Path, title: str) -> None:
    """Mean AP over the seeds of each method; counts are those of one run's given labels."""
    state = _state(counted)
    methods = dict.fromkeys(run.entry["method"] for run in runs)
    ap = {
        method: np.mean([_ap(run, state.class_names) for run in runs if run.entry["method"] == method], axis=0)
        for method in methods
    }
    plot_ap_against_frequency(_counts_of(state), ap, state.class_names, path, title)


def _confidence(run: RunNumbers, path: Path, title: str) -> None:
    state = _state(run)
    if state.class_confidence is None:
        raise MissingNumbersError(
            "Expected class confidences in the label state, found none. Choose a BalanceMix run."
        )
    groups: Mapping[str, Any]
    if run.groups is not None:
        groups = {name: [state.class_names.index(c) for c in own] for name, own in run.groups.items()}
    else:
        groups = class_groups(_counts_of(state), _thresholds(run))
    names = state.class_names
    plot_confidence_against_ap(state.class_confidence.numpy(), _ap(run, names), names, path, groups, title)


def _refined_state(run: RunNumbers) -> LabelState:
    state = _state(run)
    if state.mixtures is not None:
        raise MissingNumbersError(
            "Expected a label state with posteriors, found that of a run with relabel_views='stream', which keeps "
            "none. Train with 'reuse' or 'epoch'."
        )
    return state


def _histograms(run: RunNumbers, path: Path, title: str) -> None:
    settings = run.entry["settings"]
    mixture = {name: settings[key] for name, key in _MIXTURE.items() if key in settings}
    plot_loss_histograms(_refined_state(run), path, title=title, **mixture)


def _relabelled(run: RunNumbers, path: Path, title: str) -> None:
    state = _refined_state(run)
    if run.images is None:
        raise MissingNumbersError(run.no_images)
    threshold = float(run.entry["settings"].get("relabel_threshold", 0.975))
    plot_relabelled(state, run.images, path, threshold, run.clean_labels, title=title)


_OF_RUN: dict[str, Callable[[RunNumbers, Path, str], None]] = {
    "confidence_against_ap": _confidence,
    "loss_histograms": _histograms,
    "relabelled": _relabelled,
}
