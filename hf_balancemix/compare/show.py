"""From a file of results to tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from hf_balancemix.compare.cells import Cell, cell_id, counted_settings, without_data
from hf_balancemix.compare.command import Options
from hf_balancemix.compare.grid import Noise
from hf_balancemix.compare.results import Line, Results
from hf_balancemix.messages import mistake
from hf_balancemix.reports.comparison import Row, tables
from hf_balancemix.reports.formats import FORMATS
from hf_balancemix.training.methods import METHODS

_OF_COLUMN = ("noise", "noise_rate", "seed")


def print_tables(results: Results, options: Options, cells: Sequence[Cell]) -> None:
    """Print the tables of a comparison: of the cells of its grid, or with ``--show`` and no file all that there are.

    Raises:
        ValueError: If there are none.
    """
    lines = results.read()
    if not lines and not options.show:  # every run has failed
        return
    if not lines:
        raise mistake(
            f"results in {results.path}",
            "an empty file" if results.path.is_file() else "no such file",
            "Run the comparison first, without --show, or name its --output_dir",
        )
    own = [line for line in lines if line["settings"]["data"].get("recipe") == options.recipe.name]
    if options.from_file or not options.show:
        rows = rows_of_grid(cells, own)
    else:
        rows = rows_of_file([line for line in own if _asked_for(line, options)])
    if not any(row.runs for row in rows):
        if options.show:
            found = ", ".join(sorted({str(line["settings"]["data"].get("recipe")) for line in lines}))
            raise mistake(
                f"results in {results.path} that are asked for",
                f"{len(lines)} others, of {found}",
                "Ask for fewer things, or give the options that the runs had",
            )
        return
    made = tables(rows, options.layout, options.grid.paper_table)
    tqdm.write("\n\n".join(FORMATS[options.format](table) for table in made))


def _asked_for(line: Line, options: Options) -> bool:
    noise = Noise(line["noise"], line["noise_rate"])
    return (options.methods is None or line["method"] in options.methods) and (
        options.noises is None or noise in options.noises
    )


def rows_of_grid(cells: Sequence[Cell], lines: Sequence[Line]) -> list[Row]:
    """Return the rows that a grid asks for; results are found by their settings, whatever data they were made on.

    Args:
        cells: Of the grid, planned with or without data.
        lines: Results.
    """
    by_settings: dict[str, list[Line]] = {}
    for line in lines:
        by_settings.setdefault(cell_id(without_data(line["settings"])), []).append(line)
    runs: dict[tuple[str, str | None], list[Line]] = {}
    for cell in cells:
        block, method = cell.request.block, cell.plan.settings["method"]
        name = (
            method if block.label is None else block.label if len(block.methods) == 1 else f"{method}, {block.label}"
        )
        found = by_settings.get(cell_id(without_data(cell.plan.settings)), [])
        runs.setdefault((name, block.label), []).extend(found)
    return [row for (name, label), found in runs.items() for row in _split(found, name, label)]


def rows_of_file(lines: Sequence[Line]) -> list[Row]:
    """Return a row for each method and each variant of it, in the order of the methods."""
    methods = list(dict.fromkeys([*METHODS, *(line["method"] for line in lines)]))
    return [row for method in methods for row in _split([line for line in lines if line["method"] == method], method)]


def _split(lines: Sequence[Line], name: str, label: str | None = None) -> list[Row]:
    """Keep runs with other settings apart: those options that differ between runs under one noise name the row."""
    counted = [{k: v for k, v in counted_settings(line["settings"]).items() if k not in _OF_COLUMN} for line in lines]
    columns: dict[Any, list[Mapping[str, Any]]] = {}
    for line, settings in zip(lines, counted, strict=True):
        columns.setdefault((line["noise"], line["noise_rate"]), []).append(settings)
    differing = sorted(
        {
            name
            for column in columns.values()
            for name in {name for settings in column for name in settings}
            if len({str(settings.get(name)) for settings in column}) > 1
        }
    )
    variants: dict[tuple[str, ...], list[Line]] = {}
    for line, settings in zip(lines, counted, strict=True):
        variants.setdefault(tuple(str(settings.get(name)) for name in differing), []).append(line)
    rows = []
    for found in variants.values():
        shown = ", ".join(f"{key}={_shown(found[0]['settings'].get(key))}" for key in differing)
        rows.append(Row(name + (f" ({shown})" if shown else ""), label, tuple(found)))
    return rows


def _shown(value: Any) -> str:
    """Return a setting in few words; of data what tells them apart."""
    if isinstance(value, Mapping):
        return "/".join(str(item) for item in value.values() if item is not None)
    return str(value)
