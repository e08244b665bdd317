"""One run of a recipe: train, or load what was trained; evaluate; write scores."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from hf_balancemix.build import build_model
from hf_balancemix.data.images import image_names
from hf_balancemix.data.noise import inject_noise
from hf_balancemix.metrics import mean_average_precision
from hf_balancemix.predict import load_checkpoint
from hf_balancemix.recipe.cards import describe_run
from hf_balancemix.recipe.job import Job
from hf_balancemix.recipe.options import Plan, check_settings, noise_spec
from hf_balancemix.recipe.progress import Progress, Stopwatch, memory_text
from hf_balancemix.recipe.reporters import close_entry, entry_name
from hf_balancemix.report import MultiLabelReport, multilabel_report
from hf_balancemix.reports.predictions import ScoreWriter
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.balancemix import BalanceMixTrainer
from hf_balancemix.training.card_facts import hardware, package_versions
from hf_balancemix.training.checkpoints import complete_checkpoints, load_weights
from hf_balancemix.training.co_teaching import CoTeachingTrainer
from hf_balancemix.training.methods import METHODS
from hf_balancemix.training.multilabel import MultiLabelTrainer
from hf_balancemix.training.network_pair import SECOND_NETWORK, NetworkPair, second_seed
from hf_balancemix.training.refresh import predicted_memory

_PREDICT_ROWS = 1000


@dataclass(frozen=True)
class Evaluation:
    """Logits (N, K) on the test split, and the report on them; the mAP of averaged weights, if there are any.

    Groups are by name: their mAP, and the names of their classes.
    """

    logits: npt.NDArray[Any]
    report: MultiLabelReport
    groups: dict[str, float]
    members: dict[str, list[str]]
    ema_map: float | None = None

    def record(self) -> dict[str, Any]:
        """Return mAP, that of averaged weights, of each group, and AP per class; a class without positives has None.

        All in points, and all but ``ema_map``, which only is there with ``ema_decay``, of the model as it was trained.
        """
        per_class = zip(self.report.class_names, self.report.ap, strict=True)
        return {
            "map": self.report.map,
            **({} if self.ema_map is None else {"ema_map": self.ema_map}),
            "groups": self.groups,
            "per_class_ap": {name: None if np.isnan(ap) else 100 * float(ap) for name, ap in per_class},
        }


def train(job: Job, plan: Plan, progress: TrainerCallback | None = None) -> tuple[MultiLabelTrainer, dict[str, Any]]:
    """Train one method with one seed, or go on with it.

    Args:
        job: The data and options.
        plan: The run.
        progress: Shows how far it is; a bar unless given.

    Returns:
        The trainer and what is to be said of the training.
    """
    options, args, settings = job.options, plan.args, plan.settings
    args.run_name = entry_name(args)
    training_split = job.splits["train"]
    if options.noise != "none":
        training_split = inject_noise(training_split, noise_spec(options, settings["seed"]))
    set_seed(args.seed)
    wanted = (options.backbone, job.class_names, options.image_size, options.pretrained)
    head_options = cast("dict[str, Any] | None", options.head_options)  # no longer text
    build = partial(build_model, *wanted, options.head, head_options)
    model, processor = build()
    method, networks = METHODS[settings["method"]], {}
    if issubclass(method.trainer, CoTeachingTrainer):
        torch.manual_seed(second_seed(args.seed))
        networks["second_model"] = build()[0]
    trainer = method.trainer(
        model,
        args,
        train_dataset=training_split,
        eval_dataset=job.splits["test"],
        processing_class=processor,
        **networks,
    )
    describe_run(trainer, job, plan)
    _show_progress(trainer, progress or Progress(plan.label))
    if progress is None and isinstance(trainer, BalanceMixTrainer) and trainer.is_world_process_zero():
        shape = len(training_split), len(job.class_names)
        if any(predicted := predicted_memory(args, *shape, int(trainer.positives.sum()))):
            tqdm.write(f"{plan.label}: {memory_text(*shape, predicted)}", file=sys.stderr)
    stopwatch = Stopwatch(plan.folder)
    trainer.add_callback(stopwatch)
    resumable = bool(options.resume and complete_checkpoints(plan.folder))
    check_settings(plan.folder, settings, resumable, trainer.is_world_process_zero())
    trainer.train(resume_from_checkpoint=resumable)
    close_entry(trainer)
    trainer.save_model(_internal_call=True)  # to be pushed with its results
    return trainer, {
        "seconds": round(stopwatch.seconds, 1),
        "epochs": _epochs(trainer.state.log_history),
        "images": {name: len(split) for name, split in job.splits.items()},
        "unreadable_images": job.unreadable,
        "versions": package_versions(),
        "hardware": hardware(args),
        "command": job.command_line,
        "resumed": resumable,
    }


def load_trained(job: Job, args: BalanceMixTrainingArguments, checkpoint: str | Path) -> MultiLabelTrainer:
    """Load a trained model for evaluation and prediction.

    Raises:
        ValueError: If there is none, or if its classes are not those of the data.
    """
    model, processor = load_checkpoint(checkpoint)
    second = Path(checkpoint) / SECOND_NETWORK
    if args.evaluated_network == "mean" and second.is_dir():
        other = copy.deepcopy(model)
        load_weights(other, str(second))
        model = NetworkPair(model, other, "mean")
    args = copy.copy(args)
    args.push_to_hub, args.report_to = False, []
    try:
        trainer = MultiLabelTrainer(model, args, eval_dataset=job.splits["test"], processing_class=processor)
    except ValueError as error:
        raise ValueError(f"Cannot evaluate {str(checkpoint)!r} on this data. {error}") from error
    _show_progress(trainer, Progress(str(checkpoint)))
    return trainer


def evaluate(job: Job, trainer: MultiLabelTrainer) -> Evaluation:
    """Predict the test split and report on it."""
    predicted = trainer.predict(job.splits["test"])
    logits, labels = np.asarray(predicted.predictions), np.asarray(predicted.label_ids)
    thresholds = (trainer.args.medium_shot_from, trainer.args.many_shot_from)
    report = multilabel_report(
        logits, labels.clip(min=0), job.class_names, job.train_counts, thresholds, ignore=labels < 0
    )
    if job.groups is None:
        members = {name: list(indices) for name, indices in report.groups.items()}
        if len(members) == 1:  # of all classes: it would say the same again
            members = {}
    else:
        members = {name: [job.class_names.index(c) for c in classes] for name, classes in job.groups.items()}
    groups = {name: mean_average_precision(report.ap[indices]) for name, indices in members.items()}
    # A group without evaluated classes is absent, not NaN, which JSON does not know.
    groups = {name: value for name, value in groups.items() if value == value}
    named = {name: [job.class_names[k] for k in members[name]] for name in groups}
    return Evaluation(logits, report, groups, named, (predicted.metrics or {}).get("test_ema_map"))


def write_scores(job: Job, evaluation: Evaluation, path: Path) -> None:
    """Write the score of every class for every test image; an earlier file is replaced."""
    names = image_names(job.splits["test"], "image")
    # torch's sigmoid neither overflows nor rounds small probabilities to the same one.
    probs = torch.from_numpy(evaluation.logits.astype(np.float64)).sigmoid().numpy()
    with ScoreWriter(path, job.class_names, overwrite=True) as writer:
        for start in range(0, len(names), _PREDICT_ROWS):
            rows = slice(start, start + _PREDICT_ROWS)
            writer.write(names[rows], probs[rows])


def _show_progress(trainer: MultiLabelTrainer, progress: TrainerCallback) -> None:
    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)
    trainer.add_callback(progress)


def _epochs(log_history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Merge the logs of each finished epoch: the evaluation, and the refresh that follows it."""
    merged: dict[float, dict[str, float]] = {}
    for entry in log_history:
        epoch = entry["epoch"]
        if "eval_map" in entry:
            maps = {name: entry[f"eval_{name}"] for name in ("map", "ema_map") if f"eval_{name}" in entry}
            merged.setdefault(epoch, {"epoch": epoch}).update(maps)
        elif "refresh_seconds" in entry and epoch in merged:
            # A share of nothing is NaN, which JSON does not know: leave it out.
            numbers = {key: value for key, value in entry.items() if value == value and key not in ("epoch", "step")}
            merged[epoch] |= numbers
    return list(merged.values())
