"""What every ``recipes/*.py`` shares: parse the command line, build, train, evaluate, write the results."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import DatasetDict
from datasets import disable_progress_bars as disable_map_bars
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar as disable_shard_bars

from hf_balancemix.build import build_model
from hf_balancemix.command_line import RecipeParser, run_with_clear_errors
from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.noise import NoiseSpec, inject_noise
from hf_balancemix.metrics import mean_average_precision
from hf_balancemix.recipe_options import (
    RecipeArguments,
    check_options,
    check_settings,
    check_writable,
    noise_rate,
    plan_run,
    same_comparison,
)
from hf_balancemix.report import multilabel_report
from hf_balancemix.reports.plots import plot_map_over_epochs
from hf_balancemix.reports.tables import method_table, text_table
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.checkpoints import complete_checkpoints
from hf_balancemix.training.methods import METHODS

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "timm", "hf-balancemix")
# Smaller sets are mapped in less time than a bar takes to read.
_BAR_FROM = 10_000


@dataclass(frozen=True)
class Recipe:
    """A data set with its defaults.

    Attributes:
        name: Shown in messages and figures.
        load: Returns the splits "train" and "test".
        defaults: Default values of :class:`RecipeArguments` and :class:`BalanceMixTrainingArguments`.
        groups: Class groups reported beside all classes: name → class names.
        description: First lines of ``--help``.
    """

    name: str
    load: Callable[[], DatasetDict]
    defaults: dict[str, Any]
    groups: dict[str, Sequence[str]]
    description: str


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line; every user mistake ends in one line and exit status 2."""
    run_with_clear_errors(lambda: _main(recipe, sys.argv[1:] if argv is None else list(argv)))


