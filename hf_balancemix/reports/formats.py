"""Tables of results as text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

_MISSING = "–"
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "ε": r"$\varepsilon$",
    "α": r"$\alpha$",
    "Δ": r"$\Delta$",
    "–": "--",
    # Behind the end of a row LaTeX takes these for its options.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    **{sign: f"\\{sign}" for sign in "&%$#_"},
}


@dataclass(frozen=True)
class Value:
    """What stands in a place of a table.

    Attributes:
        mean: Over the seeds.
        error: Standard error; None for one seed.
        seeds: How many; 0 for what is of no run, such as a mean over noises.
        paper: The paper's number, if there is one.
        best: Whether none of its column is better, as far as the table shows.
        paper_table: The paper's table that its number is from.
    """

    mean: float
    error: float | None = None
    seeds: int = 1
    paper: float | None = None
    best: bool = False
    paper_table: str = ""

    def texts(self) -> tuple[str, str]:
        """Return ``mean ± error``, and the seeds and the paper's number behind it."""
        own = f"{self.mean:.1f}" if self.error is None else f"{self.mean:.1f} ± {self.error:.1f}"
        seeds = f" ({self.seeds})" if self.seeds > 1 else ""
        return own, seeds + ("" if self.paper is None else f" [{self.paper:.1f}]")


@dataclass(frozen=True)
class Table:
    """A table with columns in blocks.

    Attributes:
        title: What it shows.
        stub: Headers of the columns that name a row.
        columns: (block, name) of each other column; neighbours with one block stand under it.
        rows: The names of each row, and its values; None where there is none.
        note: Behind it.
    """

    title: str
    stub: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[tuple[str, ...], tuple[Value | None, ...]], ...]
    note: str = ""

    def blocks(self) -> list[tuple[str, int]]:
        """Return each block and how many columns it has."""
        return [(name, len(list(members))) for name, members in groupby(self.columns, key=lambda column: column[0])]

    def values(self) -> list[Value]:
        """Return all values that there are."""
        return [value for _, row in self.rows for value in row if value is not None]


def _titled(table: Table) -> str:
    """Return the title with a word on the signs of text and Markdown."""
    signs = []
    if any(value.error is not None for value in table.values()):
        signs.append("mean ± standard error (seeds)")
    if any(value.paper is not None for value in table.values()):
        signs.append("[the paper's number]")
    return table.title + (f"; {', '.join(signs)}" if signs else "")


def text(tables: Sequence[Table]) -> str:
    """Align columns for a terminal, where the best are bold; in a file a star marks them.

    Blocks that do not fit beside one another in a terminal stand below one another.
    """
    return "\n\n".join(map(_text, tables))


def _text(table: Table) -> str:
    on, off = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "*")
    lines = _aligned(table, on, off)
    if sys.stdout.isatty() and max(map(_width, lines)) > shutil.get_terminal_size().columns:
        lines = [line for part in _parts(table) for line in [*_aligned(part, on, off), ""]][:-1]
    return "\n".join([_titled(table), *lines, *([table.note] if table.note else [])])


def _parts(table: Table) -> list[Table]:
    """Return a table for each block of columns."""
    ends = list(accumulate(count for _, count in table.blocks()))
    parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    return [
        replace(table, columns=table.columns[part], rows=tuple((names, values[part]) for names, values in table.rows))
        for part in parts
    ]


def _aligned(table: Table, on: str, off: str) -> list[str]:
    """Return the lines of a table with aligned columns, two of them headers where there are blocks."""
    stub = len(table.stub)
    rows = [[_one_line(n) for n in names] + [_shown(v, on, off) for v in values] for names, values in table.rows]
    names = [*table.stub, *(name for _, name in table.columns)]
    widths = [max(_width(row[i]) for row in [names, *rows]) for i in range(len(names))]
    above, start = [" " * (sum(widths[:stub]) + 2 * (stub - 1))], stub
    for block, count in table.blocks():
        own = sum(widths[start : start + count]) + 2 * (count - 1)
        widths[start + count - 1] += max(0, len(block) - own)
        above.append(block.ljust(max(own, len(block))))
        start += count
    lines = ["  ".join(above).rstrip()] if any(block for block, _ in table.columns) else []
    for row in [names, ["-" * width for width in widths], *rows]:
        padded = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
    return lines


def markdown(tables: Sequence[Table]) -> str:
    """Write tables that GitHub and the Hub show; the best are bold."""
    return "\n\n".join(map(_markdown, tables))


