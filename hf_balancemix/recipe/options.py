"""The options of a recipe: what they are, what is refused, and what identifies one run."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers.trainer_utils import IntervalStrategy

from hf_balancemix.data.noise import NOISE_KINDS, NoiseSpec
from hf_balancemix.modeling.heads import HEADS
from hf_balancemix.recipe.head_options import read_head_options
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.balancemix import BalanceMixTrainer
from hf_balancemix.training.co_teaching import CoTeachingTrainer
from hf_balancemix.training.methods import METHODS
from hf_balancemix.training.t_estimator import TEstimatorTrainer, check_stages

STEPS = ("do_train", "do_eval", "do_predict")
SINGLE_POSITIVE_THRESHOLD = 0.55
# What must be the same for a finished run to be kept on --resume, beside the method's own options.
_TRAINING_SETTINGS = (
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "weight_decay_on",
    "max_grad_norm",
    "bf16",
    "fp16",
    "dataloader_drop_last",
    "medium_shot_from",
    "many_shot_from",
)


@dataclass
class RecipeArguments:
    """Options of the run."""

    method: str | None = field(default=None, metadata={"help": "Run this one method only.", "choices": list(METHODS)})
    methods: list[str] = field(
        default_factory=lambda: ["balancemix"],
        metadata={"help": "Methods to run in turn.", "choices": list(METHODS)},
    )
    seeds: int = field(default=1, metadata={"help": "Run this many seeds, counted up from --seed."})
    noise: str = field(
        default="none", metadata={"help": "Noise injected into the training labels.", "choices": list(NOISE_KINDS)}
    )
    noise_rate: float = field(default=0.4, metadata={"help": "Its rate; single_positive and none take none."})
    backbone: str = field(
        default="resnet50.tv_in1k",
        metadata={
            "help": "timm name (resnet50.tv_in1k), Hub name, checkpoint folder, or small_resnet: 0.7 M parameters "
            "drawn at random, for tiny pictures."
        },
    )
    pretrained: bool = field(default=True, metadata={"help": "Load the backbone's weights; else draw them at random."})
    head: str = field(
        default="linear",
        metadata={
            "help": "linear is the backbone's own, and its checkpoint loads anywhere; the others' after `import "
            "hf_balancemix`, or with trust_remote_code=True. ml_decoder is the paper's kind.",
            "choices": list(HEADS),
        },
    )
    head_options: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Options of the head as JSON: '{\"dim\": 384}'.", "metavar": "JSON"},
    )
    image_size: int | None = field(default=None, metadata={"help": "Pixels per side; the backbone's own unless set."})
    total_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images per optimiser step, over all processes and accumulated batches. If "
            "per_device_train_batch_size is given, that counts instead."
        },
    )
    on_bad_image: str = field(
        default="raise",
        metadata={
            "help": "Images that are missing or cannot be read: stop with the file's name, or leave them out after "
            "reading every image once.",
            "choices": ["raise", "skip"],
        },
    )
    checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Model to evaluate or predict with, a folder or Hub name; the trained ones of output_dir unless "
            "set. Only with --do_eval or --do_predict."
        },
    )
    license: str | None = field(
        default=None,
        metadata={"help": "Licence on the model card, such as apache-2.0."},
    )
    resume: bool = field(default=False, metadata={"help": "Go on where an earlier command was broken off."})

    def __post_init__(self) -> None:
        self.head_options = read_head_options(self.head, self.head_options)


def chosen_steps(args: BalanceMixTrainingArguments, given: set[str]) -> set[str]:
    """Return which of ``STEPS`` to do: those asked for; training (which evaluates) if none is.

    The arguments alone do not say it: ``TrainingArguments`` switches ``do_eval`` on by itself.

    Raises:
        ValueError: If steps are switched off and none is asked for.
    """
    asked = {name for name in STEPS if name in given}
    steps = {name for name in asked if getattr(args, name)}
    if asked and not steps:
        raise ValueError(f"Expected a step to do, found --{' and --'.join(sorted(asked))} switched off. Ask for one.")
    return steps or {"do_train"}


def adjust_to_noise_and_processes(
    options: RecipeArguments, args: BalanceMixTrainingArguments, given: set[str]
) -> None:
    """Set what follows from other options: the threshold ε from the noise, the batch per device from the total.

    Raises:
        ValueError: If the total batch size cannot be divided by the processes and accumulated batches.
    """
    if options.noise == "single_positive" and "relabel_threshold" not in given:
        args.relabel_threshold = SINGLE_POSITIVE_THRESHOLD
    if {"total_batch_size", "per_device_train_batch_size"} <= given:
        raise ValueError(
            "Expected --total_batch_size or --per_device_train_batch_size, found both. Leave one out: the first is "
            "the second times processes times --gradient_accumulation_steps."
        )
    total = None if "per_device_train_batch_size" in given else options.total_batch_size
    if total is None:
        return
    devices = args.world_size * max(args.n_gpu, 1)
    parts = devices * args.gradient_accumulation_steps
    if total < 1 or total % parts:
        raise ValueError(
            f"Expected a --total_batch_size that {devices} processes or devices × {args.gradient_accumulation_steps} "
            f"accumulated batches divide, found {total}. Choose a multiple of {parts}, or other numbers of these."
        )
    args.per_device_train_batch_size = total // parts


def check_options(
    options: RecipeArguments, args: BalanceMixTrainingArguments, methods: Sequence[str], given: set[str]
) -> None:
    """Refuse what would fail after minutes of training, or give results under a wrong name.

    Raises:
        ValueError: Naming the option, its value and the remedy.
    """
    if {"method", "methods"} <= given:
        raise ValueError("Expected --method or --methods, found both. Leave one out.")
    if not methods or len(set(methods)) < len(methods):
        raise ValueError(
            f"Expected one method or more in --methods, each once, found {' '.join(methods) or 'none'}. For repeats "
            "use --seeds."
        )
    training = "do_train" in chosen_steps(args, given)
    if options.checkpoint is not None and training:
        raise ValueError(
            "Expected --checkpoint with --do_eval or --do_predict, found it with training. To start from a trained "
            f"model use --backbone {options.checkpoint}; to go on with a broken-off run, --resume."
        )
    positive = {name: getattr(args, name) for name in ("learning_rate", "num_train_epochs")}
    for name, value in {"seeds": options.seeds, **positive}.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"Expected --{name} above 0, found {value}.")
    if noise_rate(options) is None and "noise_rate" in given:
        raise ValueError(
            f"Expected --noise mislabel or --noise flip with --noise_rate, found --noise {options.noise}, which takes "
            "no rate. Choose a noise, or leave the rate out."
        )
    noise_spec(options, args.seed)  # refuses a rate out of range
    if args.seed + options.seeds > 2**32:
        raise ValueError(f"Expected --seed from 0 to 2**32 - 1, found {args.seed} (and --seeds {options.seeds}).")
    if args.eval_strategy != "epoch":
        raise ValueError(
            f"Expected --eval_strategy epoch, found {IntervalStrategy(args.eval_strategy).value}: results.json holds "
            "the mAP of every epoch. Leave it unset."
        )
    if args.eval_delay or args.load_best_model_at_end:
        name = "eval_delay" if args.eval_delay else "load_best_model_at_end"
        raise ValueError(
            f"Expected --{name} unset, found it: a recipe reports every epoch and the last one, and choosing an epoch "
            "by its test mAP would flatter the result. Leave it out."
        )
    schedule = sorted(given & {"lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"})
    if args.one_cycle and schedule:
        raise ValueError(
            f"Expected no --{schedule[0]} with --one_cycle, which is a schedule of its own, found both. Leave one out."
        )
    if training:
        for method in methods:
            _check_method(method, args, given)


def _check_method(method: str, args: BalanceMixTrainingArguments, given: set[str]) -> None:
    for name, value in METHODS[method].options.items():
        if name in given and getattr(args, name) != value:
            raise ValueError(
                f"Expected --{name} {value} with method {method}, which is defined by it, found "
                f"{getattr(args, name)}. Leave it out, or choose another method."
            )
    own = copy.copy(args)
    vars(own).update(METHODS[method].options)
    METHODS[method].trainer.check_arguments(own)
    if METHODS[method].trainer is TEstimatorTrainer and args.max_steps <= 0:
        check_stages(args, args.num_train_epochs)
    refinement = METHODS[method].options.get("refinement", args.refinement)
    selects = METHODS[method].trainer is CoTeachingTrainer
    refines = selects or (METHODS[method].trainer is BalanceMixTrainer and refinement != "none")
    if refines and args.max_steps <= 0 and args.warmup_epochs >= args.num_train_epochs:
        raise ValueError(
            f"Expected --warmup_epochs below the {args.num_train_epochs:g} of --num_train_epochs, found "
            f"{args.warmup_epochs}: {method} deals with wrong labels only after them. A fifth to a quarter is a fair "
            "start."
        )


def check_writable(output_dir: Path) -> None:
    """Refuse an output folder that cannot be made or written to, before anything is trained."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(output_dir, os.W_OK):
            raise PermissionError("it is read-only")
    except OSError as error:
        raise ValueError(
            f"Expected an --output_dir that can be written to, found {output_dir} ({error}). Choose another one."
        ) from error


