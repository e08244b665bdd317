"""What BalanceMix's own work costs on sets larger than this machine can hold; see `benchmark.py simulate` (Linux).

Schedule "stream" is measured on synthetic logits that exist a few rows at a time, at numbers of images that grow by a
factor of four; a law of growth is fitted to the times, and continued to the size asked for.
"""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hf_balancemix.benchmark.figures import Figure
from hf_balancemix.benchmark.laws import extrapolate, growth
from hf_balancemix.data.stream_sampler import StreamSampler
from hf_balancemix.label_state import LabelState
from hf_balancemix.method import (
    LossHistogram,
    SparseLabels,
    confidence_sums,
    fit_mixtures,
)
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.balancemix import BalanceMixTrainer
from hf_balancemix.training.refresh import predicted_memory
from hf_balancemix.training.statistics import mean_losses, refresh_statistics
from hf_balancemix.training.stream import refresh_sums

SHAPES = [(9_000_000, 600), (9_000_000, 9_600), (100_000_000, 1_000)]
"""OpenImages with its trainable boxed and with its larger label sets; and a set beyond it."""
POSITIVES = 8.8
"""Of an image of OpenImages, on average."""
LAWS = {
    "labels": "linear",
    "class confidence": "linear",
    "losses": "linear",
    "histograms": "linear",
    "mixture fits": "linear",
    "scores": "power",
    "draws": "power",
    "refinement": "linear",
}
"""Parts of an epoch, and how the time of each is taken to grow with images; that of the fits: with classes."""
SHARED = {"labels", "class confidence", "losses", "histograms", "scores", "refinement"}
"""Parts of which each of P processes does its own rows; it does the others whole, or waits for who does."""
NETWORK = 1.25e9  # bytes per second, 10 Gb/s
_SIZES, _FACTOR = 4, 4
_TOGETHER = 2**20  # entries of the pass that are worked on at a time, as many as the refresh counts together
_BATCH = 64  # pairs of a step
_NOTES = """Processor time of one core, schedule "stream": no images, no model, no files, only what BalanceMix adds.
{positives:g} positives per image; 40% of them wrong, and as many missing. {rounds} rounds. Pass and refinement were
measured up to {entries:,} labels, scores and draws up to {rows:,} images, fits up to {fits:,} classes.
Seconds are a + b·N for labels, class confidence (Eq. 2), losses, histograms (Eq. 6) and refinement (of both halves at
every step of {batch} pairs, Eq. 8-10); a + b·K for mixture fits (Eq. 7), all with the most EM steps, whatever N;
c·N^s for scores (Eq. 3-4, to their running sums) and draws (a shuffle, N draws from the sums, and the pairs as
Python objects). "growth" is the slope of log time over log size as measured. "error": one standard error of the line
continued; it knows of the noise of this run, not of memory that gets slower beyond the sizes measured.
Each of {ranks} ranks of one machine does its share of pass, steps and scores; fits are done on one while the others
wait, draws on each; adding up histograms (2·K·4096 bins of 16 bytes) is taken from a network of 10 Gb/s, and not
measured. MB: peak beyond what was there before, growing with N for scores (which all ranks hold together), with K for
histograms, else constant; memory that an earlier run had freed to the program is not seen in it."""


def simulate(options: Namespace) -> tuple[str, list[Figure]]:
    """Measure every part of an epoch at growing sizes and continue it to each shape.

    Args:
        options: ``shape``, pairs (N, K) to continue to, ``SHAPES`` unless given; ``entries`` and ``rows``, the
            largest sizes measured; ``fits``, the most classes; ``rounds`` and ``ranks``.

    Returns:
        A title with the assumptions; the figures, with details.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(options)
    finally:
        torch.set_num_threads(threads)


def sparse_labels(num_rows: int, num_labels: int, positives: float) -> SparseLabels:
    """Labels with so many positives per row on average, the first classes the most frequent."""
    generator = _generator()
    counts = torch.poisson(torch.full((num_rows,), positives), generator=generator).long()
    rows = torch.repeat_interleave(counts)
    classes = (torch.rand(len(rows), generator=generator).square() * num_labels).long().clamp(max=num_labels - 1)
    return SparseLabels.of(rows, classes, num_rows, num_labels)


def views(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Logits (n, 2, K) of a model after warm-up on two views of images with noisy labels (n, K)."""
    missing = 0.4 * float(labels.double().mean())
    draws = torch.rand(labels.shape, generator=generator)
    true = draws < torch.where(labels == 1, 0.6, missing)
    noise = torch.randn(len(labels), 2, labels.shape[1], generator=generator)
    return noise.mul_(2).add_(torch.where(true, 1.5, -5.5)[:, None])


