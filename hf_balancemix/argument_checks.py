"""Validation of training arguments: what cannot be honoured is refused before anything is loaded."""

from __future__ import annotations

import math
import os
from typing import Any

from hf_balancemix.messages import nearest

_REFUSED = {
    "label_smoothing_factor": (
        0.0,
        "label smoothing is not defined for the refined targets of BalanceMix and the Trainer switches it off for "
        "multi-label models; leave it at 0",
    ),
    "train_sampling_strategy": (
        "random",
        "the trainer's own sampler decides the order (`second_sampler`, `minority_score`); leave it at 'random'",
    ),
    "data_seed": (None, "the order of the images follows from `seed`, as everything random does; leave it unset"),
    "batch_eval_metrics": (
        False,
        "average precision needs the scores of the whole evaluation set at once; leave it at False",
    ),
    "eval_do_concat_batches": (
        True,
        "average precision needs the scores of the whole evaluation set in one array; leave it at True",
    ),
    "use_liger_kernel": (False, "there are no Liger kernels for image classifiers; leave it at False"),
    "neftune_noise_alpha": (None, "NEFTune adds noise to token embeddings, which images do not have; leave it unset"),
    "ignore_data_skip": (
        False,
        "it would replay the beginning of the epoch on resume, so that the resumed run is another run; leave it at "
        "False",
    ),
}


def check_trainer_arguments(args: Any) -> None:
    """Refuse options of ``TrainingArguments`` that the trainers cannot honour.

    Raises:
        ValueError: Naming the option, its value and the reason.
    """
    if args.remove_unused_columns:
        raise ValueError(
            "Expected `remove_unused_columns=False`, found True: the trainer reads the image and label columns "
            "itself, and removing columns that the model does not name would remove both. Leave it unset."
        )
    if args.label_names not in (None, ["labels"]):
        raise ValueError(
            f"Expected `label_names` unset, found {args.label_names!r}: the trainer makes the batches and calls their "
            "labels `labels`. The data set's own column is `label_column`."
        )
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"Expected `seed` from 0 to 2**32 - 1, found {args.seed}: NumPy takes no other.")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"Expected `{name}` of at least 1, found {getattr(args, name)}.")
    if args.image_cache is not None and (not args.image_cache or os.path.isfile(os.path.expanduser(args.image_cache))):
        raise ValueError(
            f"Expected a folder as `image_cache`, found {args.image_cache!r}. Name one; it is made if needed."
        )
    config = args.accelerator_config
    if config.get("split_batches") if isinstance(config, dict) else getattr(config, "split_batches", False):
        raise ValueError(
            "Expected `accelerator_config` without `split_batches`, found it on: the batch size is per process, and "
            "the position in an epoch is counted in such batches. Divide `per_device_train_batch_size` instead."
        )
    for name, (expected, reason) in _REFUSED.items():
        value = getattr(args, name)
        if getattr(value, "value", value) != expected:
            raise ValueError(f"Expected `{name}={expected!r}`, found {value!r}: {reason}.")


def check_method_arguments(args: Any) -> None:
    """Check range and choice of every option of the method.

    Raises:
        ValueError: Naming the option, its range and its value.
    """
    for name in _CHOSEN:
        value, choices = getattr(args, name), args.__dataclass_fields__[name].metadata["choices"]
        if value not in choices:
            raise ValueError(f"Expected `{name}` to be one of {choices}, found {value!r}{nearest(value, choices)}.")
    _in_range(
        "relabel_threshold", args.relabel_threshold, 0.5, 1.0, "below 0.5 both rules of Eq. 9 would hold at once"
    )
    _in_range("mix_alpha", args.mix_alpha, 0.0, math.inf, "it is the parameter of Beta(α, α); 0 switches mixing off")
    _in_range("warmup_epochs", args.warmup_epochs, 0, math.inf, "it counts the epochs before refinement starts")
    _in_range("min_fit", args.min_fit, 2, math.inf, "a mixture of two components needs at least two losses")
    _in_range("mixture_separation", args.mixture_separation, 0.0, math.inf, "it is the least Ashman's D; 0 is off")
    _in_range("mixture_disagreement", args.mixture_disagreement, 0.0, math.inf, "it is a loss in nats; 0 is off")
    for name in ("focal_gamma", "asl_gamma_negative", "asl_gamma_positive"):
        _in_range(name, getattr(args, name), 0.0, math.inf, "it is an exponent; 0 switches the focusing off")
    if args.focal_alpha is not None:
        _in_range("focal_alpha", args.focal_alpha, 0.0, 1.0, "positives get this weight, negatives the rest of 1")
    _in_range("asl_margin", args.asl_margin, 0.0, 1.0, "it is a probability")
    if args.large_loss_rate is not None:
        _in_range("large_loss_rate", args.large_loss_rate, 0.0, 100.0, "it is in percent per epoch")
    _in_range("validation_fraction", args.validation_fraction, 0.0, 0.5, "it is the share that is held out")
    _in_range("cutout", args.cutout, 0.0, 1.0, "it is a share of the image's side; 0 is off")
    _in_range("ema_decay", args.ema_decay, 0.0, 0.999999, "it is a decay below 1; 0 is off")
    if args.relabel_bn == "train" and args.relabel_views != "step":
        raise ValueError(
            f"Expected `relabel_views='step'` with `relabel_bn='train'`, found {args.relabel_views!r}: only that "
            "schedule predicts views inside the training step; the pass once per epoch is always in eval mode."
        )
    if not 0 <= args.medium_shot_from <= args.many_shot_from:
        raise ValueError(
            "Expected 0 <= `medium_shot_from` <= `many_shot_from`, found "
            f"{args.medium_shot_from} and {args.many_shot_from}."
        )


def check_plain_mixup(args: Any, trainer: str) -> None:
    """Refuse samplers of pairs, one of which is the default, where images are mixed within their batch or not at all.

    Raises:
        ValueError: Naming the sampler.
    """
    if args.second_sampler not in ("batch", "none"):
        raise ValueError(
            f"Expected `second_sampler` batch or none with {trainer}, found {args.second_sampler!r}, which is for the "
            "pairs of BalanceMixTrainer. Say 'batch' to mix images as the paper's comparison does (plain Mixup), or "
            "'none'."
        )


_CHOSEN = (
    "augmentation",
    "augment_on",
    "weight_decay_on",
    "class_reduction",
    "second_sampler",
    "minority_score",
    "mix_lambda_per",
    "refinement",
    "relabel_views",
    "relabel_bn",
    "loss",
    "evaluated_network",
    "transition_choice",
)


def _in_range(name: str, value: float, low: float, high: float, reason: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"Expected a number as `{name}`, found {value!r}: {reason}.")
    if not (low <= value <= high) or (math.isinf(value) and high == math.inf):
        span = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise ValueError(f"Expected `{name}` {span}, found {value!r}: {reason}.")
