"""The statistics of a refresh: from one pass over the training set to what the next epoch needs (Eq. 2-9).

Each process predicts its own rows and keeps their losses to itself. What all processes need of them are sums (Eq. 2)
and histograms (Eq. 6-7), which are reduced; then each computes the posteriors of its rows (Eq. 8), and the finished
labels are put together. With ``relabel_views="stream"`` nothing is kept of any row: the mixtures are all there is.
With "carry" a pass after the first predicts one view; the logits that the last one kept of its own are the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from hf_balancemix.label_state import LabelState
from hf_balancemix.losses import label_losses
from hf_balancemix.method import (
    LossHistogram,
    Mixtures,
    confidence_sums,
    fit_mixtures,
    instance_score,
    mean_confidence,
    mixture_posteriors,
    sampling_probability,
    view_confidence,
)
from hf_balancemix.training.refresh import all_reduce, broadcast, gather_rows
from hf_balancemix.training.stream import refresh_sums

_LARGEST_CARRIED = float(torch.finfo(torch.float16).max)
_COUNTED_TOGETHER = 2**20  # losses; a histogram takes them faster in larger parts


class _Pass:
    """What one process keeps of its rows during the pass.

    Args:
        num_labels: K.
        keep: Which of "losses", "confidence" and "probs" to keep of every row.
    """

    def __init__(self, num_labels: int, keep: set[str]) -> None:
        self.sums = torch.zeros(2, num_labels, dtype=torch.float64)
        self.histogram = LossHistogram(num_labels)
        self.kept: dict[str, list[torch.Tensor]] = {name: [] for name in keep}
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def take(self, **tables: torch.Tensor) -> None:
        """Keep the rows of those tables that are to be kept."""
        for name in self.kept:
            self.kept[name].append(tables[name])

    def count(self, losses: torch.Tensor, labels: torch.Tensor) -> None:
        """Take losses (n, K) into the histogram, sooner or later."""
        self._pending.append((losses, labels))
        if sum(part.numel() for part, _ in self._pending) >= _COUNTED_TOGETHER:
            self.finish()

    def finish(self) -> None:
        """Take in what is left."""
        if self._pending:
            self.histogram.add(*(torch.cat(parts) for parts in zip(*self._pending, strict=True)))
        self._pending = []

    def of(self, name: str) -> torch.Tensor | None:
        """Return what was kept, (rows of this process, K)."""
        return torch.cat(self.kept[name]) if name in self.kept else None


def views_of_pass(state: LabelState, args: Any, refines: bool, final: bool) -> tuple[bool, int]:
    """Return whether the pass predicts unaugmented images, and how many augmented views of each.

    Args:
        state: Before the pass.
        args: :class:`BalanceMixTrainingArguments`.
        refines: Whether labels will be refined, and posteriors are needed.
        final: Whether training is over; then every schedule predicts the augmented views.
    """
    augmented = 2 if refines and args.needs_views and (final or args.relabel_views != "step") else 0
    if augmented and args.relabel_views == "carry" and state.carried is not None and not final:
        augmented = 1
    return not (augmented and args.relabel_views in ("reuse", "carry", "stream")), augmented


def refresh_statistics(
    state: LabelState,
    args: Any,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    refines: bool = True,
    final: bool = False,
) -> int:
    """Bring the state, on every process alike, up to date with what the model predicts now.

    Args:
        state: Of the whole training set.
        args: :class:`BalanceMixTrainingArguments`.
        batches: Rows of this process and their logits, with the views of :func:`views_of_pass`, from
            :func:`predicted_views`.
        refines: Whether labels will be refined, and posteriors are needed.
        final: Whether training is over; then predictions are kept.

    Returns:
        How many of the mixtures give a larger posterior to some larger loss.
    """
    found = _collect(state, args, batches, refines, final)
    all_reduce(found.sums, "sum", args)
    presence, absence = mean_confidence(found.sums, state.positives(), len(state))
    state.class_confidence = torch.stack([absence, presence])
    if args.second_sampler == "minority":
        if args.streams:
            refresh_sums(state, args)
        else:
            score = instance_score(state.labels, presence, absence, args.minority_score)
            state.sampling_probability = sampling_probability(score)
    mixtures = _fit(found.histogram, args) if refines else None
    if args.streams:
        state.mixtures = None if mixtures is None else mixtures.stacked()
    else:
        shares = args.world_size > 1
        own = state.shard(args.process_index, args.world_size) if shares else state
        own.probs, own.carried = found.of("probs"), found.of("carried")
        if mixtures is not None:
            losses = found.of("losses")
            assert losses is not None
            own.add_posterior(posteriors(losses, own.labels, mixtures, args))
            if (confidence := found.of("confidence")) is not None:
                own.set_confidence(confidence, args.relabel_threshold)
        if shares:
            state.join(own, partial(gather_rows, num_rows=len(state), args=args))
    return 0 if mixtures is None else int(mixtures.non_monotone.sum())


def posteriors(losses: torch.Tensor, labels: torch.Tensor, mixtures: Mixtures, args: Any) -> torch.Tensor:
    """Return the (n, K) posteriors of given labels (n, K) with these losses (Eq. 8), as the arguments have it."""
    options = {"monotone": args.monotone_posterior, "trust_positives": args.trust_positives}
    return mixture_posteriors(losses, labels, mixtures, **options)


def mean_losses(views: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the (n, K) loss of labels (n, K), as the mean over the views of logits (n, V, K)."""
    return torch.stack([label_losses(view, labels) for view in views.unbind(dim=1)]).mean(dim=0)