@dataclass(frozen=True)
class Plan:
    """One run: the trainer's arguments, what identifies it in results.json, and its name for the screen."""

    args: BalanceMixTrainingArguments
    settings: dict[str, Any]

    @property
    def label(self) -> str:
        """Method and seed, for bars and messages."""
        return f"{self.settings['method']}, seed {self.settings['seed']}"

    @property
    def folder(self) -> Path:
        """Where checkpoints and the final model go."""
        return Path(str(self.args.output_dir))


def plan_run(
    options: RecipeArguments, args: BalanceMixTrainingArguments, data: dict[str, Any], method: str, seed: int
) -> Plan:
    """Return the plan of one run; ``data`` is what identifies the data set."""
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
        "data": data,
        "backbone": options.backbone,
        "head": options.head,
        "head_options": options.head_options,
        "pretrained": options.pretrained,
        "image_size": options.image_size,
        "noise": options.noise,
        "noise_rate": noise_rate(options),
        "on_bad_image": options.on_bad_image,
        "images_per_step": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        **{name: str(getattr(args, name)) for name in _TRAINING_SETTINGS},
        **run_args.method_settings(),
    }
    return Plan(run_args, settings)


def noise_spec(options: RecipeArguments, seed: int) -> NoiseSpec:
    """Return the noise to inject.

    Raises:
        ValueError: For a rate that is out of range.
    """
    return NoiseSpec(options.noise, noise_rate(options), seed)


