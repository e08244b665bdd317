"""Figures over epochs, from entries of results: mAP, the minority sampler, and what refinement makes of the labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_balancemix.drawing import COLOURS, STYLES, missing, new_figure, plain_numbers, save, shown, styled

_HEADER = ("epoch", "series", "mean", "lowest", "highest", "seeds")


@dataclass(frozen=True)
class _Curve:
    """Rows (epoch, mean, lowest, highest, seeds), and the name of it all."""

    name: str
    rows: list[tuple[float, float, float, float, int]]


@styled
def plot_map_over_epochs(runs: Sequence[dict[str, Any]], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw test mAP over epochs, a line per method: the mean over seeds, and their range as a band.

    Args:
        runs: Entries of ``results.json``.
        path: Where the picture goes; the ending decides the format. The numbers go beside it, as ``.csv``.
        title: Above the axes.

    Raises:
        MissingNumbersError: If no run has an evaluated epoch.
    """
    methods = dict.fromkeys(run["method"] for run in runs)
    curves = [_curve(method, [run for run in runs if run["method"] == method], "map") for method in methods]
    figure = new_figure(2.4 + 0.07 * len(curves))
    axes = figure.subplots()
    _draw(axes, _some_of(curves, "mAP"))
    axes.set(ylabel="test mAP (points)", title=title)
    _finish(figure, axes, path, curves)


@styled
def plot_sampling_over_epochs(runs: Sequence[dict[str, Any]], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw the largest, the mean and the smallest probability of the minority sampler over epochs (Figure 6).

    In multiples of uniform sampling, 1/N, which is also the mean.

    Args:
        runs: Entries of ``results.json`` of one method; the mean over their seeds is drawn.
        path: As for :func:`plot_map_over_epochs`.
        title: Above the axes.

    Raises:
        MissingNumbersError: If no epoch has a minority sampler.
    """
    curves = [_curve("max", runs, "sampling_max"), _curve("min", runs, "sampling_min")]
    _some_of(curves, "sampling_max, of the minority sampler,")
    curves.insert(1, _Curve("mean (uniform)", [(row[0], 1.0, 1.0, 1.0, row[4]) for row in curves[0].rows]))
    figure = new_figure(2.4)
    axes = figure.subplots()
    _draw(axes, curves)
    smallest, largest = (curve.rows for curve in (curves[2], curves[0]))
    if max(row[3] for row in largest) > 10 * min(row[2] for row in smallest) > 0:
        axes.set_yscale("log")
        plain_numbers(axes.yaxis, min(row[2] for row in smallest), max(row[3] for row in largest))
    axes.set(ylabel="sampling probability × N", title=title)
    _finish(figure, axes, path, curves)


@styled
def plot_label_shares(runs: Sequence[dict[str, Any]], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw over epochs which share of the given labels is clean, re-labelled and ambiguous (Eq. 8–9).

    The clean ones have axes of their own: they are nearly all, and the others would lie on the floor.

    Args:
        runs: Entries of ``results.json`` of one method; the mean over their seeds is drawn.
        path: As for :func:`plot_map_over_epochs`.
        title: Above the axes.

    Raises:
        MissingNumbersError: If labels were refined after no epoch.
    """
    curves = [_curve(name, runs, name, scale=100) for name in ("clean", "relabelled", "ambiguous")]
    _some_of(curves, "clean, the share of clean labels,")
    figure = new_figure(3.0)
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 3))
    _draw(above, curves[:1])
    _draw(below, curves[1:], first=1)
    below.set_ylim(bottom=0)
    above.set(title=title, ylabel="labels (%)")
    below.set(ylabel="labels (%)")
    _finish(figure, below, path, curves)


@styled
def plot_label_quality(runs: Sequence[dict[str, Any]], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw over epochs how right refinement is, where the truth is known (Eq. 14–15).

    Precision and recall of the labels taken for clean, and accuracy of the re-labelled ones.

    Args:
        runs: Entries of ``results.json`` of one method; the mean over their seeds is drawn.
        path: As for :func:`plot_map_over_epochs`.
        title: Above the axes.

    Raises:
        MissingNumbersError: If the truth is not known, or labels were refined after no epoch.
    """
    series = {
        "precision of clean": "label_precision",
        "recall of clean": "label_recall",
        "accuracy of re-labelled": "relabel_accuracy",
    }
    curves = [_curve(name, runs, key, scale=100) for name, key in series.items()]
    _some_of(curves, "label_precision, which needs clean labels,")
    figure = new_figure(2.6)
    axes = figure.subplots()
    _draw(axes, curves)
    axes.set(ylabel="labels (%)", title=title)
    _finish(figure, axes, path, curves)


def _curve(name: str, runs: Sequence[Mapping[str, Any]], key: str, scale: float = 1.0) -> _Curve:
    """Return mean and range over the seeds at the epochs where all runs that have the number at all have it."""
    found = [
        {epoch["epoch"]: scale * epoch[key] for epoch in run["epochs"] if {"epoch", key} <= epoch.keys()}
        for run in runs
    ]
    found = [values for values in found if values]
    epochs = sorted(set.intersection(*(set(values) for values in found))) if found else []
    rows = []
    for epoch in epochs:
        values = [curve[epoch] for curve in found]
        rows.append((epoch, float(np.mean(values)), min(values), max(values), len(values)))
    return _Curve(name, rows)


def _some_of(curves: Sequence[_Curve], what: str) -> list[_Curve]:
    """Return the curves that have points; there must be one."""
    kept = [curve for curve in curves if curve.rows]
    if not kept:
        raise missing(f"{what} in the epochs of a run", "none", "Choose runs that have it")
    return kept


def _draw(axes: Axes, curves: Sequence[_Curve], first: int = 0) -> None:
    for i, curve in enumerate(curves, start=first):
        if not curve.rows:
            continue
        epochs, means, lowest, highest, seeds = zip(*curve.rows, strict=True)
        colour = COLOURS[i % len(COLOURS)]
        # A single point would be invisible without a marker.
        marker = "o" if len(epochs) == 1 else ""
        style = STYLES[i % len(STYLES)]
        axes.plot(epochs, means, color=colour, linestyle=style, marker=marker, label=shown(curve.name))
        if max(seeds) > 1:
            axes.fill_between(epochs, lowest, highest, color=colour, alpha=0.2, linewidth=0)
    axes.grid(alpha=0.3)


def _finish(figure: Figure, axes: Axes, path: str | os.PathLike[str], curves: Sequence[_Curve]) -> None:
    """Name the epochs of the lowest axes, put the legend where no data are, write picture and numbers."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    lengths = [len(shown(curve.name)) for curve in curves]
    ncols = 3 if sum(sorted(lengths)[-3:]) < 36 else 2
    figure.legend(loc="outside lower center", ncols=ncols, handlelength=2.2, columnspacing=1.2)
    rows = ((epoch, curve.name, *numbers) for curve in curves for epoch, *numbers in curve.rows)
    save(figure, path, _HEADER, rows)
