"""An exponential moving average of the weights: evaluated beside the model, kept in checkpoints, saved at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from hf_balancemix.training.refresh import synchronise_buffers

logger = logging.get_logger(__name__)

FILE_NAME = "ema.safetensors"
FINAL_MODEL = "ema"
_MUCH = 0.05


class WeightAverage(TrainerCallback):
    """Averages all that the model's state dict holds, after every optimiser step: ``d·average + (1 - d)·weights``.

    ``d`` is ``args.ema_decay``; 0 switches everything here off. The average begins as a copy of the weights that
    training begins with. Floating tensors are averaged, in float32 where the model has less; whole numbers are copied.
    Training, the statistics of BalanceMix and what the Trainer saves go on with the raw model.

    Relations: what ``timm.utils.ModelEmaV2`` does, without a second model: the averaged tensors are lent to the one
    that there is, wrapped and compiled as it may be. An fp16 step that the gradient scaler skips counts too, as in the
    ASL and ML-Decoder scripts.

    Args:
        trainer: The trainer that it belongs to.

    Raises:
        ValueError: If the model is sharded (FSDP, DeepSpeed).
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.average: dict[str, torch.Tensor] | None = None
        if trainer.args.ema_decay and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            raise ValueError(
                f"Expected `ema_decay=0` with FSDP or DeepSpeed, found {trainer.args.ema_decay}: every process needs "
                "whole weights to average. Leave it at 0, or train with plain data parallelism."
            )

    # ---- the average ----

    @torch.no_grad()
    def start(self) -> None:
        """Begin anew from the model's present weights; forget the average if ``ema_decay`` is 0."""
        self.average = None
        if self.trainer.args.ema_decay:
            state = self.trainer.model.state_dict()
            self.average = {name: value.clone().to(_dtype(value)) for name, value in state.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's present weights."""
        if self.average is None:
            return
        averages, weights = [], []
        for name, value in self.trainer.model.state_dict().items():
            if value.is_floating_point():
                averages.append(self.average[name])
                weights.append(value.to(self.average[name].dtype))
            else:
                self.average[name].copy_(value)
        # Towards the weights, and not d·a + (1 - d)·w: what does not change stays as it is to the last bit.
        torch._foreach_lerp_(averages, weights, 1 - self.trainer.args.ema_decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Lend the average to the model; the raw weights come back bit for bit, whatever happens meanwhile."""
        assert self.average is not None
        model = self.trainer.model
        raw = {name: value.detach().clone() for name, value in model.state_dict().items()}
        try:
            _write(model, self.average)
            # Batch norm statistics are those of the first process, as in a checkpoint.
            synchronise_buffers(model, self.trainer.args)
            yield
        finally:
            _write(model, raw)

    # ---- checkpoints ----

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``ema.safetensors`` into a checkpoint, if there is an average; for the saving process."""
        if self.average is not None:
            save_file({name: value.contiguous() for name, value in self.average.items()}, Path(folder) / FILE_NAME)

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Go on with the average of a checkpoint; without one, begin with the checkpoint's weights.

        Raises:
            ValueError: If the file is damaged or belongs to another model.
        """
        self.start()
        path = Path(folder) / FILE_NAME
        if self.average is None:
            return
        if not path.is_file():
            logger.warning(f"No {FILE_NAME} in {folder}: the average begins with the weights of this checkpoint.")
            return
        try:
            saved = load_file(path)
            if {n: v.shape for n, v in saved.items()} != {n: v.shape for n, v in self.average.items()}:
                raise ValueError("its tensors are not those of this model")
        except (SafetensorError, ValueError) as error:
            raise ValueError(
                f"Expected the averaged weights of this model in {path}, found that it is damaged or another model's "
                f"({error}). Resume from another checkpoint of the same run, or remove the file to begin the average "
                "with the checkpoint's weights."
            ) from error
        for name, value in saved.items():
            self.average[name].copy_(value)

    # ---- evaluation ----

    def evaluate(
        self,
        loop: Callable[..., EvalLoopOutput],
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run an evaluation loop with the raw weights, and once more with the average where there are labels.

        Args:
            loop: ``Trainer.evaluation_loop``.
            dataloader: Passed on, as all the rest.
            description: Name of the bar.
            prediction_loss_only: See the Trainer.
            ignore_keys: See the Trainer.
            metric_key_prefix: Prefix of the metrics; ``ema`` follows it in those of the average: ``eval_ema_map``.

        Returns:
            Predictions of the raw model, and the metrics of both.
        """
        output = loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self.average is None or output.label_ids is None:
            return output
        # The raw run draws what it would draw without an average.
        with self.applied(), torch.random.fork_rng(devices=[]):
            averaged = loop(dataloader, description, prediction_loss_only, ignore_keys, f"{metric_key_prefix}_ema")
        output.metrics.update(averaged.metrics)
        return output

    # ---- events ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin with the initial weights, unless a checkpoint's average has been loaded."""
        if state.global_step == 0:
            self.start()
        steps = max(0, state.max_steps - self.trainer.average_from * self.trainer.steps_per_epoch())
        left = self.trainer.args.ema_decay**steps
        if self.trainer.args.ema_decay and left > _MUCH:
            logger.warning(
                f"With `ema_decay={self.trainer.args.ema_decay}` and {steps} optimiser steps the average still "
                f"consists of the initial weights by {left:.0%} in the end. Take a smaller decay or more steps."
            )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update; accumulated micro-batches are one step."""
        self.update()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write a complete model into ``OUTPUT_DIR/ema``; where the best model was loaded, its average."""
        if self.average is None or state.is_hyper_param_search:
            return
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if best is not None:
            self.load(best)
        folder = Path(args.output_dir) / FINAL_MODEL
        with self.applied():
            if not args.should_save:
                return
            try:
                self.trainer.model.save_pretrained(folder)
                if self.trainer.processing_class is not None:
                    self.trainer.processing_class.save_pretrained(folder)
            except (OSError, SafetensorError) as error:
                logger.warning(f"The averaged model could not be written to {folder} ({error}); the raw one is safe.")


def has_average(folder: str | os.PathLike[str]) -> bool:
    """Say whether a checkpoint holds a whole file of averaged weights; reads its header only."""
    try:
        with safe_open(Path(folder) / FILE_NAME, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _dtype(value: torch.Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype


@torch.no_grad()
def _write(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    # Asked for again each time: `bf16_full_eval` puts other tensors into the model meanwhile.
    for name, value in model.state_dict().items():
        value.copy_(tensors[name])
