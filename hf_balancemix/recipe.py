"""What every ``recipes/*.py`` shares: parse the command line, build, train, evaluate, write the results."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import DatasetDict
from datasets import disable_progress_bars as disable_map_bars
from tqdm.auto import tqdm
from transformers import IntervalStrategy, PrinterCallback, TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar as disable_shard_bars

from hf_balancemix.build import build_model
from hf_balancemix.command_line import RecipeParser, run_with_clear_errors
from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.noise import NOISE_KINDS, NoiseSpec, inject_noise
from hf_balancemix.metrics import mean_average_precision
from hf_balancemix.report import multilabel_report
from hf_balancemix.reports.plots import plot_map_over_epochs
from hf_balancemix.reports.tables import method_table, text_table
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.balancemix import BalanceMixTrainer
from hf_balancemix.training.checkpoints import complete_checkpoints
from hf_balancemix.training.methods import METHODS

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "timm", "hf-balancemix")
# Smaller sets are mapped in less time than a bar takes to read.
_BAR_FROM = 10_000
# What must be the same for a finished run to be kept on --resume, beside the method's own options.
_TRAINING_SETTINGS = ("num_train_epochs", "max_steps", "learning_rate", "optim", "weight_decay", "lr_scheduler_type")


@dataclass
class RecipeArguments:
    """Options of a recipe beside those of the trainer."""

    method: str | None = field(default=None, metadata={"help": "Run this one method only.", "choices": list(METHODS)})
    methods: list[str] = field(
        default_factory=lambda: ["balancemix"],
        metadata={"help": "Methods to run one after the other.", "choices": list(METHODS)},
    )
    seeds: int = field(default=1, metadata={"help": "Run this many seeds, counted up from --seed."})
    noise: str = field(
        default="none", metadata={"help": "Noise injected into the training labels.", "choices": list(NOISE_KINDS)}
    )
    noise_rate: float = field(default=0.4, metadata={"help": "Noise rate; single_positive and none take no rate."})
    backbone: str = field(
        default="resnet50.tv_in1k", metadata={"help": "timm name, Hub name or local checkpoint folder."}
    )
    pretrained: bool = field(default=True, metadata={"help": "Load the backbone's weights; else draw them at random."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the (square) input in pixels; the backbone's own unless set."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Go on in an output_dir: finished runs are kept, a broken-off one resumes."}
    )


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
    defaults = {"dataloader_pin_memory": torch.cuda.is_available(), **recipe.defaults}
    parser = RecipeParser([RecipeArguments, BalanceMixTrainingArguments], defaults, recipe.description)
    options, args = parser.parse(argv)
    methods = [options.method] if options.method else options.methods
    given = {word.split("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}
    _check_options(options, args, methods, given)
    output_dir = Path(str(args.output_dir))
    _check_writable(output_dir)
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
            plan = _plan(options, args, method, seed)
            if options.resume and any(run["settings"] == plan["settings"] for run in runs):
                _say(main_process, f"{label}: finished earlier, kept")
                continue
            record = _run(recipe, splits, options, plan, label)
            if main_process:
                runs.append(record)
                _write_json(results_file, {"runs": runs})
    if main_process:
        _report(recipe, options, runs, output_dir, splits)


def _check_options(
    options: RecipeArguments, args: BalanceMixTrainingArguments, methods: Sequence[str], given: set[str]
) -> None:
    """Refuse what would fail after minutes of training, or give results under a wrong name.

    Raises:
        ValueError: Naming the option, its value and the remedy.
    """
    if {"method", "methods"} <= given:
        raise ValueError("Expected --method or --methods, found both. Leave one out.")
    if len(set(methods)) < len(methods):
        raise ValueError(
            f"Expected each method once in --methods, found {' '.join(methods)}. For repeats use --seeds."
        )
    positive = ["learning_rate", "per_device_train_batch_size", "per_device_eval_batch_size"]
    positive += ["gradient_accumulation_steps"] + ["num_train_epochs"] * (args.max_steps <= 0)
    for name, value in {"seeds": options.seeds, **{name: getattr(args, name) for name in positive}}.items():
        if not value > 0:
            raise ValueError(f"Expected --{name} above 0, found {value}.")
    if args.seed < 0 or args.seed + options.seeds > 2**32:
        raise ValueError(f"Expected --seed from 0 to 2**32 - 1, found {args.seed} (and --seeds {options.seeds}).")
    if args.eval_strategy != "epoch":
        raise ValueError(
            f"Expected --eval_strategy epoch, found {IntervalStrategy(args.eval_strategy).value}: results.json holds "
            "the mAP of every epoch. Leave it unset."
        )
    for method in methods:
        for name, value in METHODS[method].options.items():
            if name in given and getattr(args, name) != value:
                raise ValueError(
                    f"Expected --{name} {value} with method {method}, which is defined by it, found "
                    f"{getattr(args, name)}. Leave it out, or choose another method."
                )
        refinement = METHODS[method].options.get("refinement", args.refinement)
        refines = METHODS[method].trainer is BalanceMixTrainer and refinement != "none"
        if refines and args.max_steps <= 0 and args.warmup_epochs >= args.num_train_epochs:
            raise ValueError(
                f"Expected --warmup_epochs below the {args.num_train_epochs:g} of --num_train_epochs, found "
                f"{args.warmup_epochs}: {method} would never refine a label. A fifth to a quarter is a fair start."
            )


def _check_writable(output_dir: Path) -> None:
    """Refuse an output folder that cannot be made or written to, before anything is trained."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(output_dir, os.W_OK):
            raise PermissionError("it is read-only")
    except OSError as error:
        raise ValueError(
            f"Expected an --output_dir that can be written to, found {output_dir} ({error}). Choose another one."
        ) from error


def _plan(options: RecipeArguments, args: BalanceMixTrainingArguments, method: str, seed: int) -> dict[str, Any]:
    """Return the trainer's arguments and the settings that identify one run."""
    changed = {
        "output_dir": str(Path(str(args.output_dir)) / f"{method}-seed{seed}"),
        "seed": seed,
        **METHODS[method].options,
    }
    values = {f.name: getattr(args, f.name) for f in fields(args) if f.init} | changed
    run_args = BalanceMixTrainingArguments(**values)
    settings = {
        "method": method,
        "seed": seed,
        "backbone": options.backbone,
        "pretrained": options.pretrained,
        "image_size": options.image_size,
        "noise": options.noise,
        "noise_rate": _noise_rate(options),
        "images_per_step": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        **{name: str(getattr(args, name)) for name in _TRAINING_SETTINGS},
        **run_args.method_settings(),
    }
    return {"args": run_args, "settings": settings}


def _noise_rate(options: RecipeArguments) -> float | None:
    return options.noise_rate if options.noise in ("mislabel", "flip") else None


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
            merged[epoch] |= {key: value for key, value in entry.items() if key not in ("epoch", "step")}
    return list(merged.values())


def _write_json(path: Path, content: Any) -> None:
    """Replace the file in one step: a reader, or a killed run, never leaves half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


def _report(
    recipe: Recipe, options: RecipeArguments, runs: Sequence[dict[str, Any]], output_dir: Path, splits: DatasetDict
) -> None:
    """Print the table, the refinement's quality and the reload snippet; draw the figure."""
    shown = [run for run in runs if run["noise"] == options.noise and run["noise_rate"] == _noise_rate(options)]
    noise = options.noise if _noise_rate(options) is None else f"{options.noise} {options.noise_rate:.0%}"
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
    best = shown[-1]
    checkpoint, example = output_dir / f"{best['method']}-seed{best['seed']}", output_dir / "example.png"
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
