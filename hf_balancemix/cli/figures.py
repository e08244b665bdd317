"""``hf-balancemix figures``: every figure that the results of a run or of several have the numbers for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_balancemix.compare.cells import OPTION_DEFAULTS, counted_settings, unread_options
from hf_balancemix.compare.results import Results, wrong_in_result
from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.formats import evaluation_labels
from hf_balancemix.data.images import drop_unreadable, read_images
from hf_balancemix.data.sparse_labels import sparse_labels
from hf_balancemix.drawing import MissingNumbersError
from hf_balancemix.label_files import FILE_NAME
from hf_balancemix.label_state import LabelState
from hf_balancemix.messages import mistake
from hf_balancemix.recipe import RECIPES
from hf_balancemix.recipe.job import labels_digest
from hf_balancemix.reports.figures import RunNumbers, named_apart, write_figures
from hf_balancemix.reports.rank_plot import plot_ranks
from hf_balancemix.training.checkpoints import FINAL_STATE, complete_checkpoints
from hf_balancemix.training.methods import METHODS

DESCRIPTION = """\
Draw what runs did: mAP over epochs, sampling, label shares and quality, confidence against AP, ranks, losses, ...

Reads the folder of a recipe's or a comparison's results, that of one run, or a file results.json or results.jsonl.
Each figure is a PNG of a column's width with its numbers as CSV beside it. What cannot be drawn is listed with the
reason: some figures need the label state of a run (in its folder, written by BalanceMix), and the one of re-labelled
images needs the training data."""
EXAMPLE = """examples:
  hf-balancemix figures runs/digits
  hf-balancemix figures runs/voc/balancemix-seed0 --data_dir VOCdevkit --out figures
  hf-balancemix figures recipes/results/digits/results.jsonl --out figures"""
_MOST_NAMED = 6
_NAMES = ("results.json", "results.jsonl")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of the command."""
    parser.add_argument("results", metavar="RUN_FOLDER_OR_RESULTS", help="Folder of runs, or a file of results.")
    parser.add_argument(
        "--out", metavar="DIR", help="Folder of the figures; figures/ beside the results unless given."
    )
    parser.add_argument("--data_dir", metavar="DIR", help="The training data, for the figure of re-labelled images.")


def run(options: argparse.Namespace) -> None:
    """Write the figures.

    Raises:
        ValueError: For everything that the user can set right.
    """
    path = _results_file(Path(options.results))
    entries = _read(path)
    out = path.parent / "figures" if options.out is None else Path(options.out)
    if out.exists() and not out.is_dir():
        raise mistake("as --out a folder, or none yet", f"the file {str(out)!r}", "Choose another one")
    folders = _run_folders(path.parent)
    written: list[Path] = []
    absent: dict[str, str] = {}
    names: list[str] = []
    groups = _comparable(entries)
    data: dict[str, Any] = {}
    ranked: list[dict[str, Any]] = []  # over all noises, with the settings of the first run
    noise = ("noise", "noise_rate")
    for group in groups:
        title, name = _noise(group[0])
        names.append(name)
        if names.count(name) > 1:  # the same noise with other settings
            title += f", settings {names.count(name)}"
            name = f"{name}-{names.count(name)}"
        numbers = named_apart([_numbers(entry, folders, data, options.data_dir) for entry in group], counted_settings)
        for line in _variants(numbers):
            print(f"{title}: {line}")
        if _shared(group[0]["settings"], noise) == _shared(entries[0]["settings"], noise):
            ranked += [run.entry for run in numbers if run.entry["method"] in METHODS]  # no variants
        folder = out / name if len(groups) > 1 else out
        own, missing = write_figures(numbers, folder, title)
        written += own
        absent |= {str((folder / figure).relative_to(out)): reason for figure, reason in missing.items()}
    ranks = out / "ranks.png"
    try:
        plot_ranks(ranked, ranks, str(_data(entries[0])))
        written.append(ranks)
    except MissingNumbersError as error:
        absent["ranks"] = str(error)
    for picture in written:
        print(picture)
    _print_absent(absent)
    print(f"\n{len(written)} figures in {out}, each with its numbers as CSV beside it")


