"""The Trainer, made right for multi-label images: loss scale, data road, evaluation, safe checkpoints.

``MultiLabelTrainer`` alone is the plain BCE baseline (the paper's "Default"); ``BalanceMixTrainer`` builds on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.utils import logging

from hf_balancemix import checks
from hf_balancemix.argument_checks import check_method_arguments
from hf_balancemix.data.columns import encode_labels, find_image_column, has_label_column
from hf_balancemix.data.formats import as_stored, evaluation_labels, refuse_ignored
from hf_balancemix.data.pairs import EvalDataset, ImageRows, PairDataset, PairSampler, as_batch
from hf_balancemix.data.transforms import ImageTransform
from hf_balancemix.label_state import LabelState
from hf_balancemix.losses import pair_losses, reduce_losses, weighted_bce
from hf_balancemix.method import mix
from hf_balancemix.report import build_compute_metrics
from hf_balancemix.thresholds import CONFIG_ENTRY
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.callbacks import Overwritten, PrepareEpochs, SaveAfterEvaluation
from hf_balancemix.training.checkpoints import remove_final_state
from hf_balancemix.training.ema import WeightAverage
from hf_balancemix.training.objective import entry_losses, logits_of
from hf_balancemix.training.optimisation import decay_parameter_names, one_cycle
from hf_balancemix.training.refresh import synchronise_buffers
from hf_balancemix.training.resumable import ResumableTrainer
from hf_balancemix.training.stream import shared_counts, shared_labels

logger = logging.get_logger(__name__)


class MultiLabelTrainer(ResumableTrainer):
    """Trains any image classifier of transformers or timm with binary cross-entropy on multi-label images.

    What it mends in the stock Trainer, for multi-label problems: the loss is right under gradient accumulation and
    with several processes (huggingface/transformers#47688), the sampler is the same on every rank and after a resume,
    evaluation reports mAP, label columns of any shape are read, and a checkpoint is either complete or not used.

    The loss is ``args.loss``; with ``second_sampler="batch"`` the images of a batch are mixed with a permutation of
    themselves (plain Mixup), and the loss is taken against both members' labels. The samplers "minority" and "random"
    belong to ``BalanceMixTrainer``: here they are the same as "none".

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

    eval_dataset: Any
    # One mean per micro-batch; the Trainer divides by the number of accumulated ones.
    loss_is_scaled_for_ga = False
    keeps_tables = False  # whether the method needs tables of all labels, and none can be streamed

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
        self.transform = ImageTransform(processing_class, args.augmentation, args.cutout)
        self.label_state: LabelState | None = None
        self.clean_labels: torch.Tensor | None = None  # diagnostics only; training never reads it
        self.card_details = {}
        self._class_names = checks.own_class_names(model)
        if train_dataset is not None:
            checks.check_dataset(train_dataset, "training")
            train_dataset = as_stored(train_dataset)
            self._read_labels(train_dataset, args)
        self._check_eval_sets(eval_dataset, args)
        if compute_metrics is None and self._class_names is not None:
            thresholds = (args.medium_shot_from, args.many_shot_from)
            counts = None if self.label_state is None else self.positives.numpy()
            compute_metrics = build_compute_metrics(self._class_names, counts, thresholds)
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
        self._order_channels(self.model)
        self._name_classes()
        self.average = WeightAverage(self)
        self._train_images: ImageRows | None = None
        self._eval_sets: dict[int, tuple[Any, EvalDataset]] = {}
        # After the one that decides when to save, before reporters, which close their files when training ends.
        own = [SaveAfterEvaluation(self), Overwritten(), PrepareEpochs(self), self.average]
        self.callback_handler.callbacks[1:1] = own

    @classmethod
    def check_arguments(cls, args: BalanceMixTrainingArguments) -> None:
        """Refuse options that are right by themselves but not with this trainer.

        Raises:
            ValueError: Naming the option and its value.
        """

    # ---- reading the data ----

    def _read_labels(self, dataset: Any, args: BalanceMixTrainingArguments) -> None:
        refuse_ignored(dataset)
        streams = args.streams and not self.keeps_tables
        if streams:
            labels, self._class_names = self._named(partial(shared_labels, args), dataset, args)
        else:
            table = self._encode(dataset, args)
            labels, self._class_names = torch.from_numpy(table.labels), table.class_names
        self.label_state = LabelState(labels, self._class_names)
        self.positives = self.label_state.positives()  # (K,), of the clean ones if known: the same under any noise
        if unseen := [name for name, count in zip(self._class_names, self.positives, strict=True) if not count]:
            logger.warning(f"{len(unseen)} of {len(self._class_names)} classes have no positive: {unseen[:5]}.")
        if "clean_labels" in dataset.column_names and streams:
            self.positives = shared_counts(args, dataset, "clean_labels", self._class_names)
        elif "clean_labels" in dataset.column_names:
            self.clean_labels = torch.from_numpy(encode_labels(dataset, "clean_labels", self._class_names).labels)
            self.positives = self.clean_labels.sum(dim=0, dtype=torch.int64)

    def _encode(self, dataset: Any, args: BalanceMixTrainingArguments) -> Any:
        return self._named(encode_labels, dataset, args)

    def _named(self, encode: Callable[..., Any], dataset: Any, args: BalanceMixTrainingArguments) -> Any:
        """Read labels; if the model brought the class names that they do not fit, say so."""
        try:
            return encode(dataset, args.label_column, self._class_names, args.label_delimiter)
        except ValueError as error:
            if self._class_names is None or self.label_state is not None:
                raise
            raise ValueError(f"{error} {checks.names_of_model(self._class_names)}") from error

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
        if self.train_dataset is not None and hasattr(config, CONFIG_ENTRY):
            delattr(config, CONFIG_ENTRY)  # they are of the weights before this training

    def _image_rows(self, dataset: Any) -> ImageRows:
        column = self.args.image_column or find_image_column(dataset)
        return ImageRows(dataset, column, self.transform, self.args.cache_images, self.args.image_cache)

    def _epoch(self) -> int:
        return int(self.state.epoch or 0)

    def _train_sampler(self, dataset: Any) -> PairSampler:
        second = "batch" if self._mixes() else None
        return PairSampler(len(dataset), self.args.seed, self._epoch, second, batch_size=self.images_per_step())

    def _mixes(self) -> bool:
        """Whether images are mixed with others of their batch."""
        return self.args.second_sampler == "batch" and self.args.mix_alpha > 0

    def _pair_dataset(self, images: ImageRows) -> PairDataset:
        return PairDataset(images, self.transform, self.args.mix_alpha, folded=False)

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of one epoch's items; a new run starts with a fresh :class:`LabelState`."""
        if self.label_state is None:
            raise ValueError("Expected a `train_dataset`, found None: training needs one.")
        args = self.args
        started = int(os.environ.get("WORLD_SIZE", "1"))
        checks.check_world_size(args.world_size * max(args.n_gpu, 1), started)
        checks.check_sharding(self.model, bool(args.fsdp), self.is_fsdp_enabled)
        check_method_arguments(args)  # again: a hyperparameter search sets them anew for every run
        self.check_arguments(args)
        self.transform.set_augmentation(args.augmentation, args.cutout, args.augments_on_device)
        checks.check_batch_size(
            len(self.label_state), self._train_batch_size, args.world_size, args.dataloader_drop_last
        )
        self._name_classes()  # again: `model_init` makes a new model for every run
        if (self.label_state.sparse is not None) != (args.streams and not self.keeps_tables):
            self._read_labels(self.train_dataset, args)  # likewise: a search has turned streaming on or off
        if self.is_in_train:
            self.label_state.reset()  # before a checkpoint, if any, is loaded
            if args.should_save and not self.state.is_hyper_param_search:
                remove_final_state(args.output_dir)
        if self._train_images is None:
            self._train_images = self._image_rows(self.train_dataset)
            sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
            for dataset in sets.values():
                if dataset is not None and args.image_cache is not None:  # a full disk shows now, not after an epoch
                    self._eval_set(dataset, labelled=True)
        return self._get_dataloader(
            dataset=self._pair_dataset(self._train_images),
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
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return self._get_dataloader(
                dataset=self._eval_set(dataset, labelled),
                description="Evaluation",
                batch_size=self.args.eval_batch_size,
                sampler_fn=self._get_eval_sampler,
                dataloader_key=str(id(dataset)),
            )
        finally:
            self.args.dataloader_drop_last = drop_last

    def _eval_set(self, dataset: Any, labelled: bool) -> EvalDataset:
        key = id(dataset)
        if key not in self._eval_sets:
            checks.check_dataset(dataset, "evaluation")
            stored, labels = as_stored(dataset), None
            if labelled or has_label_column(stored, self.args.label_column):
                labels = torch.from_numpy(evaluation_labels(stored, self._encode(stored, self.args)))
            # The data set is kept beside its reader, so that no other object gets its id.
            self._eval_sets[key] = (dataset, EvalDataset(self._image_rows(stored), labels))
        return self._eval_sets[key][1]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Predict and measure, with the averaged weights as well if there are any."""
        return self.average.evaluate(super().evaluation_loop, *args, **kwargs)

    # ---- one step ----

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device, and finish its images there: until then they are bytes."""
        inputs = super()._prepare_inputs(inputs)
        if inputs["pixel_values"].dtype == torch.uint8:
            # Again for what DeepSpeed wants of floats.
            inputs["pixel_values"] = self._prepare_input(self.transform.finish(self.transform.views(inputs)))
        return inputs

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the method's loss on a training batch, BCE (Eq. 1) on one of an evaluation.

        ``num_items_in_batch`` is not used: the loss is a mean over the batch's images.
        """
        if "index" not in inputs:
            logits, targets = self._logits(model, inputs["pixel_values"]), inputs["labels"]
            counted = targets >= 0  # -1: left out of the evaluation
            loss = weighted_bce(logits, targets.clamp(min=0), counted, self.args.class_reduction)
            return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss
        pixels, index = inputs["pixel_values"][:, :, 0], inputs["index"]  # (B, members, C, H, W), (B, members)
        labels = self._given_labels(index).to(pixels.device)
        if index.shape[1] == 1:
            entries = self._entry_losses(self._logits(model, pixels[:, 0]), labels[:, 0])
        else:
            mix_lambda = self._mix_lambda(inputs)
            logits = self._logits(model, mix(pixels[:, 0], pixels[:, 1], mix_lambda))
            entries = pair_losses(self._entry_losses, logits, labels[:, 0], labels[:, 1], mix_lambda)
        return self._training_loss(entries, index)

    def _mix_lambda(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return λ (B,) of each pair."""
        mix_lambda: torch.Tensor = inputs["mix_lambda"]
        return mix_lambda[:1].expand_as(mix_lambda) if self.args.mix_lambda_per == "batch" else mix_lambda

    def _given_labels(self, index: torch.Tensor) -> torch.Tensor:
        """Return the labels (..., K) float32 of rows (...), on the CPU."""
        assert self.label_state is not None
        return self.label_state.labels_of(index.cpu()).float()

    def _entry_losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the (B, K) losses of the method."""
        return entry_losses(self.args, self._epoch(), self.state.num_train_epochs, logits, targets)

    def _logits(self, model: Any, pixels: torch.Tensor) -> torch.Tensor:
        return logits_of(model, pixels)

    def _training_loss(self, entries: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Reduce the entries of a training batch, and stop if the result is not finite."""
        loss = reduce_losses(entries, self.args.class_reduction)
        checks.check_finite(loss.item(), self.state.global_step, index.flatten())
        return loss

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Return the parameters with weight decay, by ``args.weight_decay_on``."""
        return decay_parameter_names(model, self.args.weight_decay_on, super().get_decay_parameter_names(model))

    def call_model_init(self, trial: Any = None) -> Any:
        """Build the model anew, its weights ordered as ``args.channels_last`` says."""
        return self._order_channels(super().call_model_init(trial))

    def _order_channels(self, model: Any) -> Any:
        return model.to(memory_format=torch.channels_last) if self.args.channels_last else model

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the schedule of the learning rate: a single cycle if ``args.one_cycle``, else the Trainer's."""
        if self.args.one_cycle and self.lr_scheduler is None:
            self.lr_scheduler = one_cycle(optimizer or self.optimizer, num_training_steps)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def prepare_epoch(self, epoch: int, final: bool = False) -> None:
        """Prepare the statistics of an epoch; plain training has none. Idempotent."""
