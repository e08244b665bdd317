"""Figures of single labels: loss histograms with the fitted modes, and re-labelled images (Figure 8)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from hf_balancemix.drawing import COLOURS, missing, new_figure, plain_numbers, save, shown, styled
from hf_balancemix.label_state import LabelState
from hf_balancemix.method import CLEAN, RELABELLED, MixtureFit, label_posteriors, refine

_BINS = 30
_GIVEN = ("given absent", "given present")
# Losses of probabilities that were rounded to 0 or 1 end here.
_LEAST_PROB = 1e-7


@styled
def plot_loss_histograms(
    state: LabelState,
    path: str | os.PathLike[str],
    classes: Sequence[int] | None = None,
    title: str = "",
    **mixture: Any,
) -> None:
    """Draw the losses of each class's given labels, and the two modes fitted to them (Eq. 6–7).

    The losses are those of the predictions of the last refresh; a set that is not fitted has no modes.

    Args:
        state: With ``probs`` of a refresh.
        path: Where the picture goes; the ending decides the format. The numbers of all classes go beside it, as
            ``.csv``: counts of 30 bins, and what the modes expect there.
        classes: Which to draw; by default four, those with the largest share of given positives not taken for clean.
        title: Above the axes.
        mixture: Options of :func:`~hf_balancemix.method.label_posteriors`, as the run had them.

    Raises:
        MissingNumbersError: If the state has no predictions.
    """
    if state.probs is None:
        raise missing("predictions of a refresh in the label state", "none", "Choose a run of BalanceMix")
    probs = state.probs.double().clamp(_LEAST_PROB, 1 - _LEAST_PROB)
    labels = state.labels
    losses = -torch.where(labels == 1, probs, 1 - probs).log()
    fit = label_posteriors(losses, labels, **mixture)
    if classes is None:
        doubted = ((fit.posterior <= 0.5) & (labels == 1)).sum(0) / (labels == 1).sum(0).clamp(min=1)
        classes = doubted.argsort(descending=True, stable=True)[:4].tolist()
    figure = new_figure(0.6 + 1.0 * len(classes))
    grid = figure.subplots(len(classes), 2, squeeze=False)
    header = ("class", "given", "from", "to", "labels", "clean_mode", "other_mode")
    rows: list[tuple[Any, ...]] = []
    for k, name in enumerate(state.class_names):
        for given in (0, 1):
            numbers = _histogram(losses[:, k][labels[:, k] == given].numpy(), fit, given, k)
            rows += [(name, given, *line) for line in numbers]
            for place in [place for place, drawn in enumerate(classes) if drawn == k]:
                axes = grid[place, given]
                _draw_histogram(axes, numbers, shown(name))
    for axes, given_as in zip(grid[-1], _GIVEN, strict=True):
        axes.set_xlabel(f"loss (nats), {given_as}", fontsize=7)
    figure.supylabel("labels (logarithmic)", fontsize=8)
    handles: list[Any] = []
    names: list[str] = []
    for axes in grid.flat:  # a set without fit has no modes to name
        if len(axes.get_legend_handles_labels()[0]) > len(handles):
            handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, columnspacing=1.2)
    if title:
        figure.suptitle(title, fontsize=8)
    save(figure, path, header, rows)


def _histogram(losses: npt.NDArray[Any], fit: MixtureFit, given: int, k: int) -> list[tuple[Any, ...]]:
    """Return rows (from, to, labels, expected of the small-loss mode, expected of the other); None without a fit."""
    if not losses.size:
        return []
    counts, edges = np.histogram(losses, bins=_BINS, range=(0.0, float(losses.max()) or 1.0))
    expected: list[list[float | None]] = [[None] * _BINS, [None] * _BINS]
    if bool(fit.fitted[given, k]):
        low, high = (float(t[given, k]) for t in (fit.low, fit.high))
        for mode in (0, 1):
            mean, variance = float(fit.means[given, k, mode]), float(fit.variances[given, k, mode])
            normal = torch.distributions.Normal(low + mean * (high - low), variance**0.5 * (high - low))
            below = normal.cdf(torch.from_numpy(edges)).numpy()
            expected[mode] = (len(losses) * float(fit.weights[given, k, mode]) * np.diff(below)).tolist()
    return [(*map(float, edges[i : i + 2]), int(counts[i]), expected[0][i], expected[1][i]) for i in range(_BINS)]


def _draw_histogram(axes: Any, numbers: Sequence[tuple[Any, ...]], name: str) -> None:
    axes.set_title(name, fontsize=7)
    axes.tick_params(labelsize=6)
    if not numbers:
        axes.text(0.5, 0.5, "no such labels", ha="center", va="center", transform=axes.transAxes, fontsize=7)
        return
    left, right, counts, *modes = (np.array(column, dtype=float) for column in zip(*numbers, strict=True))
    axes.bar(left, counts, right - left, align="edge", color="0.75", label="labels")
    for mode, colour, style, label in zip(modes, (COLOURS[0], COLOURS[5]), ("-", "--"), ("clean mode", "other mode"),
                                          strict=True):  # fmt: skip
        if np.isfinite(mode).all():
            axes.plot((left + right) / 2, mode, color=colour, linestyle=style, label=label)
    axes.set_yscale("log")
    axes.set_ylim(0.5, 2 * counts.max())
    plain_numbers(axes.yaxis, 1, counts.max())


@styled
def plot_relabelled(
    state: LabelState,
    images: Callable[[int], Image.Image],
    path: str | os.PathLike[str],
    relabel_threshold: float,
    clean_labels: npt.ArrayLike | None = None,
    count: int = 9,
    title: str = "",
) -> None:
    """Draw training images whose labels are changed, the most suspicious of both kinds, one label each (Figure 8).

    Args:
        state: With posterior and confidence of a refresh.
        images: Returns the image of a row of the training set.
        path: Where the picture goes; the ending decides the format. All changed labels go beside it, as ``.csv``.
        relabel_threshold: ε of Eq. 9.
        clean_labels: (N, K) truth, where it is known: marks right and wrong changes.
        count: How many images at most.
        title: Above the images.

    Raises:
        MissingNumbersError: If the state has no refined labels, or no label is changed.
    """
    if state.posterior is None or state.confidence is None:
        raise missing("posterior and confidence in the label state", "none", "Choose a run of BalanceMix")
    refined = refine(state.labels.float(), state.posterior, state.confidence, relabel_threshold)
    changed = (refined.state == RELABELLED) & (refined.targets != state.labels)
    places = changed.nonzero().numpy()
    if not len(places):
        found = f"none: {int((refined.state != CLEAN).sum())} are not clean, none is replaced by its opposite"
        raise missing("re-labelled labels that change", found, "A lower relabel_threshold or more epochs may help")
    posterior, confidence = (t.numpy()[tuple(places.T)] for t in (state.posterior, state.confidence))
    given = state.labels.numpy()[tuple(places.T)]
    # The farther the confidence from the given label, the earlier, among labels of the same posterior.
    order = np.lexsort((-np.abs(confidence - given), posterior))
    places, posterior, confidence, given = places[order], posterior[order], confidence[order], given[order]
    truth = None if clean_labels is None else np.asarray(clean_labels)[tuple(places.T)]
    first = np.sort(np.unique(places[:, 0], return_index=True)[1])  # one label of each image
    # Of both kinds in turn while there are any: removed positives, which are few, are often the surest.
    turn = [np.count_nonzero(given[first[:place]] == given[i]) for place, i in enumerate(first)]
    first = first[np.lexsort((first, turn))][:count]
    columns = min(3, len(first))
    lines = -(-len(first) // columns)
    figure = new_figure(0.3 + 1.35 * lines * 3 / columns)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, first, strict=False):
        row, k = places[i]
        image = images(int(row)).convert("RGB")
        axes.imshow(image, interpolation="nearest" if max(image.size) < 64 else "antialiased")
        right = "" if truth is None else " ✓" if truth[i] != given[i] else " ✗"
        axes.set_title(f"{'−' if given[i] else '+'} {shown(state.class_names[k], 18)}{right}", fontsize=7, pad=2,
                       color=COLOURS[5] if given[i] else COLOURS[0])  # fmt: skip
    known = "" if truth is None else ", ✓ right, ✗ wrong"
    figure.supxlabel(f"+ added, − removed{known}", fontsize=7)
    if title:
        figure.suptitle(title, fontsize=8)
    header = ("row", "class", "given", "relabelled_to", "posterior", "confidence", "truth")
    truths = [None] * len(given) if truth is None else truth.astype(int).tolist()
    rows = [
        (
            int(row),
            state.class_names[k],
            int(given[i]),
            1 - int(given[i]),
            float(posterior[i]),
            float(confidence[i]),
            t,
        )
        for i, ((row, k), t) in enumerate(zip(places, truths, strict=True))
    ]
    save(figure, path, header, rows)
