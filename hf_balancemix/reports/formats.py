"""Tables of results as text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
import shutil
import sys
from collections.abc import Callable
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
    **{sign: f"\\{sign}" for sign in "&%$#_"},
}


@dataclass(frozen=True)
class Value:
    """What stands in a place of a table.

    Attributes:
        mean: Over the seeds.
        error: Standard error; None for one seed.
        seeds: How many.
        paper: The paper's number, if there is one.
        best: Whether none of its column is better, as far as the table shows.
    """

    mean: float
    error: float | None = None
    seeds: int = 1
    paper: float | None = None
    best: bool = False

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


def text(table: Table) -> str:
    """Align columns for a terminal, where the best are bold; in a file a star marks them.

    Blocks that do not fit beside one another in a terminal stand below one another.
    """
    on, off = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "*")
    lines = _aligned(table, on, off)
    if sys.stdout.isatty() and max(map(_width, lines)) > shutil.get_terminal_size().columns:
        lines = [line for part in _parts(table) for line in [*_aligned(part, on, off), ""]][:-1]
    return "\n".join([table.title, *lines, *([table.note] if table.note else [])])


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


def markdown(table: Table) -> str:
    """Write a table that GitHub and the Hub show; the best are bold."""
    header = [*table.stub, *(" ".join(column).strip() for column in table.columns)]
    lines = [header, [*["---"] * len(table.stub), *["---:"] * len(table.columns)]]
    for names, values in table.rows:
        lines.append([*map(_markdown_name, names), *(_shown(value, "**", "**") for value in values)])
    return "\n".join(
        [table.title, "", *(f"| {' | '.join(line)} |" for line in lines), *(["", table.note] if table.note else [])]
    )


def comma_separated(table: Table) -> str:
    """Write the numbers as CSV: mean, and where there are any standard error, seeds and the paper's number."""
    used: list[list[str]] = []
    for i in range(len(table.columns)):
        column = [value for _, row in table.rows if (value := row[i]) is not None]
        some = {
            "error": any(value.error is not None for value in column),
            "seeds": any(value.seeds > 1 for value in column),
            "paper": any(value.paper is not None for value in column),
        }
        used.append([part for part, there in some.items() if there])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = [" ".join(column).strip() for column in table.columns]
    expanded = [
        title for name, own in zip(header, used, strict=True) for title in [name, *(f"{name} {p}" for p in own)]
    ]
    writer.writerow(["table", *table.stub, *expanded])
    for names, values in table.rows:
        numbers: list[str] = []
        for value, own in zip(values, used, strict=True):
            cells = [None if value is None else value.mean, *(getattr(value, part, None) for part in own)]
            numbers += [
                "" if number is None else f"{number:g}" if isinstance(number, int) else f"{number:.4f}"
                for number in cells
            ]
        writer.writerow([table.title, *names, *numbers])
    return out.getvalue().rstrip("\n")


def latex(table: Table) -> str:
    """Write a LaTeX table that needs no package; the best are bold."""
    layout = "l" * len(table.stub) + "".join("|" + "c" * count for _, count in table.blocks())
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title)}}}", rf"\begin{{tabular}}{{{layout}}}"]
    lines.append(r"\hline")
    if any(block for block, _ in table.columns):
        spans = [rf"\multicolumn{{{count}}}{{|c}}{{{_latex(block)}}}" for block, count in table.blocks()]
        lines.append(" & ".join([*[""] * len(table.stub), *spans]) + r" \\")
    names = [*table.stub, *(name for _, name in table.columns)]
    lines += [" & ".join(map(_latex, names)) + r" \\", r"\hline"]
    for row, values in table.rows:
        shown = [_latex(_shown(value, "", "")) for value in values]
        marked = [rf"\textbf{{{t}}}" if v is not None and v.best else t for t, v in zip(shown, values, strict=True)]
        lines.append(" & ".join([*map(_latex, row), *marked]) + r" \\")
    lines += [r"\hline", r"\end{tabular}", *([rf"\\ {_latex(table.note)}"] if table.note else []), r"\end{table}"]
    return "\n".join(lines)


FORMATS: dict[str, Callable[[Table], str]] = {
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
