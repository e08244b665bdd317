"""The cells of a comparison: one run each, identified by what its result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from hf_balancemix.compare.grid import Block, Grid, Noise
from hf_balancemix.data.coco import find_coco, load_coco
from hf_balancemix.recipe import RECIPES
from hf_balancemix.recipe.command import Command, Recipe, read_command
from hf_balancemix.recipe.job import Job, load_job
from hf_balancemix.recipe.main import fit_image_size
from hf_balancemix.recipe.options import Plan, RecipeArguments
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.balancemix import BalanceMixTrainer
from hf_balancemix.training.co_teaching import CoTeachingTrainer
from hf_balancemix.training.methods import METHODS
from hf_balancemix.training.t_estimator import TEstimatorTrainer

# The value of each option of which nothing is said.
OPTION_DEFAULTS = {
    f.name: f.default_factory() if f.default_factory is not MISSING else f.default
    for kind in (BalanceMixTrainingArguments, RecipeArguments)
    for f in fields(kind)
    if f.default is not MISSING or f.default_factory is not MISSING
}
_WARMUP = {
    recipe.name: recipe.defaults.get("warmup_epochs", OPTION_DEFAULTS["warmup_epochs"]) for recipe in RECIPES.values()
}
_OF_LOSS = {
    "focal": ("focal_gamma", "focal_alpha"),
    "asl": ("asl_gamma_negative", "asl_gamma_positive", "asl_margin", "asl_detach"),
    "ll": ("large_loss_rate",),
}
_OF_METHOD = {"co_teaching": ("evaluated_network",), "t_estimator": ("transition_choice", "validation_fraction")}
# What fits mixtures to losses reads, and refinement beside it.
_OF_MIXTURES = ("warmup_epochs", "min_fit", "monotone_posterior")
_OF_REFINEMENT = ("trust_positives", "mixture_separation", "mixture_disagreement")
_OF_RELABELLING = ("relabel_threshold", "relabel_views", "relabel_bn")


@dataclass(frozen=True)
class Request:
    """What a block asks of one method under one noise, as a checked command line of the recipe."""

    block: Block
    noise: Noise
    command: Command

    @property
    def data_key(self) -> str:
        """The same for all requests that use the same data."""
        return json.dumps([self.command.data, self.command.options.on_bad_image], default=str, sort_keys=True)


@dataclass(frozen=True)
class Cell:
    """One run of the comparison.

    Attributes:
        plan: Its arguments and settings; its folder is its own.
        request: Where it comes from.
    """

    plan: Plan
    request: Request

    @property
    def id(self) -> str:
        """Of the settings."""
        return cell_id(self.plan.settings)

    @property
    def label(self) -> str:
        """For bars and messages."""
        return run_label(self.plan.settings, self.request.block.label)


def run_label(settings: Mapping[str, Any], label: str | None = None) -> str:
    """Return method, noise and seed in words."""
    rate = settings["noise_rate"]
    noise = settings["noise"].replace("_", " ") if rate is None else f"{settings['noise']} {100 * rate:g}%"
    name = settings["method"] if label is None else f"{settings['method']} ({label})"
    return f"{name}, {'clean' if noise == 'none' else noise}, seed {settings['seed']}"


def cell_id(settings: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits that name a run by those of its settings that count."""
    text = json.dumps(counted_settings(settings), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def counted_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the settings tells one run from another.

    Options at their defaults and options that the method never reads do not count: results stay valid when a later
    version adds an option, or a recipe another default that is not about their method.
    """
    unread = unread_options(settings)
    said = {name: value for name, value in settings.items() if name not in unread}
    if "warmup_epochs" in unread:
        # It once counted for every method. Where it is not read the recipe's own counts: ids stay as they were.
        said["warmup_epochs"] = _WARMUP.get(settings["data"].get("recipe"), OPTION_DEFAULTS["warmup_epochs"])
    counted = {
        name: canonical(value)
        for name, value in said.items()
        if not (name in OPTION_DEFAULTS and canonical(value) == canonical(OPTION_DEFAULTS[name]))
    }
    # These say what was run, even where they are defaults.
    return counted | {name: canonical(settings.get(name)) for name in ("method", "noise", "noise_rate", "seed")}


def canonical(value: Any) -> Any:
    """Return the same for 150, 150.0 and "150": where an option came from does not matter."""
    if isinstance(value, Mapping):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, bool) or value is None:
        return str(value)
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return str(value)


def unread_options(settings: Mapping[str, Any]) -> set[str]:
    """Return the options that a run with these settings never reads, but for those that its method is defined by."""
    method, loss = settings["method"], str(settings.get("loss", "bce"))
    sampler = settings.get("second_sampler")
    unread = {name for key, names in _OF_LOSS.items() if key != loss.split("_")[0] for name in names}
    unread |= {name for key, names in _OF_METHOD.items() if key != method for name in names}
    unread |= set() if sampler == "minority" else {"minority_score"}
    unread |= {"mix_alpha", "mix_lambda_per"} if sampler == "none" else set()
    if method in METHODS:
        trainer = METHODS[method].trainer
        ours = trainer is BalanceMixTrainer
        refinement = settings.get("refinement") if ours else "none"
        unread |= set() if ours else {"refinement"}
        if refinement == "none":
            unread |= set(_OF_REFINEMENT)
            if trainer not in (CoTeachingTrainer, TEstimatorTrainer):
                unread |= set(_OF_MIXTURES)
        if refinement not in ("full", "relabelled"):
            unread |= set(_OF_RELABELLING)
    return unread


def read_requests(recipe: Recipe, grid: Grid, words: Sequence[str], output_dir: str) -> list[Request]:
    """Check the options of every run; no data are read.

    Args:
        recipe: The data set.
        grid: What to run.
        words: Options of the command line, which count before those of the grid.
        output_dir: Unless ``words`` say otherwise.

    Raises:
        ValueError: For what can be known to be wrong, with the block that asks for it.
    """
    requests = []
    for block in grid.blocks:
        for noise in block.noises:
            for method in block.methods:
                own = ["--output_dir", output_dir, "--method", method, *noise.words, "--seeds", str(block.seeds)]
                options = [*block.words, *block.method_words.get(method, ()), *words]
                try:
                    command = read_command(recipe, [*own, "--resume=true", *options])
                except ValueError as error:
                    raise ValueError(f"{error} (asked for{block.place})" if block.place else str(error)) from error
                requests.append(Request(block, noise, command))
    _fit_image_sizes(requests)
    return requests


def _fit_image_sizes(requests: Sequence[Request]) -> None:
    """Let a backbone of one size have its own, as the recipes do; each backbone is tried once."""
    fitted: dict[tuple[str, int | None], int | None] = {}
    for request in requests:
        options = request.command.options
        if "image_size" in request.command.given:
            continue
        key = (options.backbone, options.image_size)
        if key not in fitted:
            fit_image_size(options)
            fitted[key] = options.image_size
        options.image_size = fitted[key]


def load_jobs(recipe: Recipe, requests: Sequence[Request]) -> dict[str, Job]:
    """Load the data of all requests, each only once, by ``Request.data_key``.

    What was left to be found, COCO's year, is noted in the requests: another folder holds another one.
    """
    jobs: dict[str, Job] = {}
    for request in requests:
        data = request.command.data
        if recipe.load is load_coco:
            data["year"] = find_coco(data["data_dir"], data["year"])[1]
        if request.data_key not in jobs:
            jobs[request.data_key] = load_job(recipe, request.command)
    return jobs


def plan_cells(recipe: Recipe, requests: Sequence[Request], jobs: Mapping[str, Job]) -> list[Cell]:
    """Return the cells of the requests, in order; without ``jobs`` those of unknown data.

    A cell that two blocks ask for is there twice: each has a row in the tables.
    """
    cells = []
    for request in requests:
        digest = jobs[request.data_key].digest if request.data_key in jobs else ""
        for plan in request.command.plans(recipe.name, digest):
            cell = Cell(plan, request)
            settings, folder = plan.settings, request.command.output_dir / "cells"
            rate = "" if settings["noise_rate"] is None else f"{settings['noise_rate']:g}"
            name = f"{settings['method']}-{settings['noise']}{rate}-seed{settings['seed']}-{cell.id}"
            plan.args.output_dir = str(folder / name)
            cells.append(cell)
    return cells


def once(cells: Sequence[Cell]) -> list[Cell]:
    """Return each cell once, where it comes first."""
    return list({cell.id: cell for cell in reversed(cells)}.values())[::-1]


def lookup_ids(settings: Mapping[str, Any]) -> list[str]:
    """Return the ids by which a run is found before its data are read: with all that its data's options say, or less.

    Neither the digest is known then nor, unless it was given, COCO's year.
    """
    data = {key: value for key, value in settings["data"].items() if key != "digest"}
    less = data | {"year": None} if "year" in data else data
    return list(dict.fromkeys(cell_id({**settings, "data": known}) for known in (data, less)))
