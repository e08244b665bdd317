"""What the label state takes and what a refresh needs, at a growing number of images (Linux)."""

from __future__ import annotations

import argparse
import copy
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import torch
from tqdm import tqdm

from hf_balancemix.benchmark.figures import Figure, peak_memory
from hf_balancemix.benchmark.sharing import held_by_processes
from hf_balancemix.label_state import LabelState
from hf_balancemix.method import SparseLabels
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.diagnostics import early_warnings, refresh_diagnostics
from hf_balancemix.training.refresh import predicted_memory
from hf_balancemix.training.statistics import refresh_statistics, views_of_pass
from hf_balancemix.training.stream import refresh_sums

POSITIVES = 3
"""Of a row."""


def memory(options: argparse.Namespace) -> tuple[str, list[Figure]]:
    """Measure "epoch" and "stream" at three sizes, "carry" at one, each alone, and the last in several processes."""
    k = options.classes
    sizes = [("epoch", max(1, options.rows // part)) for part in (4, 2, 1)]
    sizes.append(("carry", options.rows))
    sizes += [("stream", options.rows * times) for times in (1, 4, 16)]
    figures: list[Figure] = []
    for views, rows in tqdm(sizes, desc="refreshes", disable=None):
        # Memory that an earlier measurement has freed would be taken again unseen.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            found = alone.submit(refresh, rows, k, views).result()
        name = f"{views}, {rows:,} images"
        bar = rows * (4 * k + 24) / 1e6 if views == "epoch" else None
        figures += [
            Figure(f"{name}: state", found["state"], "MB", at_most=bar),
            Figure(f"{name}: refresh, at its peak", found["peak"], "MB"),
            Figure(f"{name}: the same, predicted", found["predicted_peak"], "MB"),
        ]
    for processes in tqdm((1, 2, 4), desc="processes", disable=None):
        found_by = held_by_processes(rows, k, POSITIVES, processes)
        files, own = (sum(of_one[name] for of_one in found_by) / processes for name in ("files", "own"))
        name = f"stream, {rows:,} images on {processes} process{'es' if processes > 1 else ''}: memory of each"
        figures.append(Figure(name, own + files, "MB", details={"of which its own": own}))
    return f"Statistics of N images × {k} classes, {POSITIVES} positives in each", figures


def refresh(num_rows: int, num_labels: int, views: str = "epoch") -> dict[str, float]:
    """Measure, and predict, what the state takes and a second refresh with its diagnostics needs in addition, in MB.

    Args:
        num_rows: N.
        num_labels: K.
        views: Schedule.
    """
    args = BalanceMixTrainingArguments(output_dir=".", relabel_views=views, report_to="none")
    state = _state(num_rows, num_labels, args)

    def work() -> None:
        before = copy.copy(state)
        refresh_statistics(state, args, _batches(state, args))
        refresh_diagnostics(state, args, None, before)
        early_warnings(state, args, [])

    few = min(1000, num_rows)
    small = _state(few, num_labels, args)
    refresh_statistics(small, args, _batches(small, args))  # what stays allocated
    _, peak = peak_memory(work)
    tensors = [*state.stored().values(), *([state.sampling_sums, state.positives()] if args.streams else [])]
    predicted = predicted_memory(args, num_rows, num_labels, POSITIVES * num_rows)
    return {
        "state": sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None) / 1e6,
        "predicted_state": (predicted.held + predicted.shared) / 1e6,
        "peak": max(0.0, peak),
        "predicted_peak": predicted.refresh / 1e6,
    }


def _state(num_rows: int, num_labels: int, args: BalanceMixTrainingArguments) -> LabelState:
    names = tuple(map(str, range(num_labels)))
    if args.streams:
        rows = torch.arange(num_rows).repeat_interleave(POSITIVES)
        classes = torch.randint(num_labels, rows.shape, generator=_generator())
        streamed = LabelState(SparseLabels.of(rows, classes, num_rows, num_labels), names)
        streamed.class_confidence = torch.rand(2, num_labels, dtype=torch.float64)
        refresh_sums(streamed, args)
        return streamed
    built = LabelState(_labels(num_rows, num_labels), names)
    built.add_posterior(torch.rand(num_rows, num_labels))
    built.set_confidence(torch.rand(num_rows, num_labels), args.relabel_threshold)
    if args.relabel_views == "carry":
        built.carried = torch.randn(num_rows, num_labels).half()
    return built


def _batches(state: LabelState, args: BalanceMixTrainingArguments) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random logits with the views of a pass."""
    clean, augmented = views_of_pass(state, args, refines=True, final=False)
    for rows in torch.arange(len(state)).split(256):
        yield rows, torch.randn(len(rows), clean + augmented, len(state.class_names))


def _labels(num_rows: int, num_labels: int) -> torch.Tensor:
    labels = torch.zeros(num_rows, num_labels, dtype=torch.uint8)
    return labels.scatter_(1, torch.randint(num_labels, (num_rows, POSITIVES), generator=_generator()), 1)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
