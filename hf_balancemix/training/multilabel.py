"""The Trainer, made right for multi-label images: loss scale, data road, evaluation, safe checkpoints.

``MultiLabelTrainer`` alone is the plain BCE baseline (the paper's "Default"); ``BalanceMixTrainer`` builds on it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.utils import logging

from hf_balancemix import checks
from hf_balancemix.data.columns import LabelTable, encode_labels, find_image_column, has_label_column
from hf_balancemix.data.formats import as_stored, evaluation_labels, refuse_ignored
from hf_balancemix.data.noise import noise_of
from hf_balancemix.data.pairs import EvalDataset, ImageRows, PairDataset, PairSampler, as_batch
from hf_balancemix.data.transforms import ImageTransform
from hf_balancemix.label_state import LabelState
from hf_balancemix.losses import weighted_bce
from hf_balancemix.report import build_compute_metrics
from hf_balancemix.training import checkpoints
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.callbacks import Overwritten, PrepareEpochs, SaveAfterEvaluation
from hf_balancemix.training.refresh import synchronise_buffers

logger = logging.get_logger(__name__)


class MultiLabelTrainer(Trainer):
    """Trains any image classifier of transformers or timm with binary cross-entropy on multi-label images.

    What it mends in the stock Trainer, for multi-label problems: the loss is right under gradient accumulation and
    with several processes (huggingface/transformers#47688), the sampler is the same on every rank and after a resume,
    evaluation reports mAP, label columns of any shape are read, and a checkpoint is either complete or not used.

    Args:
        model: A ``PreTrainedModel`` with one output per class; its class names and ``problem_type`` are set.
        args: :class:`BalanceMixTrainingArguments`.
        train_dataset: A ``datasets.Dataset`` with an image column and a label column.
        eval_dataset: One more, or a dict of them.
        processing_class: The image processor; it decides size and normalisation, and is saved with the model.
        compute_metrics: Replaces the built-in mAP, group mAP and F1.
        **kwargs: The other arguments of ``transformers.Trainer``. ``data_collator`` and ``compute_loss_func`` are
            refused: the trainer collates by itself, and the loss is the method.

    Raises:
        TypeError: For data sets, models or arguments of another kind.
        ValueError: For data that cannot be trained on; each message says what to do.
    """

    args: BalanceMixTrainingArguments
    model: Any
    eval_dataset: Any
    # One mean per micro-batch; the Trainer divides by the number of accumulated ones.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: Any = None,
        args: BalanceMixTrainingArguments | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        args = args if args is not None else BalanceMixTrainingArguments(output_dir="trainer_output")
        checks.check_trainer_inputs(args, model, processing_class, kwargs)
        self.transform = ImageTransform(processing_class, args.augmentation)
        self.label_state: LabelState | None = None
        self.clean_labels: torch.Tensor | None = None  # diagnostics only; training never reads it
        self._class_names = checks.own_class_names(model)
        if train_dataset is not None:
            checks.check_dataset(train_dataset, "training")
            train_dataset = as_stored(train_dataset)
            self._read_labels(train_dataset, args)
        self._check_eval_sets(eval_dataset, args)
        if compute_metrics is None and self._class_names is not None:
            thresholds = (args.medium_shot_from, args.many_shot_from)
            compute_metrics = build_compute_metrics(self._class_names, self._train_counts(), thresholds)
        super().__init__(
            model=model,
            args=args,
            data_collator=as_batch,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        self._name_classes()
        self._train_images: ImageRows | None = None
        self._eval_sets: dict[int, tuple[Any, EvalDataset]] = {}
        # After the one that decides when to save, before reporters, which close their files when training ends.
        self.callback_handler.callbacks[1:1] = [SaveAfterEvaluation(self), Overwritten(), PrepareEpochs(self)]

    # ---- reading the data ----

    def _read_labels(self, dataset: Any, args: BalanceMixTrainingArguments) -> None:
        refuse_ignored(dataset)
        table = self._encode(dataset, args)
        self._class_names = table.class_names
        if unseen := [
            name for name, count in zip(table.class_names, table.labels.sum(axis=0), strict=True) if not count
        ]:
            logger.warning(f"{len(unseen)} of {len(table.class_names)} classes have no positive: {unseen[:5]}.")
        self.label_state = LabelState(torch.from_numpy(table.labels), table.class_names)
        if "clean_labels" in dataset.column_names:
            clean = encode_labels(dataset, "clean_labels", table.class_names)
            self.clean_labels = torch.from_numpy(clean.labels)

    def _encode(self, dataset: Any, args: BalanceMixTrainingArguments) -> LabelTable:
        try:
            return encode_labels(dataset, args.label_column, self._class_names, args.label_delimiter)
        except ValueError as error:
            if self._class_names is None or self.label_state is not None:
                raise
            raise ValueError(f"{error} {checks.names_of_model(self._class_names)}") from error

    def _train_counts(self) -> np.ndarray | None:
        """Positives per class, from the clean labels where there are any: groups stay the same under any noise."""
        if self.label_state is None:
            return None
        labels = self.clean_labels if self.clean_labels is not None else self.label_state.labels
        return labels.sum(dim=0, dtype=torch.int64).numpy()

    def _check_eval_sets(self, eval_dataset: Any, args: BalanceMixTrainingArguments) -> None:
        sets = eval_dataset if isinstance(eval_dataset, dict) else {"evaluation": eval_dataset}
        for name, dataset in sets.items():
            if dataset is not None:
                checks.check_dataset(dataset, name)
                stored = as_stored(dataset)
                table = self._encode(stored, args)
                evaluation_labels(stored, table)  # a mistake there shows before training, not after an epoch
                self._class_names = table.class_names

    def _name_classes(self) -> None:
        """Write class names and problem type into the model's configuration: every loader and pipeline reads them."""
        if self._class_names is None:
            return
        checks.check_model(self.model, self._class_names)
        config = self.model.config
        config.id2label = dict(enumerate(self._class_names))
        config.label2id = {name: i for i, name in enumerate(self._class_names)}
        config.problem_type = "multi_label_classification"

    def _image_rows(self, dataset: Any) -> ImageRows:
        column = self.args.image_column or find_image_column(dataset)
        return ImageRows(dataset, column, self.transform, self.args.cache_images)

    def _epoch(self) -> int:
        return int(self.state.epoch or 0)

    def _train_sampler(self, dataset: Any) -> PairSampler:
        return PairSampler(len(dataset), self.args.seed, self._epoch)

    def _mix_alpha(self) -> float:
        return 0.0

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of one epoch's items; a new run starts with a fresh :class:`LabelState`."""
        if self.label_state is None:
            raise ValueError("Expected a `train_dataset`, found None: training needs one.")
        args = self.args
        started = int(os.environ.get("WORLD_SIZE", "1"))
        checks.check_world_size(args.world_size * max(args.n_gpu, 1), started)
        checks.check_method_arguments(args)  # again: a hyperparameter search sets them anew for every run
        self.transform.augmentation = args.augmentation
        checks.check_batch_size(
            len(self.label_state), self._train_batch_size, args.world_size, args.dataloader_drop_last
        )
        self._name_classes()  # again: `model_init` makes a new model for every run
        if self.is_in_train:
            self.label_state.reset()  # before a checkpoint, if any, is loaded
        if self._train_images is None:
            self._train_images = self._image_rows(self.train_dataset)
        return self._get_dataloader(
            dataset=PairDataset(self._train_images, self.transform, self._mix_alpha()),
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=self._train_sampler,
            is_training=True,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the loader of an evaluation set; it never drops the last batch."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("Expected an `eval_dataset`, found None: pass one to the trainer or to `evaluate`.")
        return self._plain_dataloader(dataset, labelled=True)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return the loader of ``predict``; the set may have no labels."""
        return self._plain_dataloader(test_dataset, labelled=False)

    def _plain_dataloader(self, dataset: Any, labelled: bool) -> DataLoader:
        synchronise_buffers(self.model, self.args)  # every evaluation begins with its loader
        key = id(dataset)
        if key not in self._eval_sets:
            checks.check_dataset(dataset, "evaluation")
            stored, labels = as_stored(dataset), None
            if labelled or has_label_column(stored, self.args.label_column):
                labels = torch.from_numpy(evaluation_labels(stored, self._encode(stored, self.args)))
            # The data set is kept beside its reader, so that no other object gets its id.
            self._eval_sets[key] = (dataset, EvalDataset(self._image_rows(stored), self.transform, labels))
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return self._get_dataloader(
                dataset=self._eval_sets[key][1],
                description="Evaluation",
                batch_size=self.args.eval_batch_size,
                sampler_fn=self._get_eval_sampler,
                dataloader_key=str(key),
            )
        finally:
            self.args.dataloader_drop_last = drop_last

    # ---- one step ----

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return Eq. 1 on a batch. ``num_items_in_batch`` is not used: the loss is a mean over the batch's images."""
        if "index" in inputs:
            assert self.label_state is not None
            pixels, targets = inputs["pixel_values"][:, 0, 0], self.label_state.labels[inputs["index"][:, 0].cpu()]
        else:
            pixels, targets = inputs["pixel_values"], inputs["labels"]
        counted = None if "index" in inputs else targets >= 0  # -1: left out of the evaluation
        return self._loss(model, pixels, targets.clamp(min=0), counted, inputs.get("index"), return_outputs)

    def _loss(
        self, model: Any, pixels: Any, targets: Any, entry_weights: Any, index: Any, return_outputs: bool = False
    ) -> Any:
        """Predict, compare, and stop if the training loss is not finite."""
        outputs = model(pixel_values=pixels)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        loss = weighted_bce(logits, targets.to(logits.device), entry_weights, self.args.class_reduction)
        if index is not None:
            checks.check_finite(loss.item(), self.state.global_step, index.flatten())
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Return the parameters with weight decay, by ``args.weight_decay_on``: all, or the Trainer's choice."""
        if self.args.weight_decay_on == "all":
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def prepare_epoch(self, epoch: int, final: bool = False) -> None:
        """Prepare the statistics of an epoch; plain training has none. Idempotent."""

    # ---- checkpoints ----

    def steps_per_epoch(self) -> int:
        """Return the optimiser steps of one epoch."""
        return checkpoints.steps_per_epoch(self.args, len(self.train_dataset), self._train_batch_size)

    def run_facts(self) -> dict[str, Any]:
        """Return what a checkpoint must share with the run that resumes from it."""
        args = self.args
        return {
            "trainer": type(self).__name__,
            "seed": args.seed,
            "world_size": args.world_size,
            "images_per_step": self._train_batch_size * args.world_size * args.gradient_accumulation_steps,
            "steps_per_epoch": self.steps_per_epoch(),
            "noise": noise_of(self.train_dataset),
            **args.method_settings(),
        }

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike[str] | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: Any = None,
    ) -> Any:
        """Train, or go on from the last complete checkpoint (``True``) or from the one named.

        Raises:
            ValueError: If there is no complete checkpoint, or if it belongs to another run.
        """
        resume_from_checkpoint = checkpoints.find_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if resume_from_checkpoint is not None and self.label_state is not None and not self.args.auto_find_batch_size:
            self._saved_state(resume_from_checkpoint)  # refuse another run's before its weights fail to load
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        except KeyboardInterrupt:
            if self.is_world_process_zero():
                logger.warning(checkpoints.interrupted(self.args.output_dir, self.state.global_step))
            raise
        except Exception as error:  # a full disk is an OSError, but also what torch and safetensors make of it
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            saving = self.args.should_save and self.control.should_save  # the flag falls when a save has succeeded
            if not saving or not folder.is_dir() or "trainer_state.json" not in checkpoints.missing_parts(folder):
                raise  # that file is the last one of a checkpoint: it stands if only the push to the Hub failed
            raise checkpoints.unsaved(folder, error) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights of a checkpoint to resume from."""
        if not self._load_weights(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint."""
        if not self._load_weights(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_weights(self, checkpoint: str | None) -> bool:
        """Load weights, all of them or none; say whether this way was open."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if checkpoint is None or sharded or not isinstance(self.model, PreTrainedModel):
            return False
        checkpoints.load_weights(self.model, checkpoint)
        return True

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the label state along with the optimiser: whatever resumes needs both."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self.label_state is not None:
            self.label_state.save(output_dir, self.run_facts())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the label state along with the optimiser, after comparing the checkpoint with this run."""
        if checkpoint is not None and self.label_state is not None:
            saved, changes = self._saved_state(checkpoint)
            for sentence in changes.values():
                logger.warning(f"Resuming from {checkpoint} as another run: {sentence}.")
            if not changes.keys().isdisjoint(self.args.method_settings()):
                saved.reset()  # what the new settings need may be missing: the resumed epoch is prepared anew
            self.label_state.assign(saved)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _saved_state(self, checkpoint: str) -> tuple[LabelState, dict[str, str]]:
        """Return the label state of a checkpoint and how its run differs; refuse what cannot be gone on with."""
        saved, saved_run = LabelState.load(checkpoint)
        return saved, checks.check_resume(saved, self.label_state, saved_run, self.run_facts(), checkpoint)