def _variants(runs: Sequence[RunNumbers]) -> list[str]:
    """Say how the settings of each numbered variant differ from those of the runs that keep the method's name."""
    counted = {run.entry["method"]: counted_settings(run.entry["settings"]) for run in runs}
    lines = []
    for name, own in counted.items():
        plain = counted.get(own["method"], {})
        changed = [key for key in {**plain, **own} if plain.get(key) != own.get(key) and key != "seed"]
        if name != own["method"]:
            lines.append(f"{name}: {', '.join(f'{key} {own.get(key, OPTION_DEFAULTS.get(key))}' for key in changed)}")
    return lines


def _print_absent(absent: Mapping[str, str]) -> None:
    """Say which figures there are not, and why: by their names if these are few, else by kind."""
    for reason in dict.fromkeys(absent.values()):
        names = [name for name in absent if absent[name] == reason]
        if len(names) > _MOST_NAMED:
            kinds = dict.fromkeys(name.rpartition("/")[2].partition("-")[0] for name in names)
            names = [f"{len(names)} of {', '.join(kinds)}"]
        print(f"\nnot drawn: {', '.join(names)}\n  {reason}")


def _results_file(path: Path) -> Path:
    """Return the file of results that was meant."""
    found = [path / name for name in _NAMES if (path / name).is_file()] if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise mistake(
            f"results ({' or '.join(_NAMES)}) at {str(path)!r}",
            "a folder without them" if path.is_dir() else "no such file or folder",
            "Name the output folder of a recipe or a comparison, or that of one of its finished runs",
        )
    return found[0]


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a file of results; there is at least one."""
    remedy = "Name a file that a recipe or `hf-balancemix compare` has written"
    if path.suffix == ".jsonl":
        results = Results(path.parent)
        results.path = path
        entries: Any = results.read()
    else:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # no UTF-8 either
            raise mistake(f"JSON in {str(path)!r}", f"something else ({error})", remedy) from error
        entries = content.get("runs") if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise mistake(f'an object with a list "runs" in {str(path)!r}', "none", remedy)
        for number, entry in enumerate(entries, start=1):
            lacks = wrong_in_result(entry) if isinstance(entry, dict) else "an object"
            if lacks:
                raise mistake(f"{lacks} in run {number} of {str(path)!r}", "something else", remedy)
    unknown = next((entry["method"] for entry in entries if entry["settings"].get("method") not in METHODS), None)
    if unknown is not None:
        raise mistake(f"methods that are known in {str(path)!r}", repr(unknown), remedy)
    if not entries:
        raise mistake(f"a finished run in {str(path)!r}", "none", "Wait until one is finished")
    return list(entries)


def _comparable(entries: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Sort runs into groups alike but for method, seed and the options that only some methods read."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(_shared(entry["settings"]), []).append(entry)
    return list(groups.values())


def _shared(settings: Mapping[str, Any], without: tuple[str, ...] = ()) -> str:
    """Return the settings that have a meaning for every method."""
    plain = {**settings, "method": "bce", **METHODS["bce"].options}
    own = {*METHODS[settings["method"]].options, *METHODS["bce"].options, *unread_options(plain), *without}
    counted = counted_settings({**settings, **METHODS["bce"].options, "method": "bce", "seed": 0})
    return json.dumps({name: value for name, value in counted.items() if name not in own}, sort_keys=True)


def _data(entry: Mapping[str, Any]) -> Any:
    return entry["settings"]["data"].get("recipe")


def _noise(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Return data and noise as a title, and the noise as the name of a folder."""
    kind, rate = entry["noise"], entry["noise_rate"]
    shown = "labels as given" if kind == "none" else kind.replace("_", " ")
    shown += "" if rate is None else f" {rate:.0%}"
    return f"{_data(entry)}, {shown}", kind if rate is None else f"{kind}-{rate:g}"


