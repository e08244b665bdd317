"""What a trainer knows for a model card."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hf_balancemix.data.noise import noise_of
from hf_balancemix.hub.card import CardFacts, DataFacts, Scores
from hf_balancemix.training.arguments import METHOD_FIELDS, BalanceMixTrainingArguments
from hf_balancemix.training.network_pair import NetworkPair

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "timm", "hf-balancemix")
# What only refinement and selection read.
_OF_REFINEMENT = (
    *("warmup_epochs", "relabel_threshold", "relabel_views", "relabel_bn", "min_fit", "monotone_posterior"),
    *("trust_positives", "mixture_separation", "mixture_disagreement"),
)


def card_facts(trainer: Any, changes: Mapping[str, Any]) -> CardFacts:
    """Return what a trainer knows about its model.

    Args:
        trainer: A ``MultiLabelTrainer``.
        changes: Fields of :class:`CardFacts` that take the place of what the trainer knows; the ``data`` may be a name
            only.
    """
    model: Any = trainer.model.first if isinstance(trainer.model, NetworkPair) else trainer.model
    config = model.config
    base_model, origin = _origin(str(config.name_or_path or ""))
    facts: dict[str, Any] = {
        "name": (trainer.hub_model_id or Path(trainer.args.output_dir).absolute().name).rpartition("/")[2],
        "architecture": architecture(model),
        "class_names": [config.id2label[k] for k in range(config.num_labels)],
        "trainer": type(trainer).__name__,
        "remote_code": getattr(model, "_auto_class", None) is not None,
        "tags": getattr(model, "model_tags", None) or (),  # trackio's say where the curves are
        "head": getattr(config, "head", "linear"),
        "base_model": base_model,
        "origin": origin,
        "data": _data(trainer),
        "scores": _scores(trainer.state.log_history, _saved_step(trainer)),
        "diagnostics": next((log for log in reversed(trainer.state.log_history) if "refresh_seconds" in log), {}),
        "settings": _settings(trainer),
        "versions": package_versions(),
        "hardware": hardware(trainer.args),
    }
    if trainer.is_in_train and trainer.state.global_step < trainer.state.max_steps:
        done, epochs = trainer.state.epoch or 0, trainer.state.num_train_epochs
        facts["note"] = f"The model after {done:.3g} of {epochs} planned epochs."
    wanted = facts | dict(changes)
    if isinstance(wanted["data"], str):
        wanted["data"] = replace(facts["data"] or DataFacts(""), name=wanted["data"])
    return CardFacts(**wanted)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def hardware(args: Any) -> str:
    """Return processor and number of processes in words."""
    kind = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type.upper()
    processor = f" ({platform.machine()})" if args.device.type == "cpu" else ""
    return f"{kind}{processor}, {args.world_size} process{'es' if args.world_size > 1 else ''}"


def architecture(model: Any) -> str:
    """Return a model's class and what it is built on."""
    backbone = getattr(model.config, "backbone_config", None) or model.config
    built_on = getattr(backbone, "architecture", None) or (
        backbone.model_type if backbone is not model.config else None
    )
    return type(model).__name__ + (f" ({built_on})" if built_on else "")


def _origin(name: str) -> tuple[str | None, str | None]:
    """Return the name on the Hub of what training started from, and in words what it was."""
    if not name:
        return None, None
    if os.path.exists(name) or Path(name).is_absolute() or name.count("/") > 1:
        return None, f"a checkpoint in a folder {Path(name).name}"
    return (name, None) if "/" in name else (None, name)


def _data(trainer: Any) -> DataFacts | None:
    dataset = trainer.train_dataset
    if dataset is None:
        return None
    noises, info = noise_of(dataset), getattr(dataset, "info", None)
    return DataFacts(
        name=getattr(info, "dataset_name", None) or "an unnamed data set",
        images={"training": len(dataset)},
        noise=" and ".join(noise["kind"] for noise in noises) or "none",
        noise_rate=noises[0]["rate"] if len(noises) == 1 else None,
    )


def _saved_step(trainer: Any) -> int | None:
    """Return the step of the best checkpoint if that is what the training ends with, else None for the last one."""
    over = trainer.state.global_step >= trainer.state.max_steps or not trainer.is_in_train
    return trainer.state.best_global_step if trainer.args.load_best_model_at_end and over else None


def _scores(log_history: Sequence[Mapping[str, Any]], step: int | None) -> Scores | None:
    """Return those of the evaluation at a step, or of the last one; none if there are several evaluation sets."""
    logs = [log for log in log_history if "eval_map" in log and step in (None, log.get("step"))]
    last = logs[-1] if logs else None
    if last is None:
        return None
    groups = {name: last[f"eval_{name}"] for name in ("many", "medium", "few") if f"eval_{name}" in last}
    return Scores(
        map=last["eval_map"],
        groups=groups if len(groups) > 1 else {},  # a single one is all classes
        ema_map=last.get("eval_ema_map"),
        split="evaluation",
        when=f"after {last['epoch']:g} epochs",
    )


def _settings(trainer: Any) -> dict[str, Any]:
    """Return the settings of the training, and the method's options that are not at their defaults."""
    args = trainer.args
    shown = {
        "epochs": f"{trainer.state.num_train_epochs or args.num_train_epochs:g}",
        "images per step": trainer.images_per_step(),
        "learning rate": f"{args.learning_rate:g}",
        "schedule": "one cycle"
        if args.one_cycle
        else getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
        "optimiser": getattr(args.optim, "value", args.optim) + (f" ({args.optim_args})" if args.optim_args else ""),
        "weight decay": f"{args.weight_decay:g}",
        "seed": args.seed,
    }
    defaults = {f.name: f.default for f in fields(BalanceMixTrainingArguments)}
    refreshed = any("refresh_seconds" in log for log in trainer.state.log_history)
    skipped: tuple[str, ...] = () if args.loss in ("ll_r", "ll_ct") else ("large_loss_rate",)
    if not refreshed or args.refinement == "none":
        skipped += _OF_REFINEMENT
    changed = {name: getattr(args, name) for name in METHOD_FIELDS if name not in skipped}
    return shown | {name.replace("_", " "): value for name, value in changed.items() if value != defaults[name]}


def stated(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of :class:`CardFacts` from the arguments of ``Trainer.create_model_card``."""
    names = {"license": "license", "language": "language", "model_name": "name", "finetuned_from": "base_model"}
    known = {field: said[name] for name, field in names.items() if said.get(name) is not None}
    if tags := said.get("tags"):
        known["tags"] = [tags] if isinstance(tags, str) else list(tags)
    if dataset := said.get("dataset"):
        known["data"] = dataset if isinstance(dataset, str) else ", ".join(dataset)
    return known
