"""Which rows of the paper's tables a run is a counterpart of: the same method, trained as the paper has it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from hf_balancemix.compare.cells import OPTION_DEFAULTS, unread_options
from hf_balancemix.compare.grid import preset_path, read_grid
from hf_balancemix.recipe import RECIPES
from hf_balancemix.recipe.options import SINGLE_POSITIVE_THRESHOLD
from hf_balancemix.reports.paper import PAPER_NAMES, has_number
from hf_balancemix.training.methods import METHODS

# The recipes whose defaults are the paper's training, and what is the paper's of the data where nothing is said.
_PAPERS = {RECIPES[name].name: RECIPES[name] for name in ("coco", "voc", "deepfashion")}
_DATA = {"COCO": {"year": "2017"}}
# Tables whose rows differ in options, and not only in the method.
_TABLES_OF_OPTIONS = ("table6", "table8", "table12")
# What the result is not about: the run itself, how exactly it is computed, and where in memory.
_FREE = {"method", "noise", "noise_rate", "seed", "on_bad_image", "bf16", "fp16", "channels_last"}


def counterparts(settings: Mapping[str, Any], label: str | None = None) -> tuple[tuple[str, ...], str]:
    """Return the paper's rows that a run belongs to, and else in what it differs from the nearest of them.

    A run does if all options that its method reads are the recipe's defaults, which are the paper's as far as it says,
    or for the tables of options those of its row. Options of speed and precision do not count.

    Args:
        settings: Of the run.
        label: What the grid calls it; the row of this name then comes first.

    Returns:
        Names of rows, and no words; or no names, and the options that differ, with the paper's values. Neither for a
        run of which the paper has nothing, whatever its options.
    """
    data, method = settings["data"], settings["method"]
    if data.get("recipe") not in _PAPERS or method not in METHODS:
        return (), ""
    rows: list[tuple[str, Mapping[str, str]]] = [(name, {}) for name in PAPER_NAMES.get(method, ())]
    rows += [(name, own) for name, of, own in _rows_of_options() if of == method]
    noise = settings["noise"], settings["noise_rate"]
    differing = {name: _differences(settings, own) for name, own in rows if has_number(data["recipe"], name, *noise)}
    same = [name for name, found in differing.items() if not found]
    if same:
        return tuple(sorted(same, key=lambda name: name != label)), ""
    nearest = min(differing.values(), key=len) if differing else []
    return (), ", ".join(nearest)


@functools.cache
def _rows_of_options() -> list[tuple[str, str, dict[str, str]]]:
    """Return name, method and options of each row of those tables, as the presets have them."""
    rows = []
    for table in _TABLES_OF_OPTIONS:
        for block in read_grid(preset_path(table)).blocks:
            own = dict(word.removeprefix("--").split("=", 1) for word in block.words)
            rows += [(str(block.label), method, own) for method in block.methods]
    return rows


def _differences(settings: Mapping[str, Any], own: Mapping[str, str]) -> list[str]:
    """Return each option that is not as in the paper, with its value there; ``own`` are those of the paper's row."""
    recipe, method = _PAPERS[settings["data"]["recipe"]], settings["method"]
    paper = {**OPTION_DEFAULTS, **recipe.defaults}
    if settings["noise"] == "single_positive":
        paper["relabel_threshold"] = SINGLE_POSITIVE_THRESHOLD
    paper |= {**METHODS[method].options, **own}
    paper["images_per_step"] = paper["total_batch_size"]
    of_data = {f.name: f.default for f in fields(recipe.data) if f.default is not MISSING} if recipe.data else {}
    of_data |= {**_DATA.get(recipe.name, {}), **{name: value for name, value in own.items() if name in of_data}}
    unread = unread_options(settings) | _FREE
    pairs = [(name, value, paper[name]) for name, value in settings.items() if name in paper and name not in unread]
    pairs += [(name, value, of_data[name]) for name, value in settings["data"].items() if name in of_data]
    return [
        f"{name} {_shown(value)} instead of {_shown(theirs)}"
        for name, value, theirs in pairs
        if _plain(value) != _plain(theirs)
    ]


def _plain(value: Any) -> str:
    """Return the same for an option's name and for the member of an enumeration that it was made to."""
    return _shown(value).lower()


def _shown(value: Any) -> str:
    """Return ``cosine`` for ``SchedulerType.COSINE``, numbers in few digits, anything else as it is."""
    try:
        return "True" if value is True else f"{float(value):.10g}"
    except (TypeError, ValueError):
        text = str(value)
    member = re.sub(r"^[A-Z]\w+\.(?=[A-Z])", "", text)
    return text if member == text else member.lower()