def _collect(
    state: LabelState, args: Any, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], refines: bool, final: bool
) -> _Pass:
    """Go over this process's rows."""
    clean, augmented = views_of_pass(state, args, refines, final)
    keep = set()
    if not args.streams:
        keep |= {"losses"} if refines else set()
        keep |= {"confidence"} if augmented else set()
        # Nothing reads them between refreshes; an audit takes them where there is no confidence, figures at the end.
        keep |= {"probs"} if final or (refines and not augmented) else set()
        keep |= {"carried"} if augmented and args.relabel_views == "carry" and not final else set()
    found = _Pass(len(state.class_names), keep)
    for rows, logits in batches:
        if augmented == 1:
            assert state.carried is not None
            logits = torch.cat([logits, state.carried[rows].float().unsqueeze(1)], dim=1)
        labels, base = state.labels_of(rows), logits[:, :1] if clean else logits
        tables = {"probs": base.sigmoid().mean(dim=1)}
        found.sums += confidence_sums(tables["probs"], labels)
        if refines:
            tables["losses"] = mean_losses(base, labels)
            found.count(tables["losses"], labels)
        if "confidence" in keep:
            tables["confidence"] = view_confidence(*logits[:, -2:].unbind(dim=1))
        if "carried" in keep:  # as rounded as a checkpoint has them, and without infinities
            tables["carried"] = logits[:, 0].clamp(-_LARGEST_CARRIED, _LARGEST_CARRIED).half()
        found.take(**tables)
    found.finish()
    return found


def _fit(histogram: LossHistogram, args: Any) -> Mixtures:
    """Fit the mixtures to the losses of all processes, on the first one for all."""
    if args.world_size > 1:
        histogram.reduce(partial(all_reduce, args=args))
    mixtures = fit_mixtures(
        histogram,
        min_fit=args.min_fit,
        trust_positives=args.trust_positives,
        separation=args.mixture_separation,
        disagreement=args.mixture_disagreement,
    )
    if args.world_size == 1:
        return mixtures
    shared = Mixtures.unstacked(broadcast(mixtures.stacked(), args))
    return replace(shared, non_monotone=mixtures.non_monotone, n_steps=mixtures.n_steps)
