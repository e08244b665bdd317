"""Results of a comparison in the layouts of the paper's tables, from plain dicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hf_balancemix.reports.formats import Table, Value
from hf_balancemix.reports.paper import paper_number, tables_data
from hf_balancemix.reports.tables import standard_error

Run = dict[str, Any]
Noise = tuple[str, float | None]
_KINDS = ("none", "mislabel", "flip", "single_positive")
_PARTS = (0.25, 0.5, 0.75, 1.0)
_QUALITIES = {
    "precision": "label_precision",
    "recall": "label_recall",
    "share": "relabelled",
    "accuracy": "relabel_accuracy",
}
_SAMPLING = (("total variation", "sampling_total_variation"), ("effective size", "effective_sample_share"))
# The noises that the paper's mean over noises is taken over.
_PAPERS_MEAN = {("none", None), ("mislabel", 0.4), ("flip", 0.4), ("single_positive", None)}


@dataclass(frozen=True)
class Row:
    """Runs of one method with the same settings, under any noise and with any seed.

    Attributes:
        name: Shown in front.
        runs: Results.
        counterparts: Rows of the paper's tables that show the same, by noise, the preferred one first.
        differs: In what the runs are not the paper's where it has such a row.
    """

    name: str
    runs: tuple[Run, ...]
    counterparts: Mapping[Noise, Sequence[str]] = field(default_factory=dict)
    differs: str = ""

    def under(self, noise: Noise) -> list[Run]:
        """Return the runs under a noise, seed by seed."""
        runs = [run for run in self.runs if (run["noise"], run["noise_rate"]) == noise]
        return sorted(runs, key=lambda run: run["seed"])

    def paper(self, noise: Noise, group: str, paper_table: str | None) -> tuple[float, str] | None:
        """Return the paper's number and its table; of the mean over the paper's noises if these are all there."""
        if noise[0] == "mean":
            names = [name for name in self.counterparts.get(("none", None), ()) if self._in_all(name)]
        else:
            names = list(self.counterparts.get(noise, ()))
        return paper_number(self.runs[0]["settings"]["data"], names, noise, group, paper_table) if names else None

    def _in_all(self, name: str) -> bool:
        return all(name in self.counterparts.get(noise, ()) for noise in _PAPERS_MEAN)


def tables(rows: Sequence[Row], layout: str | None = None, paper_table: str | None = None) -> list[Table]:
    """Lay results out.

    Args:
        rows: In the order of the tables.
        layout: One of ``LAYOUTS``; None for all that say something about these results.
        paper_table: The paper's table whose numbers count first.

    Returns:
        The tables: "groups" has one for each kind of noise.
    """
    grouped = any(run["groups"] for row in rows for run in row.runs)
    names = [layout] if layout else ["noises", *(["groups"] if grouped else []), "labels"]
    return [table for name in names for table in LAYOUTS[name](rows, paper_table) if table.rows]


def noises_of(rows: Iterable[Row]) -> list[Noise]:
    """Return the noises of all runs: none first, then by kind and rate."""
    found = {(run["noise"], run["noise_rate"]) for row in rows for run in row.runs}
    return sorted(found, key=lambda noise: (_KINDS.index(noise[0]), noise[1] or 0))


def summary(values: Sequence[float], paper: tuple[float, str] | None = None) -> Value | None:
    """Return mean and standard error of the seeds, beside the paper's number and its table; None without values."""
    if not values:
        return None
    number, table = paper or (None, "")
    return Value(float(np.mean(values)), standard_error(values), len(values), number, paper_table=table)


