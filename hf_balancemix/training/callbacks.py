"""What happens between the steps: preparing epochs, and when and over what checkpoints are written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class PrepareEpochs(TrainerCallback):
    """Prepares each epoch before its loader is read, and the statistics of the final model at the end."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepare the epoch that begins; on resume perhaps one that was prepared before."""
        self.trainer.prepare_epoch(int(state.epoch or 0))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refresh once more, for the model as it is now."""
        self.trainer.prepare_epoch(math.ceil(state.epoch or 0), final=True)


class Overwritten(TrainerCallback):
    """Devalues an older run's checkpoint that is about to be overwritten: half old and half new it must not count."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the file that vouches for the others, if this step is to be saved."""
        if args.should_save and control.should_save:
            Path(args.output_dir, f"checkpoint-{state.global_step}", "trainer_state.json").unlink(missing_ok=True)

    on_epoch_end = on_step_end


class SaveAfterEvaluation(TrainerCallback):
    """Puts off a checkpoint that falls on the last step of an epoch until the epoch's evaluation is done.

    The stock order is step, save, evaluation. A run that resumes from such a checkpoint never makes that evaluation:
    its result is lost, and the random numbers that it draws are missing, so that with dropout the weights differ.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.pending = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget what an interrupted run had put off."""
        self.pending = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hold the save back at the end of an epoch or of the run."""
        steps = self.trainer.steps_per_epoch()
        if control.should_save and (state.global_step % steps == 0 or state.global_step >= state.max_steps):
            control.should_save, self.pending = False, True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let it happen: the Trainer evaluates before it saves."""
        control.should_save |= self.pending
        self.pending = False
