"""T-estimator (Li et al., NeurIPS 2022): estimate the noise of every class from label correlations, then reweight."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from hf_balancemix import checks
from hf_balancemix.argument_checks import check_plain_mixup
from hf_balancemix.data.pairs import PairSampler, stream_seed
from hf_balancemix.label_state import LabelState
from hf_balancemix.losses import label_losses, reweighted_losses
from hf_balancemix.method import (
    TransitionFit,
    empirical_transition,
    estimate_transition,
    label_posteriors,
    normalised_losses,
)
from hf_balancemix.metrics import average_precision, mean_average_precision
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.checkpoints import save_final_state
from hf_balancemix.training.multilabel import MultiLabelTrainer
from hf_balancemix.training.refresh import broadcast_statistics, predict_views

FILE_NAME = "best_weights.safetensors"
AVERAGED_EPOCHS = 5
"""Losses are averaged over so many epochs, the last ones of the first stage, before they are divided."""

# Takes the place of an epoch's number beside the seed; no run has as many epochs.
_SPLIT_STREAM = 2**20 - 1


class TEstimatorTrainer(MultiLabelTrainer):
    """Trains in the stages of T-estimator within one run; takes what :class:`MultiLabelTrainer` takes.

    A share of ``validation_fraction`` of the training images is held out, with its noisy labels; the seed chooses it.

    1. ``warmup_epochs`` epochs of BCE. After each of them one pass over all images gives losses and predictions; the
       weights with the best mAP on the held-out images are kept, in memory and in checkpoints.
    2. One mixture per class and label value, on the averaged losses, says which labels look clean; from these follow
       the transition matrices, ``label_state.transition`` (K, 2, 2).
    3. From the best weights, with the optimiser's state and any average of the weights begun anew: BCE in which every
       given label is weighted by how much more probable it is before the noise than after it. The learning rate's
       schedule goes on.

    With ``second_sampler="batch"`` images are mixed with one another as in plain Mixup, with "none" they are not. The
    samplers of pairs, among them the default, are refused: one must be said.

    Relations: made for labels that are wrong independently of one another; it needs correlated classes and at least 50
    images with and without each class. Small classes fall back on Dual-T, and labels of single positives break it.

    Raises:
        ValueError: From ``train``: where a stage would be empty, for samplers of pairs, with another loss than BCE,
            with FSDP or DeepSpeed.
    """

    keeps_tables = True

    @property
    def average_from(self) -> int:
        """The epoch before which the third stage begins the average anew."""
        return self.args.warmup_epochs

    _best_weights: dict[str, torch.Tensor] | None = None

    @classmethod
    def check_arguments(cls, args: BalanceMixTrainingArguments) -> None:
        """Refuse samplers of pairs."""
        check_plain_mixup(args, cls.__name__)

    # ---- which images are trained on ----

    def training_rows(self) -> int:
        """Return how many images are not held out."""
        count = len(self.train_dataset)
        return count - max(1, round(self.args.validation_fraction * count))

    def _split(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows to train on and the held-out ones, in ascending order."""
        generator = torch.Generator().manual_seed(stream_seed(self.args.seed, _SPLIT_STREAM))
        order = torch.randperm(len(self.train_dataset), generator=generator)
        training, held_out = order.split([self.training_rows(), len(order) - self.training_rows()])
        return training.sort().values, held_out.sort().values

    def _train_sampler(self, dataset: Any) -> PairSampler:
        sampler = super()._train_sampler(dataset)
        sampler.rows = self._split()[0]
        return sampler

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of one epoch's items, after checking that all stages can take place."""
        args = self.args
        if self.train_dataset is not None:
            steps = args.max_steps / self.steps_per_epoch()
            check_stages(args, math.ceil(steps) if steps > 0 else args.num_train_epochs)
            batch = self._train_batch_size, args.world_size, args.dataloader_drop_last
            checks.check_batch_size(self.training_rows(), *batch)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "Expected T-estimator without FSDP or DeepSpeed, found one of them: every process needs whole weights "
                "to keep the best ones. Train with plain data parallelism."
            )
        if self.is_in_train:
            self._best_weights = None
        return super().get_train_dataloader()

    # ---- before each epoch ----

    def prepare_epoch(self, epoch: int, final: bool = False) -> None:
        """Take stock of the epoch before, in the first stage, and estimate the noise at its end. Idempotent.

        Args:
            epoch: Zero-based number of the epoch that is about to begin.
            final: Whether training is over; then only the label state is written out, with the matrices.
        """
        state, args = self.label_state, self.args
        if state is None:
            return
        if final:
            if state.transition is not None and args.should_save and not self.state.is_hyper_param_search:
                save_final_state(state, args.output_dir, self.run_facts())
            return
        if epoch == 0 or epoch > args.warmup_epochs or state.prepared_epoch == epoch:
            return
        start = time.perf_counter()
        logits = predict_views(self, True, 0, epoch)[:, 0]  # (N, K)
        best_before = None if state.best_map is None else float(state.best_map)
        measured = self._update_statistics(logits, epoch) if self.is_world_process_zero() else {}
        broadcast_statistics(state, args)
        assert state.best_map is not None
        if best_before is None or float(state.best_map) > best_before:
            weights = self.model.state_dict()
            self._best_weights = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
        if epoch == args.warmup_epochs:
            self.model.load_state_dict(self._best_weights)
            self.optimizer.state.clear()
            self.average.start()
            self._best_weights = None
        state.prepared_epoch = epoch
        self.log(measured | {"refresh_seconds": round(time.perf_counter() - start, 3)})

    def _update_statistics(self, logits: torch.Tensor, epoch: int) -> dict[str, float]:
        """Turn logits (N, K) of the pass into statistics of ``label_state``; return what is to be logged."""
        state, warmup = self.label_state, self.args.warmup_epochs
        training, held_out = self._split()
        losses = label_losses(logits, state.labels)
        if epoch > warmup - AVERAGED_EPOCHS:
            loss_sum = torch.zeros_like(losses) if state.loss_sum is None else state.loss_sum
            scaled = normalised_losses(losses[training], state.labels[training])
            state.loss_sum = loss_sum.index_add(0, training, scaled)
        ap = average_precision(logits[held_out].numpy(), state.labels[held_out].numpy())
        validation_map = mean_average_precision(ap)
        # Without a positive among the held-out labels there is no mAP, and the first epoch's weights stay.
        score = torch.tensor([-1.0 if math.isnan(validation_map) else validation_map], dtype=torch.float64)
        state.best_map = score if state.best_map is None else torch.maximum(state.best_map, score)
        loss = losses[held_out].double().mean(dim=0)
        if state.best_loss is None or state.best_probs is None:
            state.best_loss, state.best_probs = loss, logits.sigmoid()
        else:
            state.best_probs = torch.where(loss < state.best_loss, logits.sigmoid(), state.best_probs)
            state.best_loss = torch.minimum(loss, state.best_loss)
        measured = {"validation_map": validation_map}
        return measured | self._estimate(training) if epoch == warmup else measured

    def _estimate(self, training: torch.Tensor) -> dict[str, float]:
        """Estimate the matrices, and forget what only the first stage needs; return what is to be logged."""
        state = self.label_state
        assert state is not None
        assert state.loss_sum is not None
        assert state.best_probs is not None
        labels = state.labels[training]
        options = {"min_fit": self.args.min_fit, "monotone": self.args.monotone_posterior}
        selected = label_posteriors(state.loss_sum[training], labels, **options).posterior > 0.5
        fit = estimate_transition(labels, selected, state.best_probs[training], self.args.transition_choice)
        state.transition = fit.transition
        state.loss_sum = state.best_loss = state.best_probs = None
        clean = None if self.clean_labels is None else self.clean_labels[training]
        return transition_diagnostics(fit, labels, selected, clean)

    # ---- each step ----

    def _entry_losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        transition = self.label_state.transition
        if transition is None:
            return super()._entry_losses(logits, targets)
        return reweighted_losses(logits, targets, transition)

    # ---- checkpoints ----

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the best weights so far along with the optimiser."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._best_weights is not None:
            save_file(self._best_weights, Path(output_dir) / FILE_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the best weights so far along with the optimiser."""
        super()._load_optimizer_and_scheduler(checkpoint)
        state = self.label_state
        if checkpoint is not None and state.best_map is not None and state.transition is None:
            try:
                self._best_weights = load_file(Path(checkpoint) / FILE_NAME)
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"Expected the best weights of the first stage in {Path(checkpoint) / FILE_NAME}, found none that "
                    f"can be read ({error}). Resume from another checkpoint of the same run, or start a new run."
                ) from error

    def _saved_state(self, checkpoint: str) -> tuple[LabelState, dict[str, str]]:
        """Refuse a checkpoint with other settings: what the first stage has gathered cannot be prepared anew."""
        saved, changes = super()._saved_state(checkpoint)
        if wrong := [sentence for name, sentence in changes.items() if name != "world_size"]:
            raise ValueError(
                f"Cannot resume from {checkpoint}: {'; '.join(wrong)}, and T-estimator builds on what it gathered "
                "before. Use the settings of the interrupted run, or start a new run in another `output_dir`."
            )
        return saved, changes


def check_stages(args: Any, epochs: float) -> None:
    """Check that every stage of T-estimator can take place.

    Args:
        args: :class:`BalanceMixTrainingArguments`.
        epochs: Epochs of the run.

    Raises:
        ValueError: Naming the option and its value.
    """
    if not 1 <= args.warmup_epochs < epochs:
        raise ValueError(
            f"Expected `warmup_epochs` of at least 1 and below the {epochs:g} epochs of the run with T-estimator, "
            f"found {args.warmup_epochs}: it estimates the noise in these epochs and corrects for it in the others. "
            "A fifth to a quarter is a fair start."
        )
    if not args.validation_fraction:
        raise ValueError(
            "Expected `validation_fraction` above 0 with T-estimator, found 0: it chooses weights by the mAP on "
            "training images that it holds out. Leave it unset for 0.1, as in the paper."
        )
    if args.loss != "bce":
        raise ValueError(
            f"Expected `loss='bce'` with T-estimator, whose reweighting is defined for it, found {args.loss!r}. Leave "
            "it unset."
        )


def transition_diagnostics(
    fit: TransitionFit, labels: torch.Tensor, selected: torch.Tensor, clean_labels: torch.Tensor | None
) -> dict[str, float]:
    """Describe estimated matrices.

    Args:
        fit: The estimate.
        labels: (N, K) given labels that it was made from.
        selected: (N, K) bool, which of them were taken as clean.
        clean_labels: (N, K) truth, or ``None`` where it is not known.

    Returns:
        The share of labels taken as clean, the means over the classes of ρ₋ and ρ₊, how many classes have a matrix
        from candidates and from Dual-T, and, where the truth is known, the mean absolute error of the matrices.
    """
    candidates = int((fit.n_candidates > 0).sum())
    out = {
        "selected": float(selected.double().mean()),
        "false_positive_rate": float(fit.transition[:, 0, 1].mean()),
        "false_negative_rate": float(fit.transition[:, 1, 0].mean()),
        "classes_from_candidates": candidates,
        "classes_from_dual_t": len(fit.transition) - candidates,
    }
    if clean_labels is not None:
        error = (fit.transition - empirical_transition(clean_labels, labels)).abs()
        out["transition_error"] = float(error[~error.isnan()].mean())
    return out