def _settings_key(settings: Mapping[str, Any]) -> str:
    """Return what identifies a run; the copy of its results in its own folder names no folder of a backbone."""
    kept = {name: value for name, value in settings.items() if name != "backbone"}
    return json.dumps(kept, sort_keys=True)


def _run_folders(root: Path) -> dict[str, Path]:
    """Return the folders of runs in or at ``root``, by their settings."""
    files = [
        root / "settings.json",
        *sorted(root.glob("*/settings.json")),
        *sorted(root.glob("cells/*/settings.json")),
    ]
    found = {}
    for path in files:
        if path.is_file():
            found[_settings_key(json.loads(path.read_text(encoding="utf-8")))] = path.parent
    return found


def _numbers(
    entry: dict[str, Any], folders: Mapping[str, Path], data: dict[str, Any], data_dir: str | None
) -> RunNumbers:
    """Gather what is known of a run; ``data`` keeps the training sets that were loaded."""
    recipe = RECIPES.get(str(entry["settings"]["data"].get("recipe")))
    folder = folders.get(_settings_key(entry["settings"]))
    remedy = "Name the output folder of the training; of the methods only those with BalanceMix's statistics write one"
    groups = recipe.groups if recipe is not None else None
    if folder is None:
        return RunNumbers(
            entry, no_state=str(mistake("the folder of the run beside its results", "none", remedy)), groups=groups
        )
    places = [folder / FINAL_STATE, *reversed(complete_checkpoints(folder))]
    place = next((place for place in places if (place / FILE_NAME).is_file()), None)
    if place is None:
        return RunNumbers(
            entry, no_state=str(mistake(f"{FILE_NAME} in the folder of the run", "none", remedy)), groups=groups
        )
    state, _ = LabelState.load(place)
    if state.posterior is None:  # no label to show
        reason = str(mistake("refined labels", "none", "Only refinement re-labels images"))
        return RunNumbers(entry, state, no_images=reason, groups=groups)
    key = json.dumps([entry["settings"]["data"], entry["settings"].get("on_bad_image")], sort_keys=True)
    if key not in data:
        data[key] = _training_split(entry["settings"], data_dir)
    split, truth, reason = data[key]
    if split is None:
        return RunNumbers(entry, state, no_images=reason, groups=groups)
    return RunNumbers(
        entry,
        state,
        images=lambda row: read_images(split, "image", [row])[0],
        clean_labels=truth if entry["noise"] != "none" else None,
        groups=groups,
    )


def _training_split(settings: Mapping[str, Any], data_dir: str | None) -> tuple[Any, Any, str]:
    """Return the training images and the labels that they had before noise, or why they are not at hand.

    Raises:
        ValueError: If the data are not those of the run.
    """
    name = str(settings["data"].get("recipe"))
    recipe = RECIPES.get(name)
    if recipe is None or (recipe.data is not None and data_dir is None):
        reason = mistake(f"the training images of {name}", "no --data_dir", "Name their folder with --data_dir")
        return None, None, str(reason)
    wanted = {}
    if recipe.data is not None:
        own = {field.name for field in fields(recipe.data)}
        wanted = {key: value for key, value in settings["data"].items() if key in own} | {"data_dir": data_dir}
    splits = recipe.load(**wanted)
    if settings.get("on_bad_image") == "skip":
        for part in splits:
            splits[part], _ = drop_unreadable(splits[part])
    train, class_names = sparse_labels(splits["train"])
    test = evaluation_labels(splits["test"], encode_labels(splits["test"], class_names=class_names))
    if labels_digest(class_names, train, test) != settings["data"].get("digest"):
        raise mistake(
            "the data that the run was trained on",
            f"others, with {len(train)} training images",
            "Name the folder that the training had as --data_dir, or leave it out to do without re-labelled images",
        )
    return splits["train"].select_columns(["image"]), train.dense(slice(None)).numpy(), ""
