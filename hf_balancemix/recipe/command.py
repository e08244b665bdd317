"""What a recipe is, and what a command line asks of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict

from hf_balancemix.command_line import DATA_OPTIONS, RecipeParser
from hf_balancemix.hub.contents import without_folder
from hf_balancemix.hub.licenses import check_license
from hf_balancemix.hub.push import Destination
from hf_balancemix.recipe.options import (
    Plan,
    RecipeArguments,
    adjust_to_noise_and_processes,
    check_options,
    chosen_steps,
    plan_run,
)
from hf_balancemix.training.arguments import BalanceMixTrainingArguments


@dataclass(frozen=True)
class Recipe:
    """A data set with its defaults.

    Attributes:
        name: Shown in messages and figures.
        load: Returns the splits "train" and "test" with columns ``image`` and ``labels`` (lists of ``ClassLabel``).
        defaults: Default values of the options.
        description: First lines of ``--help``.
        data: Dataclass of the data set's own options; its fields are the arguments of ``load``.
        trainer_options: Options of the trainer that ``load`` takes as well, and that are done with afterwards.
        groups: Class groups reported beside all classes, name → class names; None for many-, medium- and few-shot
            classes, by the training counts.
    """

    name: str
    load: Callable[..., DatasetDict]
    defaults: dict[str, Any]
    description: str
    data: type | None = None
    trainer_options: tuple[str, ...] = ()
    groups: Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True)
class Command:
    """A command line, read and checked: what to load, with which options, and the steps and methods asked for.

    ``line`` is what to write on a card: :func:`shown_line`.
    """

    data: dict[str, Any]
    options: RecipeArguments
    args: BalanceMixTrainingArguments
    steps: set[str]
    methods: list[str]
    given: set[str]
    line: str = ""

    @property
    def output_dir(self) -> Path:
        """Folder of all results."""
        return Path(str(self.args.output_dir))

    @property
    def training(self) -> bool:
        """Whether anything is to be trained."""
        return "do_train" in self.steps

    def plans(self, name: str, digest: str = "") -> list[Plan]:
        """Return the runs of the recipe called ``name`` on data with this digest, seed by seed."""
        # The same data may lie elsewhere next time: what identifies them is their digest.
        own = {key: value for key, value in self.data.items() if key != "data_dir"}
        data = {"recipe": name, **own, "digest": digest}
        plans = [
            plan_run(self.options, self.args, data, method, seed)
            for seed in range(self.args.seed, self.args.seed + self.options.seeds)
            for method in self.methods
        ]
        if self.args.push_to_hub:
            given = self.args.hub_model_id
            for plan in plans:  # each run has a repository of its own
                if given is None or len(plans) > 1:
                    plan.args.hub_model_id = f"{given or self.output_dir.absolute().name}-{plan.folder.name}"
                Destination(str(plan.args.hub_model_id))
        return plans


def recipe_parser(recipe: Recipe) -> RecipeParser:
    """Return the parser of a recipe's command line."""
    # Without a device several processes find one another only when told to use the CPU.
    device = torch.accelerator.is_available()
    defaults = {"dataloader_pin_memory": device, "use_cpu": not device, **recipe.defaults}
    kinds = [recipe.data] if recipe.data else []
    kinds += [RecipeArguments, BalanceMixTrainingArguments]
    return RecipeParser(kinds, defaults, recipe.description, recipe.trainer_options)


def read_command(recipe: Recipe, argv: list[str]) -> Command:
    """Read a command line.

    Raises:
        ValueError: For everything that can be known to be wrong before data are read.
    """
    parser = recipe_parser(recipe)
    *of_data, options, args = parser.parse(argv)
    methods = [options.method] if options.method else options.methods
    adjust_to_noise_and_processes(options, args, parser.given)
    check_options(options, args, methods, parser.given)
    if options.license is not None:
        check_license(options.license)
    own_length = args.num_train_epochs == recipe.defaults.get("num_train_epochs") and args.max_steps <= 0
    if "large_loss_rate" not in parser.given and not own_length:
        args.large_loss_rate = None  # the recipe's rate is for its own epochs
    for name in DATA_OPTIONS:
        if name in parser.given and name not in recipe.trainer_options:
            raise ValueError(
                f"Expected no --{name} with {recipe.name}, whose columns are known, found it. Leave it out."
            )
    data = asdict(of_data[0]) if of_data else {}
    for name in recipe.trainer_options:
        data[name] = getattr(args, name)
        setattr(args, name, None)
    steps = chosen_steps(args, parser.given)
    if args.push_to_hub and "do_train" not in steps:
        raise ValueError(
            "Expected --push_to_hub with training, found it with an evaluation only. Push what is already trained "
            "with `hf-balancemix push`."
        )
    line = shown_line(recipe.name, argv, args.world_size)
    command = Command(data, options, args, steps, methods, parser.given, line)
    command.plans(recipe.name)  # refuses what cannot be a repository's name
    return command


def shown_line(recipe: str, words: Sequence[str], processes: int) -> str:
    """Return what repeats a command: without the access token, and of absolute paths the names at their ends only."""
    kept, skip = list[str](), False
    for word in words:
        name, equals, value = word.partition("=")
        if skip or name.lstrip("-").replace("-", "_") == "hub_token":
            skip = not skip and not equals
            continue
        kept.append(f"{name}={without_folder(value)}" if equals else without_folder(word))
    start = ["python"] if processes == 1 else ["torchrun", "--nproc_per_node", str(processes)]
    return shlex.join([*start, f"recipes/{recipe.lower()}.py", *kept])
