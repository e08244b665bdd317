"""Time and memory of sampling and of the label state, on synthetic tables (Linux)."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hf_balancemix.label_state import LabelState
from hf_balancemix.method import SparseLabels, class_confidence, draw, instance_score, sampling_probability
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.diagnostics import early_warnings, refresh_diagnostics
from hf_balancemix.training.refresh import predicted_bytes, state_bytes
from hf_balancemix.training.statistics import refresh_statistics, views_of_pass

_POSITIVES = 3  # of a row


def main() -> None:
    """Print every measurement as a line of JSON."""
    for shape in ((117_266, 80), (1_000_000, 600)):
        print(json.dumps(scores(*shape)), flush=True)
    for num_rows in (2**24, 2**25, 10**8):
        print(json.dumps(draws(num_rows)), flush=True)
    for shape in ((117_266, 80), (20_000, 600)):
        print(json.dumps(state(*shape)), flush=True)
    print(json.dumps(refresh(117_266, 80)), flush=True)  # its figures hold for a new process only


def measure(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """Return what ``work`` returns, its seconds, and the most bytes that it needed beyond those in use before."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    return result, seconds, max(0, _status("VmHWM") - before)


def scores(num_rows: int, num_labels: int, positives: int = 3) -> dict[str, float]:
    """Measure Eq. 2-4 with so many positives per row."""
    labels = _labels(num_rows, num_labels, positives)
    probs = torch.rand(num_rows, num_labels)
    (presence, absence), mean_seconds, mean_bytes = measure(lambda: class_confidence(probs, labels))
    score, seconds, peak = measure(lambda: instance_score(labels, presence, absence))
    _, normal_seconds, normal_bytes = measure(lambda: sampling_probability(score))
    return {
        "rows": num_rows,
        "labels": num_labels,
        "eq2_seconds": mean_seconds,
        "eq2_peak_mb": mean_bytes / 1e6,
        "eq3_seconds": seconds,
        "eq3_peak_mb": peak / 1e6,
        "eq4_seconds": normal_seconds,
        "eq4_peak_mb": normal_bytes / 1e6,
    }


def draws(num_rows: int, count: int = 1_000_000) -> dict[str, float]:
    """Measure so many draws from weights that differ by a factor of 100."""
    p = torch.rand(num_rows, dtype=torch.float64, generator=_generator()).mul_(0.99).add_(0.01)
    _, first_seconds, _ = measure(lambda: draw(p, 1, _generator()))
    index, seconds, peak = measure(lambda: draw(p, count, _generator()))
    half = num_rows // 2
    expected = float(p[half:].sum() / p.sum())
    return {
        "rows": num_rows,
        "sums_seconds": first_seconds,
        "microseconds_per_draw": 1e6 * (seconds - first_seconds) / count,
        "peak_mb": peak / 1e6,
        "upper_half_drawn": float((index >= half).double().mean()),
        "upper_half_expected": expected,
        "standard_error": (expected * (1 - expected) / count) ** 0.5,
    }


def state(num_rows: int, num_labels: int) -> dict[str, float]:
    """Measure the label state after a refresh, what a refresh adds, and the look-up of a step of 64 pairs."""
    labels = _labels(num_rows, num_labels, 3)
    names = tuple(map(str, range(num_labels)))
    posterior, confidence = torch.rand(2, num_rows, num_labels)

    def build() -> LabelState:
        built = LabelState(labels, names)
        built.add_posterior(posterior)
        built.set_confidence(confidence, 0.975)
        built.sampling_probability = torch.full((num_rows,), 1 / num_rows, dtype=torch.float64)
        built.class_confidence = torch.zeros(2, num_labels, dtype=torch.float64)
        return built

    built, seconds, _ = measure(build)
    held = sum(tensor.numel() * tensor.element_size() for tensor in built.stored().values())
    rows = torch.randint(num_rows, (64,), generator=_generator())
    _, step, _ = measure(
        lambda: [(built.labels_of(rows), built.probabilities_of("posterior", rows)) for _ in range(1000)]
    )
    return {
        "rows": num_rows,
        "labels": num_labels,
        "state_mb": held / 1e6,
        "predicted_mb": state_bytes(num_rows, num_labels) / 1e6,
        "bar_mb": num_rows * (4 * num_labels + 24) / 1e6,
        "packing_seconds": seconds,
        "microseconds_per_lookup": 1e3 * step,
    }


def refresh(num_rows: int, num_labels: int, views: str = "epoch") -> dict[str, float]:
    """Measure what the statistics and diagnostics of a second refresh need, and predict it."""
    shape = num_rows, num_labels
    args = BalanceMixTrainingArguments(output_dir=".", relabel_views=views, report_to="none")
    built = _state(num_rows, num_labels, args)

    def work() -> None:
        before = copy.copy(built)
        refresh_statistics(built, args, _batches(num_rows, num_labels, args))
        refresh_diagnostics(built, args, None, before)
        early_warnings(built, args, [])

    refresh_statistics(_state(1000, num_labels, args), args, _batches(1000, num_labels, args))  # what stays allocated
    _, seconds, peak = measure(work)
    held = sum(tensor.numel() * tensor.element_size() for tensor in built.stored().values())
    predicted = predicted_bytes(args, *shape, _POSITIVES * num_rows)
    return {
        "rows": num_rows,
        "labels": num_labels,
        "refresh_seconds": seconds,
        "state_mb": held / 1e6,
        "state_predicted_mb": predicted[0] / 1e6,
        "peak_mb": peak / 1e6,
        "peak_predicted_mb": predicted[1] / 1e6,
    }


def _state(num_rows: int, num_labels: int, args: Any) -> LabelState:
    names = tuple(map(str, range(num_labels)))
    if args.streams:
        rows = torch.arange(num_rows).repeat_interleave(_POSITIVES)
        classes = torch.randint(num_labels, rows.shape, generator=_generator())
        return LabelState(SparseLabels.of(rows, classes, num_rows, num_labels), names)
    built = LabelState(_labels(num_rows, num_labels, _POSITIVES), names)
    built.add_posterior(torch.rand(num_rows, num_labels))
    built.set_confidence(torch.rand(num_rows, num_labels), args.relabel_threshold)
    return built


def _batches(num_rows: int, num_labels: int, args: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random logits with the views of a pass."""
    clean, augmented = views_of_pass(args, refines=True, final=False)
    for rows in torch.arange(num_rows).split(256):
        yield rows, torch.randn(len(rows), clean + augmented, num_labels)


def _labels(num_rows: int, num_labels: int, positives: int) -> torch.Tensor:
    labels = torch.zeros(num_rows, num_labels, dtype=torch.uint8)
    return labels.scatter_(1, torch.randint(num_labels, (num_rows, positives), generator=_generator()), 1)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


if __name__ == "__main__":
    main()
