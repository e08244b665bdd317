"""From a command line to results: the loop over methods and seeds that every recipe runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import DatasetDict
from datasets import disable_progress_bars as disable_map_bars
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar as disable_shard_bars

from hf_balancemix.build import usable_image_size
from hf_balancemix.command_line import RecipeParser, run_with_clear_errors
from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.images import check_files, drop_unreadable
from hf_balancemix.recipe.options import (
    Plan,
    RecipeArguments,
    adjust_to_noise_and_processes,
    check_options,
    check_writable,
    chosen_steps,
    plan_run,
    same_comparison,
)
from hf_balancemix.recipe.run import Job, evaluate, load_trained, train, write_scores
from hf_balancemix.recipe.summary import print_evaluation, print_results, print_unreadable
from hf_balancemix.training.arguments import BalanceMixTrainingArguments

# Smaller sets are mapped in less time than a bar takes to read.
_BAR_FROM = 10_000


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


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line; every user mistake ends in one line and exit status 2."""
    run_with_clear_errors(lambda: _main(recipe, sys.argv[1:] if argv is None else list(argv)))


@dataclass(frozen=True)
class Command:
    """A command line, read and checked: what to load, with which options, and the steps and methods asked for."""

    data: dict[str, Any]
    options: RecipeArguments
    args: BalanceMixTrainingArguments
    steps: set[str]
    methods: list[str]
    size_given: bool

    @property
    def output_dir(self) -> Path:
        """Folder of all results."""
        return Path(str(self.args.output_dir))

    def plans(self, name: str) -> list[Plan]:
        """Return the runs of the recipe called ``name``, seed by seed."""
        # The same data may lie elsewhere next time.
        data = {"recipe": name, **{key: value for key, value in self.data.items() if key != "data_dir"}}
        return [
            plan_run(self.options, self.args, data, method, seed)
            for seed in range(self.args.seed, self.args.seed + self.options.seeds)
            for method in self.methods
        ]


def read_command(recipe: Recipe, argv: list[str]) -> Command:
    """Read a command line.

    Raises:
        ValueError: For everything that can be known to be wrong before data are read.
    """
    # Without a device several processes find one another only when told to use the CPU.
    device = torch.accelerator.is_available()
    defaults = {"dataloader_pin_memory": device, "use_cpu": not device, **recipe.defaults}
    kinds = [recipe.data] if recipe.data else []
    parser = RecipeParser([*kinds, RecipeArguments, BalanceMixTrainingArguments], defaults, recipe.description)
    *of_data, options, args = parser.parse(argv)
    methods = [options.method] if options.method else options.methods
    adjust_to_noise_and_processes(options, args, parser.given)
    check_options(options, args, methods, parser.given)
    data = asdict(of_data[0]) if of_data else {}
    for name in recipe.trainer_options:
        data[name] = getattr(args, name)
        setattr(args, name, None)
    return Command(data, options, args, chosen_steps(args, parser.given), methods, "image_size" in parser.given)


def _main(recipe: Recipe, argv: list[str]) -> None:
    command = read_command(recipe, argv)
    check_writable(command.output_dir)
    training = "do_train" in command.steps
    runs = _earlier_runs(command.output_dir / "results.json", command.options) if training else []
    if training and not command.size_given:
        _fit_image_size(command.options)
    plans = command.plans(recipe.name)
    disable_shard_bars()  # a bar per checkpoint would tear the epoch's bar
    job = _load(recipe, command)
    if training:
        _train_all(recipe, job, plans, command.steps, runs, command.output_dir)
    elif command.options.checkpoint is not None:
        _use(job, plans[0], command.steps, command.options.checkpoint, command.output_dir)
    else:
        for plan in plans:
            _use(job, plan, command.steps, plan.folder, plan.folder)
    if PartialState().is_main_process:
        print_unreadable(job.unreadable, command.output_dir)


def _fit_image_size(options: RecipeArguments) -> None:
    """Let a backbone of one size have its own where the recipe, and not the user, asks for another."""
    usable = usable_image_size(options.backbone, options.image_size)
    if usable != options.image_size and PartialState().is_main_process:
        tqdm.write(f"{options.backbone} does not take {options.image_size} px, so it gets its own size", sys.stderr)
    options.image_size = usable


