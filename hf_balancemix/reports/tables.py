"""Tables of results: mean ± standard error over seeds, for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Run = dict[str, Any]


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean of the seeds: std with n − 1, over √n; None for one seed."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def mean_and_error(values: Sequence[float]) -> str:
    """Return ``mean ± standard error`` of the seeds; the mean alone for one seed."""
    error = standard_error(values)
    return f"{np.mean(values):.1f}" + ("" if error is None else f" ± {error:.1f}")


def method_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Summarise runs by method.

    Args:
        runs: Entries of ``results.json``.

    Returns:
        The header, and a row per method in order of first appearance: last mAP, that of averaged weights where there
        are any, mAP of each group, mAP of the best epoch, seconds.
    """
    groups = list(dict.fromkeys(name for run in runs for name in run["groups"]))
    averaged = ["EMA mAP"] if any("ema_map" in run for run in runs) else []
    header = ["method", "mAP", *averaged, *groups, "best epoch", "seconds"]
    rows = []
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run for run in runs if run["method"] == method]
        ema = [run["ema_map"] for run in mine if "ema_map" in run]
        best = [max(epoch["map"] for epoch in run["epochs"]) for run in mine if run["epochs"]]
        rows.append(
            [
                method,
                mean_and_error([run["map"] for run in mine]),
                *(mean_and_error(ema) if ema else "-" for _ in averaged),
                *(mean_and_error([run["groups"][g] for run in mine if g in run["groups"]]) for g in groups),
                mean_and_error(best) if best else "-",
                f"{np.mean([run['seconds'] for run in mine]):.0f}",
            ]
        )
    return header, rows


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns for a terminal."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