class Clock:
    """What the parts of one run took: processor time, which other programs hardly change, and memory.

    Attributes:
        seconds: Of each part.
        bytes: The most that each needed beyond what was in use before it.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, int] = defaultdict(int)

    def time(self, part: str, work: Callable[..., Any], *values: Any) -> Any:
        """Add the seconds of a call, and return what it returns."""
        start = time.process_time()
        result = work(*values)
        self.seconds[part] += time.process_time() - start
        return result

    def peak(self, part: str, work: Callable[..., Any], *values: Any) -> Any:
        """Do the same, and take its memory."""
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
        result = self.time(part, work, *values)
        self.bytes[part] = max(self.bytes[part], _status("VmHWM") - before)
        return result


class _Step(BalanceMixTrainer):
    """The trainer's own refinement, on logits in place of images."""

    def __init__(self, state: LabelState, args: Any) -> None:
        self.label_state, self.args = state, args

    def _refines_now(self) -> bool:
        return True

    def _predict_two_views(self, model: Any, views: Tensor) -> Tensor:
        return views

    def refine_pairs(self, logits: Tensor, rows: Tensor) -> None:
        """Refine a random and a minority half."""
        for _ in range(2):
            self._refined(None, logits, rows)


def measure_pass(labels: SparseLabels, clock: Clock) -> None:
    """Go over all labels as a refresh does, and then as the steps of an epoch do."""
    num_rows, num_labels = labels.shape
    start, generator = _status("VmRSS"), _generator()
    histogram, sums = LossHistogram(num_labels), torch.zeros(2, num_labels, dtype=torch.float64)
    for rows in torch.arange(num_rows).split(max(1, _TOGETHER // num_labels)):
        given = clock.time("labels", labels.dense, rows)
        logits = views(given, generator)
        mean = clock.time("class confidence", lambda views: views.sigmoid().mean(dim=1), logits)
        sums += clock.time("class confidence", confidence_sums, mean, given)
        losses = clock.time("losses", mean_losses, logits, given)
        clock.peak("histograms", histogram.add, losses, given)
        del given, logits, mean, losses
    clock.bytes["histograms"] += max(0, _status("VmRSS") - start)  # pages of bins that hold no loss take no memory
    del histogram
    # Of each set: means, variances and weights, the range of its losses, and that it was fitted.
    mixtures = torch.tensor([0.1, 0.8, 0.02, 0.02, 0.6, 0.4, 0.0, 12.0, 1.0], dtype=torch.float64)
    mixtures = mixtures.repeat(2, num_labels, 1)
    step = _Step(LabelState(labels, tuple(map(str, range(num_labels))), mixtures=mixtures), _arguments())
    for rows in torch.arange(num_rows).split(_BATCH):
        clock.peak("refinement", step.refine_pairs, views(labels.dense(rows), generator), rows)


def measure_fits(num_labels: int, clock: Clock) -> None:
    """Fit so many classes whose labels are balanced, with the most EM steps: what a fit may take, whatever N."""
    histogram, generator = LossHistogram(num_labels), _generator()
    labels = (torch.rand(256, num_labels, generator=generator) < 0.5).to(torch.uint8)
    histogram.add(mean_losses(views(labels, generator), labels), labels)
    clock.peak("mixture fits", lambda: fit_mixtures(histogram, tolerance=0.0))


def measure_sampling(labels: SparseLabels, clock: Clock) -> None:
    """Score all rows and draw as many."""
    state, args = LabelState(labels, tuple(map(str, range(labels.num_labels)))), _arguments()
    state.class_confidence = torch.rand(2, labels.num_labels, generator=_generator(), dtype=torch.float64)
    clock.peak("scores", refresh_sums, state, args)
    sampler = StreamSampler(len(labels), 0, lambda: 0, lambda: state.sampling_sums)
    clock.peak("draws", lambda: deque(sampler, maxlen=0))


def measure_refresh(labels: SparseLabels) -> float:
    """Seconds of a whole refresh without mixture fits and without making its logits."""
    making, generator = 0.0, _generator()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal making
        for rows in torch.arange(len(labels)).split(max(1, _TOGETHER // labels.num_labels)):
            start = time.process_time()
            logits = views(labels.dense(rows), generator)
            making += time.process_time() - start
            yield rows, logits

    state = LabelState(labels, tuple(map(str, range(labels.num_labels))))
    start = time.process_time()
    refresh_statistics(state, _arguments(min_fit=2**40), batches())  # no set has so many losses
    return time.process_time() - start - making


def _measure(options: Namespace) -> tuple[str, list[Figure]]:
    """Measure sampling and fits once and the pass for every number of classes; continue all of them."""
    shapes = options.shape or SHAPES
    classes = sorted({num_labels for _, num_labels in shapes})
    found: list[Figure] = []
    with tqdm(total=options.rounds * _SIZES * (2 + len(classes)), desc="simulate", unit="run", disable=None) as bar:
        labels = _even_labels(options.rows, max(classes), POSITIVES)
        sampling = _runs(options, options.rows, _on_first(labels, measure_sampling), bar)
        del labels
        fits = _runs(options, options.fits, measure_fits, bar)
        for num_labels in classes:
            largest = max(_FACTOR**_SIZES, options.entries // num_labels)
            labels = sparse_labels(largest, num_labels, POSITIVES)
            passes = _runs(options, largest, _on_first(labels, measure_pass), bar)
            for shape in shapes:
                if shape[1] == num_labels:
                    found += _continued(shape, sampling + passes, fits, options)
            parts = [sum(clock.seconds.values()) - clock.seconds["refinement"] for n, clock in passes if n == largest]
            ratio = float(np.median(parts)) / measure_refresh(labels)
            found.append(Figure(f"K = {num_labels:,}: parts of the pass / a refresh", ratio))
    return f"Simulation: seconds per epoch\n{_NOTES.format(batch=_BATCH, positives=POSITIVES, **vars(options))}", found


def _runs(
    options: Namespace, largest: int, work: Callable[[int, Clock], None], bar: tqdm[Any]
) -> list[tuple[int, Clock]]:
    """Do the work at growing sizes, round after round."""
    done: list[tuple[int, Clock]] = []
    work(largest // _FACTOR ** (_SIZES - 1), Clock())  # what a first call sets up counts for nothing
    for _ in range(options.rounds):
        for power in reversed(range(_SIZES)):
            size, clock = largest // _FACTOR**power, Clock()
            work(size, clock)
            done.append((size, clock))
            bar.update()
    return done


def _continued(
    shape: tuple[int, int], runs: list[tuple[int, Clock]], fits: list[tuple[int, Clock]], options: Namespace
) -> list[Figure]:
    """Continue every part to N × K, on one process and on several."""
    num_rows, num_labels = shape
    name, ranks = f"{num_rows:,} × {num_labels:,}", options.ranks
    reduce = 2 * (ranks - 1) / ranks * 2 * num_labels * 4096 * 16 / NETWORK
    found, total, variance, divided = [], 0.0, 0.0, reduce
    for part, law in LAWS.items():
        seen = [(n, clock) for n, clock in (fits if part == "mixture fits" else runs) if part in clock.seconds]
        sizes, seconds = [float(n) for n, _ in seen], [clock.seconds[part] for _, clock in seen]
        value, error = extrapolate(law, sizes, seconds, num_labels if part == "mixture fits" else num_rows)
        exponent, exponent_error = growth(sizes, seconds)
        own = value / ranks if part in SHARED else value
        details = {"error": error, "growth": exponent, "growth_error": exponent_error, "per_rank": own}
        if used := max(
            (clock.bytes[part] / 1e6 for n, clock in seen if n == max(sizes) and part in clock.bytes), default=0
        ):
            details["megabytes"] = used * num_rows / max(sizes) if part == "scores" else used
        found.append(Figure(f"{name}: {part}", value, "s", details=details))
        total, variance, divided = total + value, variance + error**2, divided + own
    predicted = predicted_memory(_arguments(), num_rows, num_labels, round(POSITIVES * num_rows))
    details = {"error": math.sqrt(variance), "per_rank": divided, "reduce": reduce}
    details |= {f"predicted_{name}_megabytes": value / 1e6 for name, value in predicted._asdict().items()}
    return [*found, Figure(f"{name}: epoch", total, "s", details=details)]


def _on_first(labels: SparseLabels, work: Callable[[SparseLabels, Clock], None]) -> Callable[[int, Clock], None]:
    """Make work on the first n rows of work on labels."""

    def on_first(num_rows: int, clock: Clock) -> None:
        offsets = labels.offsets[: num_rows + 1]
        work(SparseLabels(offsets, labels.classes[: offsets[-1]], labels.num_labels), clock)

    return on_first


def _even_labels(num_rows: int, num_labels: int, positives: float) -> SparseLabels:
    """Labels made without sorting: one class in each of as many equal parts of the classes as a row has positives."""
    generator = _generator()
    counts = torch.poisson(torch.full((num_rows,), positives), generator=generator).long()
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(dim=0)])
    classes = torch.empty(int(offsets[-1]), dtype=torch.int32)
    for rows in torch.arange(num_rows).split(2**18):
        first, last = int(offsets[rows[0]]), int(offsets[rows[-1] + 1])
        owner = torch.repeat_interleave(rows, counts[rows])
        place = torch.arange(first, last) - offsets[owner]
        share = (place + torch.rand(len(place), generator=generator, dtype=torch.float64)) / counts[owner]
        classes[first:last] = (share * num_labels).int().clamp(max=num_labels - 1)
    return SparseLabels(offsets, classes, num_labels)


def _arguments(**changes: Any) -> BalanceMixTrainingArguments:
    return BalanceMixTrainingArguments(output_dir=".", relabel_views="stream", report_to="none", **changes)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
