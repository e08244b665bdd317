"""What all figures share: size, colours, fonts, and the numbers as CSV beside the picture."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hf_balancemix.messages import mistake

Plot = TypeVar("Plot", bound=Callable[..., Any])

# Okabe and Ito's colours, which people with colour-blindness tell apart; the yellow is too pale for lines and last.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 3.3
"""Width of a figure in inches: a column of a two-column paper."""
_LONGEST_NAME = 24
# Names may be in any script; matplotlib's own font has no Chinese, Japanese, Korean, Thai or Devanagari.
_FALLBACKS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans",
    "WenQuanYi Zen Hei",
    "Unifont",
)


class MissingNumbersError(ValueError):
    """There is nothing to draw in what a figure was given; the message says what is missing."""


def missing(expected: str, found: str, remedy: str) -> MissingNumbersError:
    """Return the error for a figure without numbers."""
    return MissingNumbersError(str(mistake(expected, found, remedy)))


def styled(plot: Plot) -> Plot:
    """Let a function draw with small type, fonts for many scripts, and without reading formulas into names."""
    installed = set(get_font_names())
    small = dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7)
    settings = {
        "font.family": ["DejaVu Sans", *(name for name in _FALLBACKS if name in installed)],
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": True,
        "lines.linewidth": 1.2,
        "lines.markersize": 3.5,
        "text.parse_math": False,  # a $ in a class name is a $
        "text.usetex": False,
        "legend.frameon": False,
        **small,
    }
    return rc_context(settings)(plot)  # type: ignore[arg-type, return-value]


def new_figure(height: float) -> Figure:
    """Return a figure of a column's width; not of pyplot, so that no display is needed or changed.

    Args:
        height: In inches.
    """
    return Figure(figsize=(WIDTH, height), layout="constrained")


def plain_numbers(axis: Any, smallest: float, largest: float) -> None:
    """Let a logarithmic axis say 200 and not 2 × 10²; within two decades 1, 2, 5, 10, ... have ticks."""
    if smallest > 0 and largest < 100 * smallest:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}".replace(",", " ")))
    axis.set_minor_formatter(NullFormatter())


def shown(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return a name for a figure: in one line, cut if it is long. The CSV has it as it is."""
    line = " ".join(name.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def save(figure: Figure, path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a figure, and beside it, with the ending ``.csv``, its numbers (UTF-8). Existing files are replaced.

    Args:
        figure: To be written with 300 dots per inch.
        path: Where the picture goes; the ending decides the format. Its folder is made.
        header: Names of the columns.
        rows: Of the CSV; None and NaN become empty cells.

    Raises:
        ValueError: If the ending is not that of a picture.
    """
    path = Path(path)
    known = figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise mistake(
            f"a picture that ends in .png, .pdf or .svg, or another of {', '.join(known)}",
            repr(str(path)),
            "Choose another ending",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # Without a font for a script there are boxes; the CSV has the names.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(path, dpi=300)
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    """Return what a CSV holds: six digits, and nothing for NaN."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return value


@styled
def plot_class_ap(
    class_names: Sequence[str],
    ap: Sequence[float],
    groups: Mapping[str, Iterable[int]],
    path: str | os.PathLike[str],
    title: str = "",
) -> None:
    """Draw AP of each class as a bar, the highest above, in the colour of its group.

    Args:
        class_names: K names.
        ap: (K,) average precision in points; NaN for a class without value, which gets no bar.
        groups: Class indices by name of the group; may be empty.
        path: Where the picture goes; the ending decides the format. The numbers go beside it, as ``.csv``.
        title: Above the axes.

    Raises:
        ValueError: If the ending is not that of a picture.
    """
    group_of = {int(k): name for name, members in groups.items() for k in members}
    order = sorted(range(len(ap)), key=lambda k: (ap[k] != ap[k], -ap[k] if ap[k] == ap[k] else 0.0))
    figure = new_figure(0.8 + 0.14 * len(ap))
    axes = figure.subplots()
    for name, colour, hatch in zip([*groups, None], COLOURS, ("", "////", "....", "xxxx"), strict=False):
        members = [(place, ap[k]) for place, k in enumerate(order) if group_of.get(k) == name]
        if members:
            places, values = zip(*members, strict=True)
            axes.barh(places, values, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3, label=name)
    axes.set_yticks(range(len(order)), [shown(class_names[k]) for k in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set(xlabel="AP (points)", xlim=(0, 100), title=title)
    axes.grid(axis="x", alpha=0.3)
    if groups:
        figure.legend(loc="outside lower center", ncols=3, title=None)
    save(figure, path, ("class", "ap", "group"), [(class_names[k], float(ap[k]), group_of.get(k)) for k in order])
