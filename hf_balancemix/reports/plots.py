"""Figures of results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, which people with colour-blindness tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
STYLES = ("-", "--", "-.", ":")


def plot_map_over_epochs(runs: Sequence[dict[str, Any]], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw test mAP over epochs, a line per method: the mean over seeds, and their range as a band.

    Args:
        runs: Entries of ``results.json``.
        path: Where the picture goes; the ending decides the format.
        title: Above the axes.
    """
    figure = Figure(figsize=(5, 3.4), layout="constrained")  # not pyplot: no display is needed or changed
    axes = figure.subplots()
    for i, method in enumerate(dict.fromkeys(run["method"] for run in runs)):
        curves = [run["epochs"] for run in runs if run["method"] == method]
        length = min(len(curve) for curve in curves)
        epochs = [point["epoch"] for point in curves[0][:length]]
        values = np.array([[point["map"] for point in curve[:length]] for curve in curves])
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(epochs, values.mean(axis=0), color=colour, linestyle=STYLES[i % len(STYLES)], label=method)
        if len(curves) > 1:
            axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="epoch", ylabel="test mAP (points)", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
