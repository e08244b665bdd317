"""Ranks of the methods over five perspectives, the paper's Figure 4."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from hf_balancemix.drawing import COLOURS, MARKERS, STYLES, missing, new_figure, save, shown, styled
from hf_balancemix.reports.comparison import mean_ranks

_KINDS = {"none": "clean", "mislabel": "mislabel", "flip": "flip", "single_positive": "single positive"}
_IMBALANCE = "imbalance"
# The group that shows how a method fares with rare classes: the first of these that the runs have.
_RAREST = ("few", "rare")


@styled
def plot_ranks(runs: Sequence[dict[str, Any]], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw the rank of each method from five perspectives (Figure 4); 1 is the best.

    Clean labels, mislabelling, flipping and single positives rank by test mAP; imbalance by that of the rarest group
    of classes. A rank is the mean over the noises of a perspective that all methods have; perspectives without any are
    left out.

    Args:
        runs: Entries of ``results.json`` of two or more methods; the mean over seeds ranks.
        path: Where the picture goes; the ending decides the format. The numbers go beside it, as ``.csv``.
        title: Above the axes.

    Raises:
        MissingNumbersError: If there are fewer than two methods, or no noise that all have.
    """
    methods = list(dict.fromkeys(run["method"] for run in runs))
    if len(methods) < 2:
        raise missing("two methods or more to rank", f"{len(methods)}", "Train another one on the same data")
    ranks = _perspectives(runs, methods)
    if not ranks:
        raise missing(
            f"results of {', '.join(methods)} under one noise", "none that all have", "Train the missing ones"
        )
    figure = new_figure(2.2 + 0.12 * len(methods))
    axes = figure.subplots()
    places = range(len(ranks))
    for i, method in enumerate(methods):
        # Marks of equal ranks would cover each other: the later ones are smaller.
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)]}
        size = 9.0 - 5.0 * i / len(methods)
        axes.plot(places, [ranks[name][i] for name in ranks], marker=MARKERS[i % len(MARKERS)], markersize=size,
                  label=shown(method), **look)  # fmt: skip
    axes.set_xticks(places, [name.replace(" ", "\n") for name in ranks])
    axes.set(ylabel="mean rank (1 is best)", ylim=(len(methods) + 0.3, 0.7), title=title)
    axes.margins(x=0.1)
    axes.yaxis.set_major_locator(MaxNLocator(min(10, len(methods)), integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2 if max(map(len, methods)) > 12 else 3, columnspacing=1.2)
    rows = [(method, name, ranks[name][i]) for name in ranks for i, method in enumerate(methods)]
    save(figure, path, ("method", "perspective", "rank"), rows)


def _perspectives(runs: Sequence[dict[str, Any]], methods: Sequence[str]) -> dict[str, list[float]]:
    """Return the rank of each method, by perspective."""
    noises = list(dict.fromkeys((run["noise"], run["noise_rate"]) for run in runs))
    found = {}
    for kind, name in _KINDS.items():
        own = [noise for noise in noises if noise[0] == kind]
        found[name] = mean_ranks([[_mean(runs, method, noise, None) for noise in own] for method in methods])
    groups = {name for run in runs for name in run["groups"]}
    rarest = next((name for name in _RAREST if name in groups), None)
    if rarest is not None:
        scores = [[_mean(runs, method, noise, rarest) for noise in noises] for method in methods]
        found[_IMBALANCE] = mean_ranks(scores)
    return {name: [float(rank) for rank in ranks if rank is not None] for name, ranks in found.items() if ranks[0]}


def _mean(runs: Sequence[dict[str, Any]], method: str, noise: tuple[str, Any], group: str | None) -> float | None:
    """Return mAP over the seeds, of all classes or of a group."""
    own = [run for run in runs if run["method"] == method and (run["noise"], run["noise_rate"]) == noise]
    values = [run["map"] if group is None else run["groups"].get(group) for run in own]
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 6) if known else None
