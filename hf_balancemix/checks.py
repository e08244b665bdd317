"""Validation of what users pass in: every message says what was expected, what was found and what to do."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

# Compared by themselves.
_COUNTED = ("noise", "images_per_step", "steps_per_epoch")
_DIVERGED = (
    "The checkpoints already written are kept. If the learning rate is too high (the loss sums over classes), start "
    "anew with a lower one: a resumed run keeps the old one. Otherwise check these images, or use bf16 instead of "
    "fp16, then resume with `train(resume_from_checkpoint=True)`."
)


def check_dataset(dataset: Any, split: str) -> None:
    """Refuse data sets that the trainers cannot read.

    Raises:
        TypeError: For iterable data sets and for anything that is no ``datasets.Dataset``.
        ValueError: For an empty split.
    """
    kind = type(dataset).__name__
    if kind == "IterableDataset":
        raise TypeError(
            f"Expected a map-style `datasets.Dataset` as {split} set, found an IterableDataset: sampling by class "
            "confidence and per-label statistics need a known length and access by row. Load without "
            "`streaming=True`, or materialise it: `datasets.Dataset.from_generator(lambda: iter(ds), "
            "features=ds.features)`."
        )
    if kind in ("DatasetDict", "dict"):
        raise TypeError(
            f"Expected one split as {split} set, found a {kind} with {sorted(dataset)}. Pass one, for instance "
            f"`dataset[{next(iter(dataset), 'train')!r}]`."
        )
    if not all(hasattr(dataset, name) for name in ("select_columns", "column_names", "features")):
        raise TypeError(
            f"Expected a `datasets.Dataset` as {split} set, found {type(dataset).__module__}.{kind}. Wrap yours with "
            "`datasets.Dataset.from_dict`, `from_generator` or `load_dataset('imagefolder', ...)`."
        )
    if len(dataset) == 0:
        raise ValueError(f"Expected at least one image in the {split} set, found none. Check the split or the filter.")


def check_batch_size(num_rows: int, batch_size: int, world_size: int, drop_last: bool) -> None:
    """Refuse a training set that gives no step.

    Raises:
        ValueError: If there are fewer images than one batch over all processes and ``drop_last`` is on.
    """
    needed = batch_size * world_size
    if drop_last and num_rows < needed:
        raise ValueError(
            f"Expected at least one batch of {needed} training images ({batch_size} on each of {world_size} "
            f"processes), found {num_rows} images. Lower `per_device_train_batch_size` to at most "
            f"{num_rows // world_size} (a recipe's --total_batch_size in proportion), or set "
            "`dataloader_drop_last=False`."
        )


def check_world_size(found: int, started: int) -> None:
    """Refuse processes that were started together and do not know of one another: each would train on its own.

    Raises:
        ValueError: If fewer processes take part than were started.
    """
    if found < started:
        raise ValueError(
            f"Expected {started} processes to train together, found {found}: on a machine without a GPU they only do "
            "with `use_cpu=True`. Set it, or start one process."
        )


def check_sharding(model: Any, asked: bool, sharded: bool) -> None:
    """Refuse FSDP where it would be passed over in silence, or fail inside accelerate.

    Args:
        model: The model.
        asked: Whether the arguments ask for FSDP; ``accelerate launch`` does it by a variable of the environment.
        sharded: Whether the Trainer has it.

    Raises:
        ValueError: On a CPU, and for models that accelerate (1.15) does not divide.
    """
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if (asked or launched) and not sharded:
        raise ValueError(
            "Expected several GPUs with FSDP, found a CPU or one process, where accelerate keeps the whole model in "
            "each process without a word. Start without FSDP."
        )
    if not sharded:
        return
    try:
        model.get_input_embeddings()
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"Expected a model with input embeddings (`get_input_embeddings`, as ViT has) with FSDP, found "
            f"{type(model).__name__}: accelerate cannot divide it. Train with plain data parallelism."
        ) from error


def check_model(model: Any, class_names: Sequence[str]) -> None:
    """Check that the model's outputs are the data set's classes.

    Raises:
        TypeError: If the model has no configuration.
        ValueError: If the number of labels differs.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise TypeError(
            "Expected a `transformers.PreTrainedModel` (for instance from `AutoModelForImageClassification`), found "
            f"{type(model).__name__}. timm models load as `AutoModelForImageClassification.from_pretrained("
            "'timm/resnet50.a1_in1k', ...)`."
        )
    if config.num_labels != len(class_names):
        raise ValueError(
            f"Expected a model with {len(class_names)} outputs, one per class of the training set, found "
            f"{config.num_labels}. Load it with `from_pretrained(..., num_labels={len(class_names)}, "
            "ignore_mismatched_sizes=True)`."
        )


def check_finite(loss: Any, step: int, index: Any) -> None:
    """Stop a run whose loss is NaN or infinite.

    Raises:
        FloatingPointError: Naming the step and the rows of the batch.
    """
    if math.isfinite(loss):
        return
    rows = index.tolist() if hasattr(index, "tolist") else list(index)
    shown = f"{rows[:16]}{' ...' if len(rows) > 16 else ''}"
    raise FloatingPointError(
        f"Expected a finite loss, found {loss} after {step} optimiser steps, in the batch of training rows {shown}. "
        f"{_DIVERGED}"
    )


def check_finite_rows(not_finite: list[int], num_rows: int, step: int) -> None:
    """Stop a run whose model predicts NaN or infinity, before its statistics are built on that.

    Raises:
        FloatingPointError: Naming the step and the rows.
    """
    if not_finite:
        raise FloatingPointError(
            f"Expected finite predictions for all {num_rows} training images after {step} optimiser steps, found "
            f"NaN or infinity in {len(not_finite)}, first in rows {not_finite[:16]}. {_DIVERGED}"
        )


