"""One entry per run in W&B, trackio and the like, although a recipe trains several runs in one process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, WandbCallback


def entry_name(args: Any) -> str:
    """Return the name of a run's entry: ``run_name``, or the experiment's folder, then the run's.

    trackio goes on with an entry of the same name, as a resumed run should with its ``run_name``. Where none was given
    the time keeps another try in the same folder apart.
    """
    folder = Path(args.output_dir)
    if args.run_name:
        return f"{args.run_name}-{folder.name}"
    return f"{folder.absolute().parent.name}-{folder.name}-{time.strftime('%m%d-%H%M%S')}"


def close_entry(trainer: Trainer) -> None:
    """End the entry of a run, and report nothing more.

    W&B would go on in it with the next run, and trackio would open another one for the predictions after the training.
    """
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) not in INTEGRATION_TO_CALLBACK.values():
            continue
        trainer.remove_callback(callback)
        if isinstance(callback, WandbCallback) and callback._wandb is not None and callback._wandb.run is not None:
            callback._wandb.finish()
