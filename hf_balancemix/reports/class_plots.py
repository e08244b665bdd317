"""Figures of classes: prediction confidence against AP (Figures 3 and 5), frequency against AP, counts (Figure 7)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_balancemix.drawing import COLOURS, MARKERS, missing, new_figure, plain_numbers, save, shown, styled
from hf_balancemix.metrics import imbalance_ratios

Groups = Mapping[str, Sequence[int] | npt.NDArray[np.intp]]
# More names than this are not readable below a column's width.
_MOST_NAMES = 24


@styled
def plot_confidence_against_ap(
    class_confidence: npt.ArrayLike,
    ap: npt.ArrayLike,
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    groups: Groups | None = None,
    title: str = "",
) -> float:
    """Draw the confidence P(k) of each class (Eq. 2) against its test AP, by class group (Figures 3 and 5).

    Args:
        class_confidence: (2, K), A(k) in row 0 and P(k) in row 1, as ``LabelState`` has it.
        ap: (K,) average precision in points; NaN for a class without value.
        class_names: K names.
        path: Where the picture goes; the ending decides the format. The numbers go beside it, as ``.csv``.
        groups: Class indices by name of the group; by default all classes are one.
        title: Above the axes.

    Returns:
        Pearson's r of P(k) and AP over all classes that have both; NaN for fewer than three, and for constant values.

    Raises:
        MissingNumbersError: If no class has both.
    """
    (absence, presence), points = np.asarray(class_confidence, dtype=float), np.asarray(ap, dtype=float)
    known = np.isfinite(presence) & np.isfinite(points)
    if not known.any():
        raise missing("a class with both confidence and AP", "none", "Choose a run with evaluated classes")
    group_of = _group_of(groups or {}, len(points))
    whole = _pearson(presence[known], points[known])
    figure = new_figure(2.8)
    axes = figure.subplots()
    own: dict[str, float] = {}
    for i, name in enumerate(dict.fromkeys([*(groups or {}), *group_of])):
        members = known & np.array([group == name for group in group_of])
        if members.any():
            own[name] = _pearson(presence[members], points[members])
            label = f"{shown(name)}, r = {_two_digits(own[name])}" if len(set(group_of)) > 1 else ""
            marks: dict[str, Any] = {
                "color": COLOURS[i % len(COLOURS)],
                "marker": MARKERS[i % len(MARKERS)],
                "alpha": 0.8,
            }
            axes.scatter(presence[members], points[members], s=16, linewidths=0, label=label or None, **marks)
    axes.set(xlabel="prediction confidence P(k)", ylabel="test AP (points)")
    axes.set_title(f"{title}\n" * bool(title) + f"Pearson r = {_two_digits(whole)}, {known.sum()} classes")
    axes.grid(alpha=0.3)
    if len(set(group_of)) > 1:
        figure.legend(loc="outside lower center", ncols=2)
    rows = [
        (class_names[k], group_of[k], presence[k], absence[k], points[k], own.get(group_of[k], math.nan), whole)
        for k in range(len(points))
    ]
    save(figure, path, ("class", "group", "P", "A", "ap", "pearson_r_group", "pearson_r"), rows)
    return whole


@styled
def plot_ap_against_frequency(
    positives: npt.ArrayLike,
    ap_by_method: Mapping[str, npt.ArrayLike],
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    title: str = "",
) -> None:
    """Draw test AP of each class against how many positives it has in training, a mark per method.

    Args:
        positives: (K,) training images of each class.
        ap_by_method: (K,) AP in points of each method; NaN for a class without value.
        class_names: K names.
        path: As for :func:`plot_confidence_against_ap`.
        title: Above the axes.

    Raises:
        MissingNumbersError: If no class has a value.
    """
    counts = np.asarray(positives, dtype=float)
    values = {method: np.asarray(ap, dtype=float) for method, ap in ap_by_method.items()}
    if not any(np.isfinite(ap).any() for ap in values.values()):
        raise missing("a class with an AP", "none", "Choose runs with evaluated classes")
    figure = new_figure(2.8)
    axes = figure.subplots()
    for i, (method, ap) in enumerate(values.items()):
        marks: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "alpha": 0.8}
        axes.scatter(counts, ap, s=16, linewidths=0, label=shown(method), **marks)
    axes.set_xscale("symlog" if counts.min() < 1 else "log")
    plain_numbers(axes.xaxis, counts.min(), counts.max())
    axes.set(xlabel="given positives in training (images)", ylabel="test AP (points)", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2, handletextpad=0.2)
    rows = [(class_names[k], int(n), method, ap[k]) for method, ap in values.items() for k, n in enumerate(counts)]
    save(figure, path, ("class", "positives", "method", "ap"), rows)


@styled
def plot_class_counts(
    positives: npt.ArrayLike,
    num_rows: int,
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    thresholds: tuple[float, float] = (1000, 10000),
    title: str = "",
) -> None:
    """Draw how many positives each class has, from the most frequent on, with the borders of the groups (Figure 7).

    Args:
        positives: (K,) training images of each class.
        num_rows: N, images in training.
        class_names: K names.
        path: As for :func:`plot_confidence_against_ap`.
        thresholds: (t0, t1) in images: few < t0 ≤ medium < t1 ≤ many. Only those within the counts are drawn.
        title: Above the axes.
    """
    counts = np.asarray(positives)
    order = np.argsort(-counts, kind="stable")
    low, high = thresholds
    groups = np.where(counts >= high, "many", np.where(counts >= low, "medium", "few"))
    figure = new_figure(2.6 if len(counts) > _MOST_NAMES else 3.0)
    axes = figure.subplots()
    # Hatches tell the groups apart in grey, too.
    for name, colour, hatch in zip(("many", "medium", "few"), COLOURS, ("", "////", "...."), strict=False):
        members = groups[order] == name
        if members.any():
            places = np.flatnonzero(members)
            axes.bar(places, counts[order][members], color=colour, hatch=hatch, edgecolor="white", linewidth=0.3,
                     width=0.9, label=f"{name}-shot, {members.sum()} classes")  # fmt: skip
    if counts.max() >= 30 * counts.min():  # bars are best compared from 0 on
        axes.set_yscale("log" if counts.min() > 0 else "symlog")
        plain_numbers(axes.yaxis, counts.min(), counts.max())
    for border in thresholds:
        if counts.min() <= border <= counts.max():
            axes.axhline(border, color="black", linewidth=0.8, linestyle="--")
    if len(counts) <= _MOST_NAMES:
        axes.set_xticks(range(len(counts)), [shown(class_names[k], 18) for k in order], rotation=90, fontsize=6.5)
    axes.set(
        xlabel="class" if len(counts) <= _MOST_NAMES else "class, by frequency", ylabel="given positives (images)"
    )
    classes, entries = imbalance_ratios(counts, num_rows)
    ratios = f"imbalance: class {classes:.3g}, positive-negative {entries:.3g}"
    axes.set_title(f"{title}\n" * bool(title) + ratios)
    axes.margins(x=0.01)
    figure.legend(loc="outside lower center", ncols=2)
    save(figure, path, ("class", "positives", "group"), [(class_names[k], int(counts[k]), groups[k]) for k in order])


def _group_of(groups: Groups, num_labels: int) -> list[str]:
    """Return the group of each class; "others" for one that is in none, "all" without groups."""
    found = {int(k): name for name, members in groups.items() for k in members}
    return [found.get(k, "others" if groups else "all") for k in range(num_labels)]


def _pearson(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Return the correlation; two points always lie on a line, so they have none."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def _two_digits(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
