"""What ``audit`` and ``apply-review`` share: the run with its label state, and its training data, read again."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import datasets

from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.folder import load_validation
from hf_balancemix.data.images import check_files, drop_unreadable
from hf_balancemix.data.noise import NoiseSpec, inject_noise
from hf_balancemix.label_files import FILE_NAME
from hf_balancemix.label_state import LabelState
from hf_balancemix.messages import mistake, nearest, some
from hf_balancemix.recipe import RECIPES
from hf_balancemix.training.checkpoints import FINAL_STATE

# Options of the data, by the names that the loaders of the recipes have for them.
_OF_DATA = {
    "data_dir": "Folder of the data that the run was trained on.",
    "dataset": "Its name on the Hub.",
    "dataset_config": "Its configuration, if it has several.",
    "image_column": "Found unless given.",
    "label_column": "Found unless given.",
    "label_delimiter": "What separates labels in a text; found unless given.",
    "year": "Of the COCO or VOC data, as in their recipes.",
}
_SAVED = "last-checkpoint"  # what a run keeps on the Hub


@dataclass(frozen=True)
class AuditedRun:
    """A label state with what is known about its run.

    Attributes:
        folder: Where the state lies.
        state: The label state.
        facts: About the run, as every checkpoint has them.
        settings: Of the recipe that made it (``settings.json``); nothing where none did.
    """

    folder: Path
    state: LabelState
    facts: dict[str, Any]
    settings: dict[str, Any]


def load_run(path: str) -> AuditedRun:
    """Load the label state of a run, the one after its last epoch or else of its newest checkpoint.

    Args:
        path: Folder of a run, of a checkpoint, or of what was fetched from the Hub.

    Raises:
        ValueError: If there is none, or if it is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        remedy = "Check the path; fetch a repository of the Hub with `hf download NAME --local-dir FOLDER`"
        raise mistake("the folder of a run or of a checkpoint", f"no folder {path!r}", remedy)
    numbered = {int(m[1]): p for p in folder.iterdir() if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))}
    newest_first = [numbered[number] for number in sorted(numbered, reverse=True)]
    places = [folder, folder / FINAL_STATE, *newest_first, folder / _SAVED]
    found = next((place for place in places if (place / FILE_NAME).is_file()), None)
    if found is None:
        inside = sorted({str(p.parent.parent) for p in folder.glob(f"*/*/{FILE_NAME}")})
        near = f" (did you mean {' or '.join(map(repr, inside[:4]))}?)" if inside else ""
        found_none = f"no {FILE_NAME} in {path!r} or its checkpoints{near}"
        raise mistake("a run with a label state", found_none, "Name the output folder of a run")
    state, facts = LabelState.load(found)
    settings = next((p for p in (found / "settings.json", found.parent / "settings.json") if p.is_file()), None)
    return AuditedRun(found, state, facts, _read_settings(settings) if settings else {})


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise mistake("settings of a recipe's run", f"{str(path)!r} ({error})", "Restore or delete it") from error
    known = isinstance(settings, dict) and isinstance(settings.get("data"), dict)
    return settings if known else {}


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the training data are."""
    for name, text in _OF_DATA.items():
        parser.add_argument(f"--{name}", metavar=name.rpartition("_")[2].upper(), help=text)
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"Whose data they are: {', '.join(RECIPES)} (the run's own if a recipe made it, else folder).",
    )


def load_run_splits(options: argparse.Namespace, run: AuditedRun | None) -> datasets.DatasetDict | None:
    """Read the splits again as the run had them, the noise that it injected into the training split included.

    What the options leave open is as in the recipe's run.

    Args:
        options: Those of :func:`add_data_options`.
        run: The run; if None, nothing is known but the options.

    Returns:
        ``train`` and, unless the run was trained on all rows, ``test``, with columns ``image`` and ``labels`` among
        others; None if nobody says where the data are.

    Raises:
        ValueError: For options that do not fit, for data that cannot be read, and for others than the run's.
    """
    given = {name: getattr(options, name) for name in _OF_DATA if getattr(options, name) is not None}
    settings = run.settings if run is not None else {}
    before = {name: value for name, value in settings.get("data", {}).items() if value is not None}
    own = next((key for key, recipe in RECIPES.items() if recipe.name == before.get("recipe")), None)
    name = options.recipe or own or "folder"
    _check_options(name, given)
    allowed = _options_of(name)
    if name == own:
        # One source takes the place of the other.
        replaced = {"dataset", "dataset_config"} if "data_dir" in given else set()
        given = {k: v for k, v in before.items() if k in allowed and k not in replaced} | given
    asked = options.recipe is not None
    if not (asked or {"data_dir", "dataset"} & set(given) or (name == own and "data_dir" not in allowed)):
        if given.keys() - before.keys():
            raise mistake("the data with their options", "no --data_dir or --dataset", "Say where they are")
        return None
    if name == "folder" and run is not None:
        given = {"class_names": list(run.state.class_names)} | given
    splits = RECIPES[name].load(**given)
    if name == "folder" != own and run is not None and sum(map(len, splits.values())) == len(run.state):
        # The recipe holds images out for a test, this run did not.
        splits = datasets.DatasetDict(train=load_validation(**given, split="train")[1])
    for split in splits:
        if settings.get("on_bad_image") == "skip":
            splits[split], _ = drop_unreadable(splits[split], "image")
        else:
            check_files(splits[split], "image", split)
    if run is not None:
        if noise := run.facts.get("noise"):
            splits["train"] = inject_noise(splits["train"], [NoiseSpec(**spec) for spec in noise])
        _check_same(splits["train"], run)
    return splits


def _options_of(recipe: str) -> set[str]:
    kind = RECIPES[recipe].data
    return {field.name for field in fields(kind)} | set(RECIPES[recipe].trainer_options) if kind else set()


def _check_options(recipe: str, given: dict[str, Any]) -> None:
    if recipe not in RECIPES:
        found = f"{recipe!r}{nearest(recipe, RECIPES)}"
        raise mistake(f"as --recipe one of {', '.join(RECIPES)}", found, "Leave it out for your own images")
    if odd := sorted(given.keys() - _options_of(recipe)):
        raise mistake(f"no --{odd[0]} with the data of the recipe {recipe}", "it", "Leave it out")


def _check_same(rows: datasets.Dataset, run: AuditedRun) -> None:
    """Refuse data with other labels than those that the run was given."""
    table, state = encode_labels(rows), run.state
    remedy = "Pass the data that it was trained on, unchanged, or leave them out for CSV and Parquet alone"
    if table.class_names != state.class_names:
        new = [name for name in table.class_names if name not in state.class_names]
        found = f"{len(table.class_names)}, of which {some(new)} are new" if new else some(table.class_names)
        raise mistake(f"the {len(state.class_names)} classes of the run", found, remedy)
    if len(rows) != len(state):
        raise mistake(f"the {len(state)} training images of the run", f"{len(rows)} in these data", remedy)
    different = (table.labels != state.labels.numpy()).any(axis=1)
    if different.any():
        found = f"others in {int(different.sum())} of {len(rows)} rows, first in row {int(different.argmax())}"
        raise mistake("the given labels of the run", found, remedy)
