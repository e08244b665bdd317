"""From a file of results to tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_balancemix.compare.cells import (
    Cell,
    canonical,
    cell_id,
    counted_settings,
    lookup_ids,
    unread_options,
)
from hf_balancemix.compare.command import Options
from hf_balancemix.compare.counterparts import counterparts
from hf_balancemix.compare.grid import ORDER, Noise
from hf_balancemix.compare.results import Line, Results
from hf_balancemix.messages import mistake
from hf_balancemix.recipe.command import recipe_parser
from hf_balancemix.reports.comparison import Row, tables
from hf_balancemix.reports.formats import FORMATS
from hf_balancemix.training.methods import METHODS

_OF_COLUMN = ("noise", "noise_rate", "seed")
_BATCH = ("total_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
# What a publication calls the methods; terminals show the names that are typed.
_PUBLISHED = {
    "bce": "BCE",
    "mixup": "Mixup",
    "focal": "Focal",
    "asl": "ASL",
    "ll_r": "LL-R",
    "ll_ct": "LL-Ct",
    "co_teaching": "Co-teaching",
    "t_estimator": "T-estimator",
    "minority": "Minority sampler",
    "clean": "Clean labels",
    "relabelled": "Re-labelled labels",
    "balancemix_no_minority": "BalanceMix without minority sampler",
    "balancemix": "BalanceMix",
}


def print_tables(results: Results, options: Options, cells: Sequence[Cell]) -> None:
    """Print the tables of the cells of a grid.

    Raises:
        ValueError: With ``--show``, if there are none.
    """
    lines = _read(results, options)
    rows = rows_of_grid(cells, _of_data(lines, options), _names(options))
    _print(rows, lines, results, options)


def print_file(options: Options, output_dir: str) -> None:
    """Print the tables of all results that there are, or of those that the options pick out.

    Args:
        options: With ``--show``, and no ``--config``.
        output_dir: Where the results are unless the options say otherwise.

    Raises:
        ValueError: If there are none.
    """
    asked = _asked_settings(options)
    results = Results(Path(str(asked.get("output_dir", output_dir))))
    lines = _read(results, options)
    kept = [line for line in _of_data(lines, options) if _asked_for(line, options, asked)]
    _print(rows_of_file(kept, options.methods or ORDER, _names(options)), lines, results, options)


def _names(options: Options) -> Mapping[str, str]:
    return _PUBLISHED if options.format == "latex" else {}


def _of_data(lines: Sequence[Line], options: Options) -> list[Line]:
    return [line for line in lines if line["settings"]["data"].get("recipe") == options.recipe.name]


def _read(results: Results, options: Options) -> list[Line]:
    lines = results.read()
    if options.show and not lines:
        raise mistake(
            f"results in {results.path}",
            "an empty file" if results.path.is_file() else "no such file",
            "Run the comparison first, without --show, or name its --output_dir",
        )
    return lines


def _print(rows: Sequence[Row], lines: Sequence[Line], results: Results, options: Options) -> None:
    """Print tables; after a comparison of which every run has failed there are none."""
    made = tables(rows, options.layout, options.grid.paper_table)
    if made:
        tqdm.write(FORMATS[options.format](made))
    elif options.show and any(row.runs for row in rows):
        raise mistake(
            f"results with what --layout {options.layout} shows", f"none in {results.path}", "Choose another layout"
        )
    elif options.show:
        found = ", ".join(sorted({str(line["settings"]["data"].get("recipe")) for line in lines}))
        raise mistake(
            f"results in {results.path} that are asked for",
            f"{len(lines)} others, of {found}",
            "Ask for fewer things, or give the options that the runs had",
        )


def _asked_settings(options: Options) -> dict[str, Any]:
    """Return what the options of the recipe say of a run's settings."""
    parser = recipe_parser(options.recipe)
    values: dict[str, Any] = {}
    for part in parser.parse(options.words):
        values |= vars(part)
    asked = {name: values[name] for name in parser.given}
    if asked.keys() & set(_BATCH):
        total = None if "per_device_train_batch_size" in asked else values["total_batch_size"]
        steps = values["gradient_accumulation_steps"]
        asked["images_per_step"] = total or values["per_device_train_batch_size"] * steps
    return asked


def _asked_for(line: Line, options: Options, asked: Mapping[str, Any]) -> bool:
    first = int(asked.get("seed", 0))
    said = {**line["settings"]["data"], **line["settings"]}
    unread = {*unread_options(line["settings"]), "seed"}
    return (
        (options.methods is None or line["method"] in options.methods)
        and (options.noises is None or Noise(line["noise"], line["noise_rate"]) in options.noises)
        and first <= line["seed"] < (math.inf if options.seeds is None else first + options.seeds)
        and all(_same(said[name], value) for name, value in asked.items() if name in said and name not in unread)
    )


def _same(noted: Any, asked: Any) -> bool:
    """Compare what a line notes, of some options as text, with what is asked for."""
    return canonical(noted) in (canonical(asked), canonical(str(asked)))


def rows_of_grid(cells: Sequence[Cell], lines: Sequence[Line], names: Mapping[str, str]) -> list[Row]:
    """Return the rows that a grid asks for; results are found by their settings, whatever data they were made on.

    Args:
        cells: Of the grid, planned with or without data.
        lines: Results.
        names: What to call methods in place of their own names.
    """
    by_settings: dict[str, list[Line]] = {}
    for line in lines:
        for known in lookup_ids(line["settings"]):
            by_settings.setdefault(known, []).append(line)
    runs: dict[tuple[str, str | None], dict[str, Line]] = {}
    for cell in cells:
        block, method = cell.request.block, cell.plan.settings["method"]
        name = names.get(method, method)
        if block.label is not None:
            name = block.label if len(block.methods) == 1 else f"{name}, {block.label}"
        found = by_settings.get(lookup_ids(cell.plan.settings)[0], [])
        runs.setdefault((name, block.label), {}).update({cell_id(line["settings"]): line for line in found})
    return [row for (name, label), found in runs.items() for row in _split(list(found.values()), name, label)]


def rows_of_file(lines: Sequence[Line], order: Sequence[str], names: Mapping[str, str]) -> list[Row]:
    """Return a row for each method and each variant of it.

    Args:
        lines: Results.
        order: Of the methods; others follow.
        names: What to call methods in place of their own names.
    """
    methods = list(dict.fromkeys([*order, *METHODS, *(line["method"] for line in lines)]))
    of_method = {method: [line for line in lines if line["method"] == method] for method in methods}
    return [row for method, found in of_method.items() for row in _split(found, names.get(method, method))]


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
        rows.append(_row(name + (f" ({shown})" if shown else ""), found, label))
    return rows


def _row(name: str, lines: Sequence[Line], label: str | None) -> Row:
    """Return a row with what the paper has beside it; under one noise its runs have the same settings."""
    by_noise = {(line["noise"], line["noise_rate"]): line["settings"] for line in lines}
    found = {noise: counterparts(settings, label) for noise, settings in by_noise.items()}
    differs = dict.fromkeys(words for _, words in found.values() if words)
    return Row(name, tuple(lines), {noise: names for noise, (names, _) in found.items()}, "; ".join(differs))


def _shown(value: Any) -> str:
    """Return a setting in few words; of data what tells them apart."""
    if isinstance(value, Mapping):
        return "/".join(str(item) for item in value.values() if item is not None)
    return str(value)