def noise_rate(options: RecipeArguments) -> float | None:
    """Return the rate of the injected noise; ``None`` for the kinds that take none."""
    return options.noise_rate if options.noise in ("mislabel", "flip") else None


def same_comparison(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Say whether two runs may stand in one table: alike but for method, seed and what defines the method."""
    free = {"method", "seed", *METHODS[first["method"]].options, *METHODS[second["method"]].options}
    return {k: v for k, v in first.items() if k not in free} == {k: v for k, v in second.items() if k not in free}


def check_settings(folder: Path, settings: dict[str, Any], resume: bool, write: bool) -> None:
    """Compare a run that resumes with the one that was broken off; note the settings of a run that begins.

    Args:
        folder: Output folder of the run.
        settings: What identifies the run (:func:`plan_run`).
        resume: Whether there is a checkpoint to go on from.
        write: Whether this process writes.

    Raises:
        ValueError: Naming each setting that differs.
    """
    path = folder / "settings.json"
    if resume:
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        changed = [
            f"{name} was {before.get(name)!r}, is now {settings[name]!r}"
            for name in settings
            if before.get(name) != settings[name]
        ]
        if changed:
            raise ValueError(
                f"Expected the settings of the run that is in {folder}, found others: "
                f"{'; '.join(changed)}. Repeat the settings, or choose another --output_dir."
            )
    elif write:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
