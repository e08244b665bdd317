"""What happens between the steps: preparing epochs, and guarding checkpoints of an older run."""

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