def _main(recipe: Recipe, argv: list[str]) -> None:
    # Without a device several processes find one another only when told to use the CPU.
    device = torch.accelerator.is_available()
    defaults = {"dataloader_pin_memory": device, "use_cpu": not device, **recipe.defaults}
    parser = RecipeParser([RecipeArguments, BalanceMixTrainingArguments], defaults, recipe.description)
    options, args = parser.parse(argv)
    methods = [options.method] if options.method else options.methods
    given = {word.split("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}
    check_options(options, args, methods, given)
    output_dir = Path(str(args.output_dir))
    check_writable(output_dir)
    main_process = PartialState().is_main_process
    results_file = output_dir / "results.json"
    runs: list[dict[str, Any]] = []
    if results_file.is_file():
        if not options.resume:
            raise ValueError(
                f"Expected an empty output_dir, found results in {output_dir}. Add --resume to go on there, or choose "
                "another --output_dir."
            )
        runs = json.loads(results_file.read_text(encoding="utf-8"))["runs"]
    disable_shard_bars()  # a bar per checkpoint would tear the epoch's bar
    splits = recipe.load()
    if not main_process or len(splits["train"]) < _BAR_FROM:
        disable_map_bars()
    for seed in range(args.seed, args.seed + options.seeds):
        for method in methods:
            label = f"{method}, seed {seed}"
            plan = plan_run(options, args, method, seed)
            if options.resume and any(run["settings"] == plan["settings"] for run in runs):
                _say(main_process, f"{label}: finished earlier, kept")
                continue
            record = _run(recipe, splits, options, plan, label)
            if main_process:
                runs.append(record)
                _write_json(results_file, {"runs": runs})
    if main_process:
        this = plan_run(options, args, methods[-1], args.seed)["settings"]
        shown = [run for run in runs if same_comparison(run["settings"], this)]
        _report(recipe, options, shown, output_dir, splits)


def _run(
    recipe: Recipe, splits: DatasetDict, options: RecipeArguments, plan: dict[str, Any], label: str
) -> dict[str, Any]:
    """Train and evaluate one method with one seed."""
    args, settings = plan["args"], plan["settings"]
    specs = [] if options.noise == "none" else [NoiseSpec(options.noise, settings["noise_rate"], settings["seed"])]
    train = inject_noise(splits["train"], specs)
    class_names = encode_labels(splits["test"]).class_names
    set_seed(args.seed)
    model, processor = build_model(options.backbone, class_names, options.image_size, options.pretrained)
    trainer = METHODS[settings["method"]].trainer(
        model, args, train_dataset=train, eval_dataset=splits["test"], processing_class=processor
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress(label))
    resumable = options.resume and complete_checkpoints(args.output_dir)
    check_settings(Path(args.output_dir), settings, bool(resumable), trainer.is_world_process_zero())
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=bool(resumable))
    seconds = time.perf_counter() - start
    predicted = trainer.predict(splits["test"])
    report = multilabel_report(np.asarray(predicted.predictions), np.asarray(predicted.label_ids), class_names)
    trainer.save_model()
    groups = {
        name: mean_average_precision(report.ap[[class_names.index(c) for c in members]])
        for name, members in recipe.groups.items()
    }
    return {
        "method": settings["method"],
        "noise": options.noise,
        "noise_rate": settings["noise_rate"],
        "seed": settings["seed"],
        "map": report.map,
        "groups": groups,
        "per_class_ap": {name: 100 * float(ap) for name, ap in zip(class_names, report.ap, strict=True)},
        "seconds": round(seconds, 1),
        "epochs": _epochs(trainer.state.log_history),
        "settings": settings,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "resumed": bool(resumable),
    }


def _epochs(log_history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Merge the logs of each finished epoch: the evaluation, and the refresh that follows it."""
    merged: dict[float, dict[str, float]] = {}
    for entry in log_history:
        epoch = entry["epoch"]
        if "eval_map" in entry:
            merged.setdefault(epoch, {"epoch": epoch})["map"] = entry["eval_map"]
        elif "refresh_seconds" in entry and epoch in merged:
            # A share of nothing is NaN, which JSON does not know: leave it out.
            numbers = {key: value for key, value in entry.items() if value == value and key not in ("epoch", "step")}
            merged[epoch] |= numbers
    return list(merged.values())


def _write_json(path: Path, content: Any) -> None:
    """Replace the file in one step: a reader, or a killed run, never leaves half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    os.replace(temporary, path)


def _report(
    recipe: Recipe, options: RecipeArguments, shown: Sequence[dict[str, Any]], output_dir: Path, splits: DatasetDict
) -> None:
    """Print the table, the refinement's quality and the reload snippet; draw the figure."""
    noise = options.noise if noise_rate(options) is None else f"{options.noise} {options.noise_rate:.0%}"
    title = f"{recipe.name}, {noise}"
    header, rows = method_table(shown)
    seeds = len({run["seed"] for run in shown})
    print(
        f"\n{title}: test mAP after the last epoch, in points, {seeds} seed{'s (mean ± standard error)' * (seeds > 1)}"
    )
    print(text_table(header, rows))
    for run in shown:
        last = run["epochs"][-1]
        if "label_precision" in last:
            print(
                f"\n{run['method']}, seed {run['seed']}, final labels: {last['clean']:.1%} taken for clean with "
                f"precision {last['label_precision']:.1%} and recall {last['label_recall']:.1%}"
                + (
                    f"; {last['relabelled']:.1%} re-labelled, {last['relabel_accuracy']:.1%} of them correct"
                    if last.get("relabelled")
                    else ""
                )
            )
    figure = output_dir / "map_over_epochs.png"
    plot_map_over_epochs(shown, figure, title)
    last_run = f"{shown[-1]['method']}-seed{shown[-1]['seed']}"
    checkpoint, example = output_dir / last_run, output_dir / "example.png"
    splits["test"][0]["image"].save(example)
    print(f"\nresults: {output_dir / 'results.json'}\nfigure:  {figure}\n\nUse the model of {checkpoint}:\n")
    print("    from transformers import pipeline")
    print(f'    classify = pipeline("image-classification", model="{checkpoint}")')
    print(f'    print(classify("{example}", top_k=5))')


def _say(main_process: bool, text: str) -> None:
    if main_process:
        tqdm.write(text)


class _Progress(TrainerCallback):
    """One bar per run, in epochs, with the last test mAP."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = int(state.epoch or 0)
        disable = not state.is_world_process_zero
        self.bar = tqdm(total=state.num_train_epochs, initial=done, desc=self.label, unit="epoch", disable=disable)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None and "eval_map" in kwargs["metrics"]:
            self.bar.set_postfix_str(f"mAP {kwargs['metrics']['eval_map']:.1f}", refresh=False)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