def _markdown(table: Table) -> str:
    header = [*table.stub, *(" ".join(column).strip() for column in table.columns)]
    lines = [header, [*["---"] * len(table.stub), *["---:"] * len(table.columns)]]
    for names, values in table.rows:
        lines.append([*map(_markdown_name, names), *(_shown(value, "**", "**") for value in values)])
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([_titled(table), "", *rows, *(["", _markdown_name(table.note)] if table.note else [])])


def comma_separated(tables: Sequence[Table]) -> str:
    """Write the numbers as CSV in long form: one a row, with its standard error, seeds and the paper's number."""
    stubs = list(dict.fromkeys(name for table in tables for name in table.stub))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    measured = ("mean", "standard_error", "seeds", "paper", "paper_table")
    writer.writerow(["table", *stubs, "block", "column", *measured])
    for table in tables:
        for names, values in table.rows:
            named = dict(zip(table.stub, names, strict=True))
            for column, value in zip(table.columns, values, strict=True):
                if value is not None:
                    numbers = [value.mean, value.error, value.seeds or None, value.paper, value.paper_table]
                    shown = [f"{number:.4f}" if isinstance(number, float) else number for number in numbers]
                    writer.writerow([table.title, *(named.get(stub, "") for stub in stubs), *column, *shown])
    return out.getvalue().rstrip("\n")


def latex(tables: Sequence[Table]) -> str:
    """Write LaTeX tables that need no package; the best are bold, and the paper's numbers stand below ours."""
    return "\n\n".join(map(_latex_table, tables))


def _latex_table(table: Table) -> str:
    layout = "l" * len(table.stub) + "".join("|" + "c" * count for _, count in table.blocks())
    small = [r"\footnotesize", r"\setlength{\tabcolsep}{3pt}"]  # a table of class groups has twelve columns
    lines = [r"\begin{table*}", r"\centering", *small, rf"\caption{{{_latex(_caption(table))}}}"]
    lines += [rf"\begin{{tabular}}{{{layout}}}", r"\hline"]
    if any(block for block, _ in table.columns):
        spans = [rf"\multicolumn{{{count}}}{{|c}}{{{_latex(block)}}}" for block, count in table.blocks()]
        lines.append(" & ".join([*[""] * len(table.stub), *spans]) + r" \\")
    names = [*table.stub, *(name for _, name in table.columns)]
    lines += [" & ".join(map(_latex, names)) + r" \\", r"\hline"]
    for row, values in table.rows:
        lines.append(" & ".join([*map(_latex, row), *map(_latex_value, values)]) + r" \\")
        papers = [None if value is None else value.paper for value in values]
        if any(paper is not None for paper in papers):
            below = ["" if paper is None else f"{paper:.1f}" for paper in papers]
            lines.append(" & ".join([r"\quad paper", *[""] * (len(table.stub) - 1), *below]) + r" \\")
    lines += [r"\hline", r"\end{tabular}", *([rf"\\ {_latex(table.note)}"] if table.note else []), r"\end{table*}"]
    return "\n".join(lines)


def _caption(table: Table) -> str:
    """Return the title with the number of seeds, which would make every column wider."""
    seeds = sorted({value.seeds for value in table.values() if value.error is not None})
    title = table.title
    if seeds:
        count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        title += f"; mean ± standard error of {count} seeds"
    return title + ("; below them the paper's numbers" if any(v.paper is not None for v in table.values()) else "")


def _latex_value(value: Value | None) -> str:
    if value is None:
        return _latex(_MISSING)
    mean = rf"\textbf{{{value.mean:.1f}}}" if value.best else f"{value.mean:.1f}"
    return mean if value.error is None else rf"{mean}{{\tiny$\pm${value.error:.1f}}}"


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "text": text,
    "markdown": markdown,
    "csv": comma_separated,
    "latex": latex,
}


def _shown(value: Value | None, on: str, off: str) -> str:
    if value is None:
        return _MISSING
    own, behind = value.texts()
    return f"{on}{own}{off}{behind}" if value.best else own + behind


def _width(shown: str) -> int:
    return len(re.sub("\033\\[[01]m", "", shown))


def _one_line(name: str) -> str:
    return re.sub(r"\s+", " ", name)


def _markdown_name(name: str) -> str:
    return re.sub(r"([\\|*<>`\[\]])", r"\\\1", _one_line(name))


def _latex(name: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in _one_line(name))
