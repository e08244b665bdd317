"""The figures on the page of the doctor."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_balancemix.drawing import COLOURS
from hf_balancemix.reports.doctor_checkup import Checkup
from hf_balancemix.reports.doctor_images import as_address

_MARKERS = ("o", "^")
# More cells than that cannot be told apart at a column's width.
_HEAT_CLASSES = 40


def draw_figures(checkup: Checkup) -> list[tuple[str, str]]:
    """Return (caption, ``data:`` address) of each figure. They show ranks, not names, which may be in any script."""
    drawn = [
        ("Positives of each class, the most frequent in training first.", _class_figure(checkup)),
        ("Positives per image.", _image_figure(checkup)),
        ("Width and height of the images that were read; larger marks stand for more images.", _size_figure(checkup)),
    ]
    if len(checkup.shared) > 1:
        text = "Share of a class's training images (row) that also have another class (column), most frequent first."
        drawn.append((text, _heat_figure(checkup)))
    pictures = []
    for caption, figure in drawn:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        pictures.append((caption, as_address(buffer.getvalue())))
    return pictures


def _axes(width: float = 5, height: float = 3.2) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _legend(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4, frameon=False, markerscale=1)


def _class_figure(checkup: Checkup) -> Figure:
    figure, axes = _axes()
    order = np.argsort(-np.array(checkup.labels["train"].positives), kind="stable")
    ranks = np.arange(1, len(order) + 1)
    for i, (name, split) in enumerate(checkup.labels.items()):
        counts = np.array(split.positives)[order]
        axes.plot(ranks, counts, _MARKERS[i], markersize=4, color=COLOURS[i], label=name)
    most = max(max(split.positives) for split in checkup.labels.values())
    if not checkup.settings.own_groups:
        own = checkup.settings
        borders = (("many-shot from", own.many_shot_from, "--"), ("medium-shot from", own.medium_shot_from, ":"))
        for text, border, style in borders:
            if border <= most:
                axes.axhline(border, color="black", linestyle=style, linewidth=1, label=f"{text} {border:,}")
    axes.set_yscale("symlog", linthresh=1)  # logarithmic, and shows zero
    axes.set_ylim(-0.3, most * 2)
    axes.set(xlabel="rank of the class", ylabel="positives (images)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


def _image_figure(checkup: Checkup) -> Figure:
    figure, axes = _axes()
    for i, (name, split) in enumerate(checkup.labels.items()):
        shares = 100 * np.array(split.per_image) / split.num_images
        places = np.arange(len(shares)) + (i - 0.5) * 0.4
        axes.bar(places, shares, width=0.4, color=COLOURS[i], hatch=("", "//")[i], edgecolor="white", label=name)
    axes.set(xlabel="positives of an image", ylabel="images of the split (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


def _size_figure(checkup: Checkup) -> Figure:
    figure, axes = _axes()
    for i, (name, found) in enumerate(checkup.images.items()):
        sizes: Counter[tuple[int, int]] = found.sizes
        if sizes:
            points, counts = np.array(list(sizes)), np.array(list(sizes.values()))
            area = 20 + 180 * counts / counts.max()
            axes.scatter(*points.T, s=area, marker=_MARKERS[i], facecolors="none", edgecolors=COLOURS[i], label=name)
    axes.set(xlabel="width (pixels)", ylabel="height (pixels)")
    axes.margins(0.1)
    _legend(axes)
    return figure


def _heat_figure(checkup: Checkup) -> Figure:
    figure, axes = _axes(5, 4)
    shared = checkup.shared[:_HEAT_CLASSES, :_HEAT_CLASSES].astype(float)
    shares = 100 * shared / np.maximum(np.diag(shared), 1)[:, None]
    np.fill_diagonal(shares, np.nan)
    edges = (0.5, len(shares) + 0.5)
    drawn = axes.imshow(shares, cmap="cividis", vmin=0, extent=(*edges, *edges[::-1]), interpolation="nearest")
    figure.colorbar(drawn, ax=axes, label="images that also have the column's class (%)")
    axes.set(xlabel="rank of the class", ylabel="rank of the class")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return figure