def mean_ranks(table: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Return the mean rank of each row: 1 is the highest value of a column, ties share their mean rank.

    Args:
        table: Rows of one value per column. Columns with a missing value do not count.

    Returns:
        One number per row; None for all if no column is complete.
    """
    columns = [column for column in zip(*table, strict=True) if None not in column]
    if not columns:
        return [None] * len(table)
    values = np.array(columns, dtype=float)  # (columns, rows)
    above = (values[:, None, :] > values[:, :, None]).sum(axis=2)
    level = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    return [float(rank) for rank in (above + (level + 1) / 2).mean(axis=0)]


def _last(run: Run, group: str) -> float | None:
    return run["map"] if group == "all" else run["groups"].get(group)


def _best(run: Run, group: str) -> float | None:
    """Return mAP at the best epoch, of the averaged weights too where there are any."""
    if group != "all":  # not kept by epoch
        return None
    return max((epoch[key] for epoch in run["epochs"] for key in ("map", "ema_map") if key in epoch), default=None)


def _value(
    row: Row, noise: Noise, group: str, paper_table: str | None, read: Callable[[Run, str], float | None] = _last
) -> Value | None:
    numbers = [number for run in row.under(noise) if (number := read(run, group)) is not None]
    return summary(numbers, row.paper(noise, group, paper_table))


def _by_noise(rows: Sequence[Row], paper_table: str | None, read: Callable[[Run, str], float | None]) -> list[Table]:
    """Rows are methods, columns noises; behind them the mean and the mean rank over the noises."""
    noises = noises_of(rows)
    columns = [(_noise_name((kind, None)), _percent(rate)) for kind, rate in noises]
    body = [[_value(row, noise, "all", paper_table, read) for noise in noises] for row in rows]
    ranks = mean_ranks([[None if value is None else round(value.mean, 6) for value in line] for line in body])
    complete = sum(None not in column for column in zip(*body, strict=True))
    if len(noises) > 1:
        columns.append(("mean", ""))
        for row, line in zip(rows, body, strict=True):
            whole = [value.mean for value in line if value is not None]
            paper = row.paper(("mean", None), "all", paper_table) if set(noises) == _PAPERS_MEAN else None
            value = summary([float(np.mean(whole))] if len(whole) == len(noises) else [], paper)
            line.append(value and replace(value, seeds=0))
    body = _mark_best(body)
    note = ""
    if len(rows) > 1 and len(noises) > 1 and complete:
        columns.append(("mean rank", ""))
        best = min(rank for rank in ranks if rank is not None)
        for line, rank in zip(body, ranks, strict=True):
            line.append(None if rank is None else Value(rank, seeds=0, best=rank == best))
        note = f"Mean rank: over the {complete} of {len(noises)} noises that all rows have; 1 is the highest mAP."
    what = "test mAP in points, after the last epoch" if read is _last else "test mAP in points, at the best epoch"
    title = f"{_dataset(rows)}, by noise: {what}"
    return [_table(title, ("method",), columns, [(row.name,) for row in rows], body, note, (rows, paper_table))]


def _by_group(rows: Sequence[Row], paper_table: str | None) -> list[Table]:
    """One table per kind of noise: rows are methods, columns class groups, and in each the rates from 0 on."""
    noises = noises_of(rows)
    groups = list(dict.fromkeys(name for row in rows for run in row.runs for name in run["groups"]))
    groups = ["all", *sorted(groups, key=lambda name: (*("many", "medium", "few"), name).index(name))]
    made = []
    kinds = list(dict.fromkeys(kind for kind, _ in noises))
    for kind in kinds:
        own = [noise for noise in noises if noise[0] == kind]
        if own[0][1] is not None and ("none", None) in noises:
            own = [("none", None), *own]  # clean runs are those of rate 0
        elif kind == "none" and len(kinds) > 1 and any(rate is not None for _, rate in noises):
            continue
        columns = [
            (group.capitalize(), "" if len(own) == 1 else _percent(noise[1] or 0.0))
            for group in groups
            for noise in own
        ]
        kept = [row for row in rows if any(row.under(noise) for noise in own)]
        body = [[_value(row, noise, group, paper_table) for group in groups for noise in own] for row in kept]
        title = (
            f"{_dataset(rows)}, {'labels as given' if kind == 'none' else kind.replace('_', ' ')}, by class group: "
        )
        title += "test mAP in points, after the last epoch"
        names = [(row.name,) for row in kept]
        made.append(_table(title, ("method",), columns, names, _mark_best(body), "", (kept, paper_table)))
    return made


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:g}%"


def _by_progress(rows: Sequence[Row], paper_table: str | None) -> list[Table]:
    """How label management fares: rows are methods at parts of the training, columns noises and measures."""
    managed = [row for row in rows if any("label_precision" in epoch for run in row.runs for epoch in run["epochs"])]
    noises = [
        noise for noise in noises_of(managed) if any(_at(run, 1.0) for row in managed for run in row.under(noise))
    ]
    columns = [(_noise_name(noise), measure) for noise in noises for measure in _QUALITIES]
    names, body = [], []
    for row in managed:
        for part in _PARTS:
            line = []
            for noise in noises:
                for measure, key in _QUALITIES.items():
                    runs = row.under(noise)
                    numbers = [100 * found[key] for run in runs if key in (found := _at(run, part))]
                    line.append(summary(numbers, row.paper(noise, f"{measure} {part:.0%}", paper_table)))
            names.append((row.name, f"{part:.0%}"))
            body.append(line)
    note = (
        "Precision and recall of the labels taken for clean (Eq. 14); share of the labels that were re-labelled, and "
        "how many of these are right (Eq. 15)."
    )
    title = f"{_dataset(rows)}, label management after parts of the training, in percent"
    return [_table(title, ("method", "training"), columns, names, body, note, (managed, paper_table))]


def _by_sampler(rows: Sequence[Row], paper_table: str | None) -> list[Table]:
    """What the minority sampler does at the end: rows are methods, columns noises with mAP and two measures."""
    sampling = [row for row in rows if any(_SAMPLING[-1][1] in _diagnostics(run) for run in row.runs)]
    noises = noises_of(sampling)
    columns = [(_noise_name(noise), name) for noise in noises for name in ("mAP", *(name for name, _ in _SAMPLING))]
    body = []
    for row in sampling:
        line = []
        for noise in noises:
            line.append(_value(row, noise, "all", paper_table))
            ends = [_diagnostics(run) for run in row.under(noise)]
            line += [summary([100 * end[key] for end in ends if key in end]) for _, key in _SAMPLING]
        body.append(line)
    note = "Total variation from uniform sampling, and effective sample size as a share of the images, in percent."
    title = f"{_dataset(rows)}, minority sampler after the last epoch, and test mAP in points"
    names = [(row.name,) for row in sampling]
    return [_table(title, ("method",), columns, names, body, note, (sampling, paper_table))]


def _diagnostics(run: Run) -> dict[str, float]:
    return run["epochs"][-1] if run["epochs"] else {}


def _at(run: Run, part: float) -> dict[str, float]:
    """Return the diagnostics after a part of the training; nothing before labels are refined."""
    epochs = run["epochs"]
    found = epochs[math.ceil(part * len(epochs)) - 1] if epochs else {}
    return found if "label_precision" in found else {}


def _noise_name(noise: Noise) -> str:
    kind, rate = noise
    return f"{'clean' if kind == 'none' else kind.replace('_', ' ')} {_percent(rate)}".strip()


def _dataset(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(_name(run) for row in rows for run in row.runs))


def _name(run: Run) -> str:
    data = run["settings"]["data"]
    return "COCO 2014" if data.get("year") == "2014" else str(data.get("recipe"))


def _mark_best(body: list[list[Value | None]]) -> list[list[Value | None]]:
    """Mark the best of each column, all that show the same number; where there is nothing to choose, none."""
    out = [list(line) for line in body]
    for column in range(len(body[0]) if body else 0):
        shown = [round(line[column].mean, 1) for line in body if line[column] is not None]  # type: ignore[union-attr]
        for line in out:
            value = line[column]
            if value is not None and len(shown) > 1:
                line[column] = replace(value, best=round(value.mean, 1) == max(shown))
    return out


def _table(
    title: str,
    stub: tuple[str, ...],
    columns: Sequence[tuple[str, str]],
    names: Sequence[tuple[str, ...]],
    body: Sequence[Sequence[Value | None]],
    note: str,
    of_paper: tuple[Sequence[Row], str | None],
) -> Table:
    """Put a table together; ``of_paper`` are its rows and the paper's table, which the note says something of."""
    used = {value.paper_table for line in body for value in line if value is not None and value.paper is not None}
    rows = tuple((name, tuple(line)) for name, line in zip(names, body, strict=True))
    return Table(title, stub, tuple(columns), rows, " ".join([*([note] if note else []), *_of_paper(used, *of_paper)]))


def _of_paper(used: set[str], rows: Sequence[Row], paper_table: str | None) -> list[str]:
    """Return sentences on where the paper's numbers come from, and on why there are none."""
    said = []
    if used:
        numbers = ", ".join(sorted(used, key=int))
        said.append(f"The paper's numbers are of its Table{'s' * (len(used) > 1)} {numbers}.")
    sets = tables_data(paper_table) if paper_table else []
    if sets and paper_table not in used and not any(_name(run) in sets for row in rows for run in row.runs):
        said.append(f"The paper's Table {paper_table} is of {' and '.join(sets)}.")
    others = []
    for differs in dict.fromkeys(row.differs for row in rows if row.differs):
        names = ", ".join(row.name for row in rows if row.differs == differs)
        others.append(f"{names}, for {differs}")
    if others:
        said.append(f"Not beside the paper's numbers: {'; '.join(others)}.")
    return said


# Groups: Tables 1 to 4, 10 to 12. Noises: 5, 8, 9, 13. Labels: 14, 15. Best: 6.
LAYOUTS: dict[str, Callable[[Sequence[Row], str | None], list[Table]]] = {
    "noises": lambda rows, paper_table: _by_noise(rows, paper_table, _last),
    "groups": _by_group,
    "labels": _by_progress,
    "sampling": _by_sampler,
    "best": lambda rows, paper_table: _by_noise(rows, paper_table, _best),
}
