"""What the doctor found, as one HTML page that needs no other file, and as JSON."""

from __future__ import annotations

import errno
import io
import json
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_balancemix.drawing import COLOURS
from hf_balancemix.messages import mistake
from hf_balancemix.metrics import class_groups
from hf_balancemix.reports.doctor import Settings, SplitLabels, Together
from hf_balancemix.reports.doctor_images import Duplicate, Example, SplitImages, as_address

PAGE, NUMBERS = "doctor.html", "doctor.json"
_MARKERS = ("o", "^")
# More cells than that cannot be told apart at a column's width.
_HEAT_CLASSES = 40
_SHOWN = 100


@dataclass(frozen=True)
class Estimate:
    """What training would take.

    Attributes:
        steps_per_epoch: ⌊N / batch⌋ optimiser steps.
        reads_per_epoch: Images read in an epoch of BalanceMix: two a pair, and all once for the refresh.
        reading_seconds: That one process needs for these, as measured.
        state_bytes: Of the label state in memory.
        cache_bytes: Of all decoded training images in memory (``--cache_images``).
    """

    steps_per_epoch: int
    reads_per_epoch: int
    reading_seconds: float
    state_bytes: int
    cache_bytes: int


@dataclass(frozen=True)
class Checkup:
    """All that the doctor found.

    Attributes:
        source: What was looked at, for people.
        backbone: The untrained model's.
        class_names: K names.
        labels: Of each split, "train" first.
        images: Of each split.
        together: Pairs of classes in training.
        shared: (C, C) training images that two classes share, most frequent class first.
        duplicates: Images with the same pixels, among those that were read.
        examples: Training images as the model sees them.
        input_shape: Of a batch, (B, 3, H, W).
        input_range: Smallest and largest number that the model is given.
        loss: Of the untrained model.
        chance_loss: Of a model that gives every class one half.
        pull: Of ``minority_pull``.
        estimate: Of time and memory.
        settings: What the recipe would train with.
        advice: Sentences.
    """

    source: str
    backbone: str
    class_names: tuple[str, ...]
    labels: dict[str, SplitLabels]
    images: dict[str, SplitImages]
    together: Together
    shared: npt.NDArray[np.int64]
    duplicates: list[Duplicate]
    examples: list[Example]
    input_shape: tuple[int, ...]
    input_range: tuple[float, float]
    loss: float
    chance_loss: float
    pull: dict[str, float]
    estimate: Estimate
    settings: Settings
    advice: list[str]

    def numbers(self) -> dict[str, Any]:
        """Return everything but the pictures, JSON-able; what is infinite or undefined is None."""
        images = {}
        for name, found in self.images.items():
            sizes = [{"width": w, "height": h, "images": n} for (w, h), n in found.sizes.most_common()]
            images[name] = {
                "num_images": found.num_images,
                "sampled": len(found.sampled),
                "read": found.num_read,
                "missing": found.missing,
                "unreadable": found.unreadable,
                "sizes": sizes,
                "modes": dict(found.modes),
                "images_per_second": found.images_per_second,
            }
        return _finite(
            {
                "source": self.source,
                "backbone": self.backbone,
                "class_names": list(self.class_names),
                "labels": {
                    name: asdict(split)
                    | {"chance_map": split.chance_map(), "class_frequency_loss": split.frequency_loss()}
                    for name, split in self.labels.items()
                },
                "images": images,
                "co_occurrence": asdict(self.together),
                "duplicates": [asdict(one) for one in self.duplicates],
                "input": {"shape": list(self.input_shape), "range": list(self.input_range)},
                "untrained_loss": self.loss,
                "chance_loss": self.chance_loss,
                "minority_pull": self.pull,
                "estimate": asdict(self.estimate),
                "settings": asdict(self.settings),
                "advice": self.advice,
            }
        )


def check_folder(out: Path) -> None:
    """Make the folder of the results, before anything else is done.

    Raises:
        ValueError: If it cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only")
    except OSError as error:
        found = f"{str(out)!r} ({error.strerror})"
        raise mistake("a folder that can be written to as --out", found, "Choose another one") from error


def write_doctor(checkup: Checkup, out: Path) -> None:
    """Write ``doctor.html`` and ``doctor.json`` into an existing folder."""
    numbers = json.dumps(checkup.numbers(), indent=1, ensure_ascii=False, allow_nan=False)
    (out / NUMBERS).write_text(_encodable(numbers), encoding="utf-8")
    (out / PAGE).write_text(_encodable(render_page(checkup)), encoding="utf-8")


def render_page(checkup: Checkup) -> str:
    """Return the page; every name in it is escaped."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = (files("hf_balancemix.reports") / "doctor.html.j2").read_text(encoding="utf-8")
    own = checkup.settings
    group = {}
    if not own.own_groups:
        found = class_groups(checkup.labels["train"].positives, (own.medium_shot_from, own.many_shot_from))
        group = {int(k): name for name, members in found.items() for k in members}
    order = np.argsort(-np.array(checkup.labels["train"].positives), kind="stable").tolist()
    return environment.from_string(template).render(
        c=checkup, order=order, group=group, shown=_SHOWN, figures=draw_figures(checkup), ratio=shown_ratio
    )


def shown_ratio(number: float) -> str:
    """Write a ratio with three digits; what is infinite as ∞, what is undefined as a dash."""
    if math.isnan(number):
        return "–"
    return "∞" if math.isinf(number) else f"{number:,.1f}" if number >= 10 else f"{number:.2f}"


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


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _encodable(text: str) -> str:
    """Mark the bytes of file names that are no UTF-8, which Python reads as lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