def _earlier_runs(results_file: Path, options: RecipeArguments) -> list[dict[str, Any]]:
    if not results_file.is_file():
        return []
    if not options.resume:
        raise ValueError(
            f"Expected an empty output_dir, found results in {results_file.parent}. Add --resume to go on there, or "
            "choose another --output_dir."
        )
    return list(json.loads(results_file.read_text(encoding="utf-8"))["runs"])


def _load(recipe: Recipe, command: Command) -> Job:
    """Load both splits, on the first process of a machine before the others, which then find caches."""
    state, options = PartialState(), command.options
    with state.local_main_process_first():
        splits = recipe.load(**command.data)
        if not state.is_main_process or len(splits["train"]) < _BAR_FROM:
            disable_map_bars()
        unreadable: dict[str, list[str]] = {}
        for name, split in splits.items():
            if options.on_bad_image == "skip":
                workers = command.args.dataloader_num_workers or None
                splits[name], unreadable[name] = drop_unreadable(split, num_proc=workers)
            else:
                check_files(split, "image", name)
    if state.is_main_process and any(unreadable.values()):
        _write_json(command.output_dir / "unreadable_images.json", unreadable)
    table = encode_labels(splits["train"])
    if not encode_labels(splits["test"], class_names=table.class_names).labels.any():
        raise ValueError("Expected a test split with at least one label, found none in any row. Check the labels.")
    return Job(
        options=options,
        splits=splits,
        class_names=table.class_names,
        train_counts=table.labels.sum(axis=0, dtype="int64"),
        groups=recipe.groups,
        unreadable={name: len(dropped) for name, dropped in unreadable.items()},
    )


def _train_all(
    recipe: Recipe,
    job: Job,
    plans: Sequence[Plan],
    steps: set[str],
    runs: list[dict[str, Any]],
    output_dir: Path,
) -> None:
    """Train what is not finished yet, note each result at once, and print all that compare with the last."""
    main_process = PartialState().is_main_process
    for plan in plans:
        if job.options.resume and any(run["settings"] == plan.settings for run in runs):
            if main_process:
                tqdm.write(f"{plan.label}: finished earlier, kept")
            if "do_predict" in steps:
                _use(job, plan, {"do_predict"}, plan.folder, plan.folder)
            continue
        trainer, training = train(job, plan)
        evaluation = evaluate(job, trainer)
        if main_process:
            named = {name: plan.settings[name] for name in ("method", "noise", "noise_rate", "seed")}
            runs.append({**named, **evaluation.record(), **training, "settings": plan.settings})
            _write_json(output_dir / "results.json", {"runs": runs})
            if "do_predict" in steps:
                _predict(job, evaluation, plan.folder)
    if main_process:
        shown = [run for run in runs if same_comparison(run["settings"], plans[-1].settings)]
        print_results(recipe.name, job, shown, output_dir)


def _use(job: Job, plan: Plan, steps: set[str], checkpoint: str | Path, folder: Path) -> None:
    """Evaluate a trained model and write its scores, as asked."""
    evaluation = evaluate(job, load_trained(job, plan, checkpoint))
    if not PartialState().is_main_process:
        return
    if "do_eval" in steps:
        path = folder / "evaluation.json"
        images = {"images": len(job.splits["test"]), "unreadable_images": job.unreadable.get("test", 0)}
        _write_json(path, {"checkpoint": str(checkpoint), **images, **evaluation.record()})
        print_evaluation(str(checkpoint), evaluation.record(), path)
    if "do_predict" in steps:
        _predict(job, evaluation, folder)


def _predict(job: Job, evaluation: Any, folder: Path) -> None:
    # A CSV of scores has a column "file" of its own.
    path = folder / ("predictions.jsonl" if "file" in job.class_names else "predictions.csv")
    write_scores(job, evaluation, path)
    tqdm.write(f"scores:  {path} ({len(job.splits['test'])} test images)")


def _write_json(path: Path, content: Any) -> None:
    """Replace the file in one step: a reader, or a killed run, never leaves half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    os.replace(temporary, path)
