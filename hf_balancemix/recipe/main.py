"""From a command line to results: the loop over methods and seeds that every recipe runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar as disable_shard_bars

from hf_balancemix.build import usable_image_size
from hf_balancemix.command_line import run_with_clear_errors
from hf_balancemix.recipe.cards import push_kept, push_run, write_card
from hf_balancemix.recipe.command import Recipe, read_command
from hf_balancemix.recipe.job import Job, load_job, write_json
from hf_balancemix.recipe.options import Plan, RecipeArguments, check_writable, same_comparison
from hf_balancemix.recipe.processes import leave_process_group
from hf_balancemix.recipe.run import Evaluation, evaluate, load_trained, train, write_scores
from hf_balancemix.recipe.summary import print_evaluation, print_results, print_unreadable
from hf_balancemix.training.arguments import BalanceMixTrainingArguments


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line; every user mistake ends in one line and exit status 2."""
    run_with_clear_errors(lambda: _main(recipe, sys.argv[1:] if argv is None else list(argv)))


def _main(recipe: Recipe, argv: list[str]) -> None:
    command = read_command(recipe, argv)
    options, output_dir = command.options, command.output_dir
    check_writable(output_dir)
    if command.training and "image_size" not in command.given:
        fit_image_size(options)
    disable_shard_bars()  # a bar per checkpoint would tear the epoch's bar
    job = load_job(recipe, command)
    # Not before: whoever passes wrong data wants to hear of that first.
    runs = _earlier_runs(output_dir / "results.json", options) if command.training else []
    plans = command.plans(recipe.name, job.digest)
    unpushed: list[str] = []
    if command.training:
        unpushed = _train_all(recipe, job, plans, command.steps, runs, output_dir)
    elif options.checkpoint is not None:
        _use(job, command.args, command.steps, options.checkpoint, output_dir)
    else:
        for plan in plans:
            if not (plan.folder / "config.json").is_file():
                raise ValueError(
                    f"Expected a trained model in {plan.folder}, found none. Train it first (the same command without "
                    "--do_eval and --do_predict, with --resume if it was broken off), or name one with --checkpoint."
                )
            _use(job, plan.args, command.steps, plan.folder, plan.folder)
    if PartialState().is_main_process:
        print_unreadable(job.unreadable, output_dir)
        for message in unpushed:  # last, where it is seen
            tqdm.write(f"\n{message}", sys.stderr)
    leave_process_group()


def fit_image_size(options: RecipeArguments) -> None:
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


def _train_all(
    recipe: Recipe,
    job: Job,
    plans: Sequence[Plan],
    steps: set[str],
    runs: list[dict[str, Any]],
    output_dir: Path,
) -> list[str]:
    """Train what is not finished yet, note each result at once, and print all that compare with the last.

    Returns:
        What to tell the user of runs that could not be pushed.
    """
    unpushed: list[str | None] = []
    main_process = PartialState().is_main_process
    uses = steps - {"do_train"}
    for plan in plans:
        if job.options.resume and any(run["settings"] == plan.settings for run in runs):
            if main_process:
                tqdm.write(f"{plan.label}: finished earlier, kept")
            if uses:
                _use(job, plan.args, uses, plan.folder, plan.folder)
            if plan.args.push_to_hub:  # what is there already is not sent again
                unpushed.append(push_kept(plan))
            continue
        trainer, training = train(job, plan)
        evaluation = evaluate(job, trainer)
        if main_process:
            named = {name: plan.settings[name] for name in ("method", "noise", "noise_rate", "seed")}
            runs.append({**named, **evaluation.record(), **training, "settings": plan.settings})
            write_json(output_dir / "results.json", {"runs": runs})
            write_card(trainer, plan, runs[-1], evaluation.members)
            _write(job, evaluation, uses, plan.folder, plan.folder)
        if plan.args.push_to_hub:
            unpushed.append(push_run(trainer, plan))
    if main_process:
        shown = [run for run in runs if same_comparison(run["settings"], plans[-1].settings)]
        print_results(recipe.name, job, shown, output_dir)
    return [message for message in unpushed if message]


def _use(job: Job, args: BalanceMixTrainingArguments, steps: set[str], checkpoint: str | Path, folder: Path) -> None:
    """Evaluate a trained model, and write into ``folder`` what ``steps`` ask for."""
    evaluation = evaluate(job, load_trained(job, args, checkpoint))
    if PartialState().is_main_process:
        _write(job, evaluation, steps, checkpoint, folder)


def _write(job: Job, evaluation: Evaluation, steps: set[str], checkpoint: str | Path, folder: Path) -> None:
    if "do_eval" in steps:
        path, record = folder / "evaluation.json", evaluation.record()
        images = {"images": len(job.splits["test"]), "unreadable_images": job.unreadable.get("test", 0)}
        write_json(path, {"checkpoint": str(checkpoint), **images, **record})
        print_evaluation(str(checkpoint), record, path)
    if "do_predict" in steps:
        # A CSV of scores has a column "file" of its own.
        path = folder / ("predictions.jsonl" if "file" in job.class_names else "predictions.csv")
        write_scores(job, evaluation, path)
        tqdm.write(f"scores: {path} ({len(job.splits['test'])} test images)")
