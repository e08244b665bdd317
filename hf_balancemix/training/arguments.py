"""Arguments of the trainers: ``TrainingArguments`` plus the method's options, defaults as in the paper."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_balancemix.checks import check_method_arguments, check_trainer_arguments
from hf_balancemix.data.transforms import AUGMENTATIONS
from hf_balancemix.losses import CLASS_REDUCTIONS
from hf_balancemix.method import MINORITY_SCORES, REFINEMENTS

RELABEL_VIEWS = ("step", "epoch", "reuse")
WEIGHT_DECAY_ON = ("weights", "all")
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
    "class_reduction",
    "augmentation",
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
    augmentation: str = _option(
        "randaugment_asl",
        "RandAugment as in the ASL and ML-Decoder scripts, torchvision's RandAugment(2, 9), a batched affine one for "
        "small images, or none.",
        sorted(AUGMENTATIONS),
    )
    medium_shot_from: int = _option(1000, "Classes with at least this many training positives are medium-shot.")
    many_shot_from: int = _option(10000, "Classes with at least this many training positives are many-shot.")

    weight_decay_on: str = _option(
        "weights",
        "Parameters with weight decay: weights (the Trainer's choice, without biases and norms) or all (the paper).",
        WEIGHT_DECAY_ON,
    )

    class_reduction: str = _option(
        "sum", "Loss over the classes: sum (Eq. 1) or mean; instances are always averaged.", CLASS_REDUCTIONS
    )
    second_sampler: str = _option(
        "minority", "Sampler of the second half of each pair: minority (Eq. 4) or random.", ["minority", "random"]
    )
    minority_score: str = _option(
        "eq3",
        "Score behind the minority sampler: eq3, the paper's literal Eq. 3, or mean_positive, the reading that "
        "has the shape and size of its Figure 6.",
        MINORITY_SCORES,
    )
    mix_alpha: float = _option(4.0, "α of Beta(α, α) for the mixing coefficient λ ≥ 1/2 (Eq. 5); 0 means λ = 1.")
    mix_lambda_per: str = _option("pair", "Draw λ for each pair, or one for each batch.", ["pair", "batch"])
    refinement: str = _option(
        "full",
        "After warm-up: full (Eq. 8-10); relabelled: ambiguous labels get weight 0; clean: every label that is not "
        "clean gets weight 0; none: the given labels.",
        REFINEMENTS,
    )
    warmup_epochs: int = _option(
        5, "Epochs before refinement starts. Not the learning rate's warm-up, which is warmup_steps."
    )
    relabel_threshold: float = _option(
        0.975, "ε of Eq. 9, in [0.5, 1]; the paper takes 0.975, and 0.55 for single-positive labels."
    )
    relabel_views: str = _option(
        "reuse",
        "When the two augmented views of Eq. 9 are predicted: step (the paper; four extra forwards per step), epoch "
        "(a clean and both augmented views once per epoch), reuse (both augmented views once per epoch, which also "
        "serve Eq. 2-8 in place of the clean one; the cheapest, and as good on digits).",
        RELABEL_VIEWS,
    )
    relabel_bn: str = _option(
        "eval",
        "Mode of the model while it predicts the views of schedule step: eval, or train as DivideMix has it (batch "
        "statistics; this moves the running statistics too).",
        ["eval", "train"],
    )
    min_fit: int = _option(
        4, "Fewest losses of a (class, label) set that a mixture is fitted to; smaller sets are clean."
    )
    monotone_posterior: bool = _option(
        False, "Forbid that a larger loss gets a larger posterior (off: Eq. 8 to the letter)."
    )
    trust_positives: bool = _option(False, "Regard every given positive as clean.")

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

    def method_settings(self) -> dict[str, object]:
        """Return the options that define the method, for checkpoints and results."""
        return {name: getattr(self, name) for name in METHOD_FIELDS}