def check_resume(
    saved: Any, current: Any, saved_run: dict[str, Any], run: dict[str, Any], folder: str
) -> dict[str, str]:
    """Compare a checkpoint with the run that wants to go on from it.

    Args:
        saved: :class:`LabelState` of the checkpoint.
        current: :class:`LabelState` of the run.
        saved_run: Facts stored with the checkpoint.
        run: The same facts of the run.
        folder: The checkpoint, for the message.

    Returns:
        One sentence per difference, by its name, that is allowed but makes the resumed run another one.

    Raises:
        ValueError: If the data set, its labels, the class list or the number of images per step differ.
    """
    wrong = []
    if saved.class_names != current.class_names:
        gone = [name for name in saved.class_names if name not in current.class_names]
        new = [name for name in current.class_names if name not in saved.class_names]
        wrong.append(
            f"class names differ: {len(saved.class_names)} in the checkpoint, {len(current.class_names)} now; missing "
            f"now {gone[:5]}, new {new[:5]}" + ("" if gone or new else ", the order differs")
        )
    elif len(saved) != len(current):
        wrong.append(f"the training set has {len(current)} images, the checkpoint's had {len(saved)}")
    elif (changed := saved.different_labels(current)) > 0:
        wrong.append(
            f"{changed} of {len(saved) * len(saved.class_names)} given labels differ: another data set, order or "
            f"noise setting (noise of the checkpoint {saved_run['noise']}, now {run['noise']})"
        )
    if saved_run["images_per_step"] != run["images_per_step"]:
        wrong.append(
            f"one optimiser step takes {run['images_per_step']} images (batch size × processes × accumulation), the "
            f"checkpoint's took {saved_run['images_per_step']}: the position within the epoch would be lost"
        )
    elif not wrong and saved_run.get("steps_per_epoch") != run["steps_per_epoch"]:
        wrong.append(
            f"there are now {run['steps_per_epoch']} optimiser steps per epoch, the checkpoint's had "
            f"{saved_run.get('steps_per_epoch')} (batch size, accumulation and `dataloader_drop_last` decide): the "
            "position within the epoch would be lost"
        )
    wrong += [  # weights or the optimiser's state would not fit
        f"`{name}` was {saved_run[name]!r}, is now {run[name]!r}"
        for name in ("one_cycle", "weight_decay_on", "head")
        if saved_run.get(name, run[name]) != run[name]
    ]
    if saved_run.get("networks", 1) != run["networks"]:
        wrong.append(
            f"it holds the optimiser of {saved_run.get('networks', 1)} network(s), this method trains "
            f"{run['networks']} (co-teaching has two)"
        )
    if wrong:
        raise ValueError(
            f"Cannot resume from {folder}: "
            + "; ".join(wrong)
            + ". Use the settings of the interrupted run, or start "
            "a new run in another `output_dir`."
        )
    return {
        name: f"`{name}` was {saved_run[name]!r}, is now {run[name]!r}"
        for name in run  # an option that the checkpoint does not know is younger than it
        if name in saved_run and saved_run[name] != run[name] and name not in _COUNTED
    }


def check_trainer_inputs(args: Any, model: Any, processing_class: Any, others: dict[str, Any]) -> None:
    """Refuse constructor arguments that the trainers cannot honour.

    Raises:
        TypeError: Naming the argument and what to pass.
        ValueError: If a timm model comes with another processor than timm's.
    """
    if not hasattr(args, "relabel_views"):
        raise TypeError(
            f"Expected `BalanceMixTrainingArguments` as `args`, found {type(args).__name__}. It takes everything that "
            "`TrainingArguments` takes: change the class name."
        )
    if processing_class is None:
        raise TypeError(
            "Expected an image processor as `processing_class`, found None. Pass the model's own: "
            "`AutoImageProcessor.from_pretrained(...)`."
        )
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type == "timm_wrapper" and not hasattr(processing_class, "val_transforms"):
        raise ValueError(
            f"Expected timm's own image processor with a timm model, found {type(processing_class).__name__}: a saved "
            "timm model takes its preprocessing from `config.pretrained_cfg` and would ignore yours when it is "
            "loaded. Pass `AutoImageProcessor.from_pretrained('timm/...')`, or let `hf_balancemix.build.build_model` "
            "make both."
        )
    reasons = {
        "data_collator": "the trainer reads, augments and collates pairs of images itself",
        "compute_loss_func": "the loss is the method; plug a loss into the stock `Trainer`, or subclass this one",
    }
    for name, reason in reasons.items():
        if others.get(name) is not None:
            raise TypeError(f"Expected no `{name}`, found {others[name]!r}: {reason}.")


def names_of_model(class_names: Sequence[str]) -> str:
    """Return the sentence for labels that do not fit the class names of the model's configuration."""
    return (
        f"The class names are those of the model, `config.id2label` ({len(class_names)} classes: "
        f"{', '.join(map(repr, class_names[:3]))}{', ...' if len(class_names) > 3 else ''}). If it was made for other "
        "classes, load it with `from_pretrained(..., num_labels=..., id2label=..., label2id=..., "
        "ignore_mismatched_sizes=True)`."
    )


def own_class_names(model: Any) -> tuple[str, ...] | None:
    """Return the class names in a model's configuration, or ``None`` where it only has ``LABEL_0`` and so on."""
    id2label = getattr(getattr(model, "config", None), "id2label", None)
    if not id2label or all(name == f"LABEL_{i}" for i, name in id2label.items()):
        return None
    return tuple(id2label[i] for i in range(len(id2label)))
