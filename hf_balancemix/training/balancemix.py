"""BalanceMix (Song, Kim, Lee, AAAI 2024): Algorithm 1 as a Trainer. Read it beside the paper and `method`."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import logging

from hf_balancemix.data.pairs import ImageRows, PairDataset, PairSampler
from hf_balancemix.data.stream_sampler import StreamSampler
from hf_balancemix.losses import pair_losses
from hf_balancemix.method import Mixtures, Refinement, mix, refine, view_confidence
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.checkpoints import save_final_state
from hf_balancemix.training.diagnostics import early_warnings, refresh_diagnostics
from hf_balancemix.training.multilabel import MultiLabelTrainer
from hf_balancemix.training.refresh import predicted_views
from hf_balancemix.training.statistics import mean_losses, posteriors, refresh_statistics, views_of_pass
from hf_balancemix.training.stream import refresh_sums

logger = logging.get_logger(__name__)


class BalanceMixTrainer(MultiLabelTrainer):
    """Trains with minority-augmented mixing and label-wise management; takes what :class:`MultiLabelTrainer` takes.

    Every step mixes a random half and a minority half (Eq. 2-5). Until ``warmup_epochs`` the given labels are
    learned; afterwards each label is clean, re-labelled or ambiguous (Eq. 6-9) and is weighted accordingly (Eq. 10).
    The statistics behind both are refreshed once per epoch by a pass over the training set, and once more after the
    last epoch. They live in ``label_state`` and in every checkpoint.

    Relations: ``second_sampler="random", refinement="none"`` is Mixup; ``refinement="none"`` alone adds the minority
    sampler; ``"clean"`` and ``"relabelled"`` are the paper's ablation steps. ``MultiLabelTrainer`` is plain BCE.
    """

    _warned: frozenset[str] = frozenset()  # kinds of early warnings that this run has given
    _mixtures: tuple[Any, Any] = None, None  # those of the label state: as it holds them, and on the device

    @classmethod
    def check_arguments(cls, args: BalanceMixTrainingArguments) -> None:
        """Refuse to train without pairs, and two methods at once that change the labels with large losses.

        Raises:
            ValueError: Naming the option and its value.
        """
        if args.second_sampler == "none":
            raise ValueError(
                "Expected `second_sampler` minority, random or batch with BalanceMixTrainer, which mixes pairs, found "
                "'none'. Choose one of them, or train with MultiLabelTrainer."
            )
        if args.loss in ("ll_r", "ll_ct") and args.refinement != "none":
            raise ValueError(
                f"Expected `loss` bce, focal or asl with `refinement={args.refinement!r}`, found {args.loss!r}: both "
                "methods would change the labels with large losses. Train with MultiLabelTrainer (methods ll_r and "
                "ll_ct of the recipes), or set `refinement='none'`."
            )

    # ---- before each epoch: Algorithm 1, lines 17-18 ----

    def prepare_epoch(self, epoch: int, final: bool = False) -> None:
        """Refresh scores, mixtures and view predictions for ``epoch``, once: a resumed epoch is left as it was.

        Args:
            epoch: Zero-based number of the epoch that is about to begin; the number of epochs when training is over.
            final: Whether training is over; then every schedule also predicts the augmented views.
        """
        state, args = self.label_state, self.args
        if epoch == 0:
            self._warned = frozenset()
        if epoch == 0 and args.refinement != "none" and args.warmup_epochs >= self.state.num_train_epochs:
            logger.warning(
                f"No label will be refined: `warmup_epochs` is {args.warmup_epochs}, the run has "
                f"{self.state.num_train_epochs} epochs. A fifth to a quarter of the epochs is a fair start."
            )
        if state is None:
            return
        known = state.class_confidence is not None and state.sampling_sums is None
        if known and args.streams and args.second_sampler == "minority":
            refresh_sums(state, args)  # a checkpoint does not hold them
        refines = args.refinement != "none" and (epoch >= args.warmup_epochs or final)
        needed = refines or (epoch > 0 and args.second_sampler == "minority")
        if state.prepared_epoch == epoch or not needed:
            return
        start, before = time.perf_counter(), copy.copy(state)  # a refresh makes new tensors, but for the sums
        batches = predicted_views(self, *views_of_pass(state, self.args, refines, final), epoch)
        non_monotone = refresh_statistics(state, self.args, batches, refines, final)
        state.prepared_epoch = epoch
        seconds = time.perf_counter() - start
        measured = {"non_monotone_sets": non_monotone} if refines else {}
        measured |= self._on_first(lambda: refresh_diagnostics(state, self.args, self.clean_labels, before))
        self.log(measured | {"refresh_seconds": round(seconds, 3)})
        self._warn()
        if final and self.args.should_save and not self.state.is_hyper_param_search:
            save_final_state(state, self.args.output_dir, self.run_facts())

    def _warn(self) -> None:
        """Say what seems to go wrong, each kind once per run."""
        if self.is_world_process_zero():
            found = early_warnings(self.label_state, self.args, self.state.log_history)
            for message in (found[kind] for kind in found if kind not in self._warned):
                logger.warning(message)
            self._warned |= found.keys()

    def _on_first(self, describe: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Return what the first process finds: tables of all labels are taken apart on one process only."""
        found = [describe() if self.args.process_index == 0 else {}]
        if self.args.world_size > 1:
            torch.distributed.broadcast_object_list(found, src=0, device=self.args.device)
        return found[0]

    def _refines_now(self) -> bool:
        return self.args.refinement != "none" and self._epoch() >= self.args.warmup_epochs

    def _views(self) -> int:
        """Two views per image where the step itself predicts them (Eq. 9); the first of them is mixed."""
        predicts = self.args.needs_views and self.args.relabel_views in ("step", "stream")
        return 2 if self._refines_now() and predicts else 1

    def _minority_weights(self) -> torch.Tensor | None:
        assert self.label_state is not None
        return self.label_state.sampling_sums if self.args.streams else self.label_state.sampling_probability

    def _train_sampler(self, dataset: Any) -> PairSampler:
        kind = StreamSampler if self.args.streams else PairSampler
        second = self._minority_weights if self.args.second_sampler == "minority" else self.args.second_sampler
        return kind(len(dataset), self.args.seed, self._epoch, second, self._views, self.images_per_step())

    def _pair_dataset(self, images: ImageRows) -> PairDataset:
        return PairDataset(images, self.transform, self.args.mix_alpha)

    # ---- each step: Algorithm 1, lines 5-15 ----

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mix refined pairs (Eq. 5) and weigh every label by the random half's state (Eq. 10)."""
        if "index" not in inputs:
            return super().compute_loss(model, inputs, return_outputs)
        pixels, index = inputs["pixel_values"], inputs["index"]  # (B, 2, views, C, H, W), (B, 2)
        random_half, minority_half = (self._refined(model, pixels[:, m], index[:, m]) for m in (0, 1))
        mix_lambda = self._mix_lambda(inputs)
        mixed_pixels = mix(pixels[:, 0, 0], pixels[:, 1, 0], mix_lambda)
        logits = self._logits(model, mixed_pixels)
        halves = random_half.targets, minority_half.targets
        if self.args.loss == "bce":  # linear in the target: one loss against the mixed one is the same
            entries = self._entry_losses(logits, mix(*halves, mix_lambda))
        else:
            entries = pair_losses(self._entry_losses, logits, *halves, mix_lambda)
        return self._training_loss(entries * random_half.entry_weights, index)

    def _refined(self, model: Any, views: torch.Tensor, index: torch.Tensor) -> Refinement:
        """Targets and weights of one half: looked up by row, or predicted from its two views here and now."""
        state, args, device = self.label_state, self.args, views.device
        assert state is not None
        rows = index.cpu()
        labels = state.labels_of(rows).to(device).float()
        if not self._refines_now():
            return refine(labels, labels, None, args.relabel_threshold, "none")
        confidence = state.probabilities_of("confidence", rows)
        if views.shape[1] == 2:
            logits = self._predict_two_views(model, views)
            confidence = view_confidence(*logits.unbind(dim=1))
        if args.streams:
            posterior = self._stream_posterior(logits, labels)
        else:
            posterior = torch.as_tensor(state.probabilities_of("posterior", rows)).to(device)
        confidence = None if confidence is None else confidence.to(device)
        return refine(labels, posterior, confidence, args.relabel_threshold, args.refinement)

    def _stream_posterior(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the (B, K) posteriors of labels (B, K) from the logits (B, 2, K) of their views (Eq. 8).

        Larger losses than the training set had when the mixtures were fitted count as its largest.
        """
        assert self.label_state is not None
        held = self.label_state.mixtures
        if self._mixtures[0] is not held:  # moved once, and not in every step
            self._mixtures = held, Mixtures.unstacked(torch.as_tensor(held).to(logits.device))
        mixtures = self._mixtures[1]
        positive = labels.bool()
        low, high = (torch.where(positive, end[1], end[0]).float() for end in (mixtures.low, mixtures.high))
        losses = mean_losses(logits.float(), labels).clamp(low, high)
        return posteriors(losses, labels, mixtures, self.args)

    @torch.no_grad()
    def _predict_two_views(self, model: Any, views: torch.Tensor) -> torch.Tensor:
        """Return the (B, 2, K) logits of (B, 2, C, H, W) views, leaving the model in training mode."""
        model.train(self.args.relabel_bn == "train")
        try:
            return torch.stack([self._logits(model, view) for view in views.unbind(dim=1)], dim=1)
        finally:
            model.train()
