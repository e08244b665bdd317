"""Arguments of the trainers: ``TrainingArguments`` plus the method's options, defaults as in the paper."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_balancemix.argument_checks import check_method_arguments, check_trainer_arguments
from hf_balancemix.data.augmentations import AUGMENTATIONS
from hf_balancemix.losses import CLASS_REDUCTIONS, LOSSES
from hf_balancemix.method import MINORITY_SCORES, REFINEMENTS, TRANSITION_CHOICES

RELABEL_VIEWS = ("step", "epoch", "reuse", "carry", "stream")
WEIGHT_DECAY_ON = ("weights", "all", "matrices")
SECOND_SAMPLERS = ("minority", "random", "batch", "none")
EVALUATED_NETWORKS = ("first", "mean")
# What only other methods than BalanceMix read, and what only their training scripts switch on.
FIELDS_OF_OTHERS = (
    "focal_gamma",
    "focal_alpha",
    "asl_gamma_negative",
    "asl_gamma_positive",
    "asl_margin",
    "asl_detach",
    "large_loss_rate",
    "evaluated_network",
    "transition_choice",
    "validation_fraction",
    "cutout",
    "ema_decay",
    "one_cycle",
    "channels_last",
)
METHOD_FIELDS = (
    "second_sampler",
    "minority_score",
    "mix_alpha",
    "mix_lambda_per",
    "refinement",
    "warmup_epochs",
    "relabel_threshold",
    "relabel_views",
    "relabel_bn",
    "min_fit",
    "monotone_posterior",
    "trust_positives",
    "mixture_separation",
    "mixture_disagreement",
    "loss",
    "class_reduction",
    "augmentation",
    "weight_decay_on",
    *FIELDS_OF_OTHERS,
)


def _option(default: object, text: str, choices: tuple[str, ...] | list[str] | None = None) -> object:
    metadata: dict[str, object] = {"help": text}
    if choices:
        metadata["choices"] = list(choices)
    return field(default=default, metadata=metadata)


@dataclass
class BalanceMixTrainingArguments(TrainingArguments):
    """``transformers.TrainingArguments`` with the options of BalanceMix.

    Changed defaults of the base class, and why:

    - ``remove_unused_columns=False``: the trainers read image and label columns themselves (``True`` is refused).
    - ``dataloader_drop_last=True``: Algorithm 1 makes ⌊N/b⌋ steps per epoch. Evaluation is always complete.
    - ``ddp_find_unused_parameters=False``: every parameter takes part in every step.
    - ``metric_for_best_model``: "map" where a best model is asked for (``load_best_model_at_end``, ``save_strategy=
      "best"``), never ``eval_loss``, which is inexact with several processes. Otherwise there is no best one, or a
      ``save_total_limit`` of 1 would keep its checkpoint and delete the last.

    Raises:
        ValueError: For values out of range and for options of the base class that the trainers cannot honour; the
            message says what was expected and what to do.
    """

    remove_unused_columns: bool | None = _option(False, "Must stay False: the trainer reads the columns itself.")
    dataloader_drop_last: bool = _option(True, "Drop the incomplete last training batch (Algorithm 1).")
    ddp_find_unused_parameters: bool | None = _option(False, "Passed to DistributedDataParallel.")
    metric_for_best_model: str | None = _option(
        None, "Metric for the best checkpoint; map unless set, where a best one is asked for."
    )

    label_column: str | None = _option(None, "Column of the labels; found by name and content unless set.")
    image_column: str | None = _option(None, "Column of the images; found by type and name unless set.")
    label_delimiter: str | None = _option(None, "Separates the names in a string label column; detected unless set.")
    cache_images: bool = _option(False, "Keep all decoded, resized images in memory (3·H·W bytes each).")
    image_cache: str | None = field(
        default=None,
        metadata={
            "help": "Keep them in this folder, for all runs: 71 GB for COCO at 448 px.",
            "metavar": "DIR",
        },
    )
    augmentation: str = _option(
        "randaugment_asl",
        "RandAugment as in the ASL and ML-Decoder scripts, torchvision's RandAugment(2, 9), a batched affine one for "
        "small images, or none.",
        sorted(AUGMENTATIONS),
    )
    cutout: float = _option(
        0.0,
        "Side of a rectangle of random colour over a random part of each training image, before augmentation, "
        "as a share of the image's side; 0 is off, the ML-Decoder scripts take 0.5.",
    )
    augment_on: str = _option(
        "auto",
        "Where training images are augmented: in the loader's workers, on the device, or auto: on the device if it "
        "is no CPU.",
        ["auto", "workers", "device"],
    )
    medium_shot_from: int = _option(1000, "Classes with at least this many training positives are medium-shot.")
    many_shot_from: int = _option(10000, "Classes with at least this many training positives are many-shot.")

    weight_decay_on: str = _option(
        "weights",
        "Parameters with weight decay: weights (the Trainer's choice: no biases, no layer norms), all (the paper), or "
        "matrices: tensors of two dimensions or more (the ML-Decoder and ASL scripts).",
        WEIGHT_DECAY_ON,
    )
    one_cycle: bool = _option(
        False,
        "One-cycle learning rate as in the ML-Decoder and ASL scripts: up to learning_rate in the first fifth of the "
        "steps, then down to nearly 0; takes the place of lr_scheduler_type, lr_scheduler_kwargs and warmup_steps, "
        "which have no effect.",
    )
    channels_last: bool = _option(
        False,
        "Keep the weights of convolutions with the channels last: faster for most convolutional networks, on GPUs "
        "with mixed precision above all. The results differ by rounding.",
    )
    ema_decay: float = _option(
        0.0,
        "Decay of an exponential moving average of the weights, evaluated and saved beside the model; 0 is off, the "
        "ML-Decoder and ASL scripts take 0.9997.",
    )

    loss: str = _option(
        "bce",
        "bce (Eq. 1), focal, asl (asymmetric loss), or large-loss rejection and correction (ll_r, ll_ct); the methods "
        "of the same names set it.",
        LOSSES,
    )
    focal_gamma: float = _option(2.0, "γ of the focal loss.")
    focal_alpha: float | None = _option(None, "Weight of positives in the focal loss, 1 - α for negatives; off unset.")
    asl_gamma_negative: float = _option(4.0, "γ- of the asymmetric loss.")
    asl_gamma_positive: float = _option(0.0, "γ+ of the asymmetric loss.")
    asl_margin: float = _option(0.05, "Probability below which a negative has no loss (asymmetric loss).")
    asl_detach: bool = _option(
        True, "No gradient through the focusing weight of the asymmetric loss, as in its training scripts."
    )
    large_loss_rate: float | None = _option(
        None,
        "Δ of LL-R and LL-Ct, in percent of a batch's labels and per epoch; unless set 2 divided by the epochs of the "
        "run, so that it ends near 2, which gives the paper's 0.04 on COCO (50 epochs), 0.1 on VOC (20) and "
        "0.05 on DeepFashion (40).",
    )
    evaluated_network: str = _option(
        "first",
        "Co-teaching: predict with the first network, or with the mean of both probabilities.",
        EVALUATED_NETWORKS,
    )
    transition_choice: str = _option(
        "medoid",
        "T-estimator: of the candidates for a class take the L1 medoid (its paper) or the one with the least residual "
        "(its code).",
        TRANSITION_CHOICES,
    )
    validation_fraction: float = _option(
        0.1, "T-estimator: share of the training images held out, with their noisy labels, to choose weights by."
    )

    class_reduction: str = _option(
        "sum", "Loss over the classes: sum (Eq. 1) or mean; instances are always averaged.", CLASS_REDUCTIONS
    )
    second_sampler: str = _option(
        "minority",
        "Second half of each pair: minority (Eq. 4), random (a second shuffle), batch (a permutation of the same "
        "batch: plain Mixup), or none.",
        SECOND_SAMPLERS,
    )
    minority_score: str = _option(
        "eq3",
        "Score behind the minority sampler: eq3, the paper's literal Eq. 3, or mean_positive, the reading that "
        "has the shape and size of its Figure 6.",
        MINORITY_SCORES,
    )
    mix_alpha: float = _option(
        4.0,
        "α of Beta(α, α) for the mixing coefficient λ, at least 1/2 in BalanceMix (Eq. 5); 0 means λ = 1.",
    )
    mix_lambda_per: str = _option("pair", "Draw λ for each pair, or one for each batch.", ["pair", "batch"])
    refinement: str = _option(
        "full",
        "After warm-up: full (Eq. 8-10); relabelled: ambiguous labels get weight 0; clean: every label that is not "
        "clean gets weight 0; none: the given labels.",
        REFINEMENTS,
    )
    warmup_epochs: int = _option(
        5,
        "Epochs before refinement (selection, reweighting) starts. Not the learning rate's warm-up, which is "
        "warmup_steps.",
    )
    relabel_threshold: float = _option(
        0.975, "ε of Eq. 9, in [0.5, 1]; the paper takes 0.975, and 0.55 for single-positive labels."
    )
    relabel_views: str = _option(
        "reuse",
        "When the two augmented views of Eq. 9 are predicted: step (the paper), epoch (with a clean one, once per "
        "epoch), reuse (in place of the clean one), carry (as reuse, but one of them is the last epoch's), stream (as "
        "reuse and again at the step; no table).",
        RELABEL_VIEWS,
    )
    relabel_bn: str = _option(
        "eval",
        "Mode of the model while it predicts the views of schedule step: eval, or train as DivideMix has it.",
        ["eval", "train"],
    )
    min_fit: int = _option(
        4, "Fewest losses of a (class, label) set that a mixture is fitted to; smaller sets are clean."
    )
    monotone_posterior: bool = _option(
        False, "Forbid that a larger loss gets a larger posterior (off: Eq. 8 to the letter)."
    )
    trust_positives: bool = _option(False, "Regard every given positive as clean.")
    mixture_separation: float = _option(
        0.0,
        "Regard a whole (class, label) set as clean unless its two loss modes are separated by at least this Ashman's "
        "D; 0 is the paper, above 0 is this package's own variant.",
    )
    mixture_disagreement: float = _option(
        0.0,
        "Regard a whole (class, label) set as clean unless its large-loss mode has at least this mean loss; 0 is the "
        "paper, 0.69 (ln 2: the model contradicts those labels) is this package's own variant.",
    )

    def __post_init__(self) -> None:
        check_trainer_arguments(self)
        check_method_arguments(self)
        self.label_names = ["labels"]
        best = self.load_best_model_at_end or getattr(self.save_strategy, "value", self.save_strategy) == "best"
        if best and self.metric_for_best_model is None:
            self.metric_for_best_model = "map"
        super().__post_init__()

    @property
    def needs_views(self) -> bool:
        """Whether refinement needs the two augmented views."""
        return self.refinement in ("full", "relabelled")

    @property
    def augments_on_device(self) -> bool:
        """Whether the device makes the augmented views, and not the loader's workers."""
        return self.augment_on == "device" or (self.augment_on == "auto" and self.device.type != "cpu")

    @property
    def streams(self) -> bool:
        """Whether posteriors are computed at the step, and nothing is kept of a label but itself."""
        return self.needs_views and self.relabel_views == "stream"

    def method_settings(self) -> dict[str, object]:
        """Return the options that define the method, for checkpoints and results."""
        return {name: getattr(self, name) for name in METHOD_FIELDS}
