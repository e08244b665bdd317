"""A Trainer whose runs can be killed, resumed exactly and pushed: what a checkpoint holds, when to go on with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from hf_balancemix import checks
from hf_balancemix.data.noise import noise_of
from hf_balancemix.hub.card import render_card
from hf_balancemix.hub.contents import CARD
from hf_balancemix.label_state import LabelState
from hf_balancemix.training import checkpoints
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.card_facts import card_facts, stated
from hf_balancemix.training.ema import WeightAverage
from hf_balancemix.training.pushing import Pushing

logger = logging.get_logger(__name__)


class ResumableTrainer(Trainer):
    """Adds to the stock Trainer: the label state in every checkpoint, complete or unused checkpoints, strict weights.

    With ``push_to_hub`` every push is complete (weights, configuration, image processor, the code of a head that is
    ours, a card) and none of them can break the training: see :class:`~hf_balancemix.training.pushing.Pushing`.

    ``MultiLabelTrainer`` builds on it. A subclass that keeps more between epochs saves and loads it along with the
    optimiser, in ``_save_optimizer_and_scheduler`` and ``_load_optimizer_and_scheduler``.
    """

    args: BalanceMixTrainingArguments
    model: Any
    label_state: LabelState | None = None
    average: WeightAverage
    networks = 1
    average_from = 0  # epoch with which the average of the weights that is saved in the end begins
    pushing: Pushing | None = None
    # Fields of hub.card.CardFacts that win over what the trainer knows.
    card_details: dict[str, Any]

    def training_rows(self) -> int:
        """Return how many images one epoch goes through."""
        return len(self.train_dataset)

    def images_per_step(self) -> int:
        """Return the images of one optimiser step, over all processes and accumulated batches."""
        return int(self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps)

    def steps_per_epoch(self) -> int:
        """Return the optimiser steps of one epoch."""
        return checkpoints.steps_per_epoch(self.args, self.training_rows(), self._train_batch_size)

    def run_facts(self) -> dict[str, Any]:
        """Return what a checkpoint must share with the run that resumes from it."""
        args = self.args
        return {
            "trainer": type(self).__name__,
            "seed": args.seed,
            "world_size": args.world_size,
            "images_per_step": self.images_per_step(),
            "steps_per_epoch": self.steps_per_epoch(),
            "networks": self.networks,
            "head": self._head(),
            "noise": noise_of(self.train_dataset),
            **args.method_settings(),
        }

    def _head(self) -> list[Any]:
        """Return what tells one head from another."""
        config = self.model.config
        return [config.model_type, *(getattr(config, name, None) for name in ("head", "head_options"))]

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
        resume_from_checkpoint = checkpoints.find_checkpoint_of_all(resume_from_checkpoint, self.args)
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
        """Save label state and averaged weights along with the optimiser: whatever resumes needs them all."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self.label_state is not None:
            self.label_state.save(output_dir, self.run_facts())
            self.average.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load them along with the optimiser, after comparing the checkpoint with this run."""
        if checkpoint is not None and self.label_state is not None:
            saved, changes = self._saved_state(checkpoint)
            for sentence in changes.values():
                logger.warning(f"Resuming from {checkpoint} as another run: {sentence}.")
            if not changes.keys().isdisjoint({"trainer", *self.args.method_settings()}):
                self.label_state.reset()  # what the new settings need may be missing: the epoch is prepared anew
            else:
                saved.sparse = self.label_state.sparse  # the same, and held once on each machine
                self.label_state.assign(saved)
            self.average.load(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _saved_state(self, checkpoint: str) -> tuple[LabelState, dict[str, str]]:
        """Return the label state of a checkpoint and how its run differs; refuse what cannot be gone on with."""
        saved, saved_run = LabelState.load(checkpoint)
        return saved, checks.check_resume(saved, self.label_state, saved_run, self.run_facts(), checkpoint)

    # ---- the Hub ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, or go on without: it is tried again with each push.

        Raises:
            ValueError: If its name is not one.
        """
        self.pushing = Pushing(self, token, private)
        if self.is_world_process_zero():
            self.pushing.create_repository()

    def create_model_card(self, **said: Any) -> None:
        """Write ``README.md`` into the output folder.

        Args:
            **said: The arguments of the stock Trainer that say something new: ``license``, ``language``, ``tags``,
                ``model_name``, ``finetuned_from``, ``dataset``; the others have no effect.
        """
        if self.is_world_process_zero():
            facts = card_facts(self, self.card_details | stated(said))
            Path(self.args.output_dir, CARD).write_text(render_card(facts), encoding="utf-8")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save and push the model as it is, its card, and checkpoints that the Hub lacks.

        The wait is bounded by the model's size. A push that fails raises nothing: it is logged, with the command that
        pushes later.

        Args:
            commit_message: Of the commit.
            blocking: Whether to wait for the upload.
            token: Access token, if not ``args.hub_token`` nor the one that is logged in with.
            revision: Branch.
            private: Whether a repository that is created is private.
            **kwargs: For ``create_model_card``.

        Returns:
            :class:`~hf_balancemix.hub.push.Pushed` with the commit's address and id, or None if that failed or another
            process pushes; a ``Future`` of it unless ``blocking``.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.pushing is None:
            self.pushing = Pushing(self, token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        changes = {"revision": revision, "token": token, "private": private}
        return self.pushing.push_output(commit_message or "End of training", blocking, **changes)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Begin to push a checkpoint that was just written, on all processes, each of which has written its part."""
        if self.args.hub_strategy != HubStrategy.END:
            self.accelerator.wait_for_everyone()
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            try:
                self.create_model_card()
            except OSError as error:  # a full disk shows at the next checkpoint; a card is not worth the run
                logger.warning(f"The model card could not be written ({error}).")
            self.pushing.push_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        """Wait for what is under way, as long as its size allows for."""
        if self.pushing is not None and self.is_world_process_zero():
            self.pushing.finish()
