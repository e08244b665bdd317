"""One line of numbers per refresh: what the sampler does, what refinement thinks of the labels; warnings from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hf_balancemix.label_state import LabelState
from hf_balancemix.method import (
    AMBIGUOUS,
    CLEAN,
    RELABELLED,
    SELECTED_ABOVE,
    Refinement,
    describe_sampling,
    refine,
    shares_of_sums,
)
from hf_balancemix.metrics import label_quality

# Where the warnings of `early_warnings` begin: none comes in runs of the digits recipe with 20% or 40% of positives
# mislabelled or without noise (three seeds each), with 10% of the labels flipped or with single positives (two each).
_FEWEST_POSITIVES = 5
_LEFT = 0.05  # of a class's positives
_UNDECIDED = 0.5  # of the posteriors; two Gaussians fitted to one give 0.64, to losses with a tail 0.1
_HARDLY_ANY = 0.001  # of the doubted labels
_REFRESHES = 5  # one is too few: right after warm-up models are less sure than soon after
_FITTED = 0.8  # mean prediction on given positives
_POINTS = 2.0  # of mAP
_EVALUATIONS = 3


def refresh_diagnostics(
    state: LabelState, args: Any, clean_labels: torch.Tensor | None, before: LabelState | None = None
) -> dict[str, float]:
    """Describe the statistics of a refresh.

    Args:
        state: As the refresh left it.
        args: :class:`BalanceMixTrainingArguments`.
        clean_labels: (N, K) truth, where it is known.
        before: As the refresh found it.

    Returns:
        The mean prediction on the positives of a class, averaged over the classes; for the minority sampler its
        largest and smallest probability relative to uniform, its effective sample size as a share of N and its total
        variation from uniform; once labels are refined the shares clean, relabelled and ambiguous and the mean
        posterior, and from the second such refresh on the share of flips (:func:`relabel_flips`); where the truth is
        known also label precision, recall (Eq. 14), relabel proportion and accuracy (Eq. 15). Shares are fractions.
    """
    out: dict[str, float] = {}
    if state.class_confidence is not None:
        out["positive_confidence"] = float(state.class_confidence[1, state.positives() > 0].mean())
    if state.sampling_probability is not None:
        out |= describe_sampling([state.sampling_probability], len(state))
    if state.sampling_sums is not None:
        out |= describe_sampling(shares_of_sums(state.sampling_sums), len(state))
    if state.posterior is None:
        return out
    mode = _known_refinement(state, args)
    refined = _refined(state, args, mode)
    out["mean_posterior"] = float(state.posterior.double().mean())
    out["clean"] = float((refined.state == CLEAN).double().mean())
    if mode != "clean":
        out["relabelled"] = float((refined.state == RELABELLED).double().mean())
        out["ambiguous"] = float((refined.state == AMBIGUOUS).double().mean())
    if before is not None and before.posterior is not None:
        out["relabel_flips"] = relabel_flips(before, state, args)
    if clean_labels is not None:
        arrays = (t.numpy() for t in (clean_labels, state.labels, refined.state, refined.targets))
        quality = label_quality(*arrays)
        known = ("label_precision", "label_recall") if mode == "clean" else tuple(quality)
        out |= {name: quality[name] for name in known}
    return out


def relabel_flips(before: LabelState, after: LabelState, args: Any) -> float:
    """Return the share of the N x K labels whose target or state (clean, relabelled, ambiguous) changed.

    Where the views of either refresh are not predicted (schedule "step"), a label changes that was taken for clean and
    no longer is, or is now and was not. The statistics of both refreshes are all it takes, and every checkpoint has
    the former: a resumed run logs what the undisturbed one does.

    Args:
        before: With the ``posterior``, and perhaps the ``confidence``, of a refresh.
        after: With those of the next one.
        args: :class:`BalanceMixTrainingArguments`.
    """
    modes = [_known_refinement(state, args) for state in (before, after)]
    mode = "clean" if "clean" in modes else args.refinement
    old, new = (_refined(state, args, mode) for state in (before, after))
    return float(((old.state != new.state) | (old.targets != new.targets)).double().mean())


def _known_refinement(state: LabelState, args: Any) -> str:
    """Before the views are predicted (schedule "step") only the clean ones among the labels are known."""
    return str(args.refinement) if state.confidence is not None else "clean"


def _refined(state: LabelState, args: Any, mode: str) -> Refinement:
    assert state.posterior is not None
    return refine(state.labels.float(), state.posterior, state.confidence, args.relabel_threshold, mode)


def early_warnings(state: LabelState, args: Any, history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Say what seems to go wrong: what was expected, what was found, what to do.

    Args:
        state: As a refresh left it.
        args: :class:`BalanceMixTrainingArguments`.
        history: What the Trainer logged so far, this refresh last.

    Returns:
        Messages by kind: ``classes`` that lose nearly all their positives, ``posteriors`` that separate nothing,
        ``confidence`` that never reaches ε, ``memorisation`` of the given labels. None if nothing seems wrong. The
        first three are for schedules that keep posteriors, not for "stream".
    """
    found = {"memorisation": _memorisation(args, history)}
    if state.posterior is not None:
        refined = _refined(state, args, _known_refinement(state, args))
        found["classes"] = _lost_classes(state, args, refined)
        found["posteriors"] = _undecided(state.posterior, args)
        found["confidence"] = _unsure(state, args, refined, history)
    return {kind: message for kind, message in found.items() if message}


def _lost_classes(state: LabelState, args: Any, refined: Refinement) -> str:
    given = state.labels.sum(dim=0, dtype=torch.float64)
    left = (refined.targets * refined.entry_weights).sum(dim=0, dtype=torch.float64)  # and positives that came instead
    lost = ((given >= _FEWEST_POSITIVES) & (left < _LEFT * given)).nonzero().flatten().tolist()
    if not lost:
        return ""
    shown = ", ".join(f"{state.class_names[k]!r} ({left[k]:.1f} of {given[k]:.0f})" for k in lost[:5])
    return (
        f"Expected every class to keep positives, found {len(lost)} of {len(given)} whose positives are nearly all "
        f"relabelled or weighed down: {shown}{', ...' if len(lost) > 5 else ''}. If these labels are not wrong, the "
        f"model has not learned the classes yet: raise `warmup_epochs` (now {args.warmup_epochs}), or set "
        "`trust_positives` if given positives are reliable."
    )


def _undecided(posterior: torch.Tensor, args: Any) -> str:
    share = float(((posterior > 0.1) & (posterior < 0.9)).double().mean())
    if share > _UNDECIDED:
        return (
            f"Expected posteriors near 0 or 1, found {share:.0%} of them between 0.1 and 0.9: the losses of right and "
            f"wrong labels do not differ yet. Raise `warmup_epochs` (now {args.warmup_epochs}) or `learning_rate`; if "
            "the labels are known to be right, set `refinement='none'`."
        )
    # The options that let whole sets pass as clean do what they are for.
    passed = args.trust_positives or args.mixture_separation > 0 or args.mixture_disagreement > 0
    if not passed and bool((posterior > 0.5).all()):
        return (
            f"Expected posteriors that doubt some label, found all {posterior.numel():,} taken for clean: either all "
            f"losses are alike, or no class has `min_fit` ({args.min_fit}) positives or negatives. Check that the "
            "training loss falls (`learning_rate`), and merge or drop classes with hardly any image."
        )
    return ""


def _unsure(state: LabelState, args: Any, refined: Refinement, history: Sequence[Mapping[str, Any]]) -> str:
    past = [entry for entry in history if "relabelled" in entry]
    reached = any(entry["relabelled"] > _HARDLY_ANY * (entry["relabelled"] + entry["ambiguous"]) for entry in past)
    doubted = refined.state != CLEAN
    meant = args.relabel_threshold < 1  # at 1, nothing is to be relabelled
    if reached or len(past) < _REFRESHES or state.confidence is None or not meant or not bool(doubted.any()):
        return ""
    sure = state.confidence[doubted]
    percentile = float(np.quantile(torch.maximum(sure, 1 - sure).numpy(), 0.99))  # torch's takes 2^24 values at most
    return (
        f"Expected predictions beyond `relabel_threshold` {args.relabel_threshold:g} for some doubted labels, found "
        f"them for fewer than 1 in 1,000 in each of {len(past)} refreshes; the 99th percentile is {percentile:.3f}. "
        "Models are under-confident under Mixup. Lower `relabel_threshold` (a recipe's --relabel_threshold) to "
        f"{math.floor(1000 * percentile) / 1000:g}, which relabels about 1 in 100 of them, or train for more epochs."
    )


def _memorisation(args: Any, history: Sequence[Mapping[str, Any]]) -> str:
    maps = [entry["eval_map"] for entry in history if "eval_map" in entry and not math.isnan(entry["eval_map"])]
    fitted = [entry["positive_confidence"] for entry in history if "positive_confidence" in entry]
    if len(maps) <= _EVALUATIONS or not fitted or not fitted[-1] >= _FITTED:  # NaN without positives
        return ""
    best = max(maps[:-_EVALUATIONS])
    if max(maps[-_EVALUATIONS:]) > best - _POINTS:
        return ""
    remedy = (
        f"Refine earlier (lower `warmup_epochs`, now {args.warmup_epochs})"
        if args.refinement != "none"
        else "Refine the labels (`refinement='full'`)"
    )
    return (
        f"Expected eval mAP to hold while the given labels are learned, found a mean prediction of {fitted[-1]:.2f} "
        f"on given positives while mAP fell from {best:.1f} to {maps[-1]:.1f}, for {_EVALUATIONS} evaluations or "
        f"more: wrong labels are memorised. {remedy}, train for fewer epochs, or choose a stronger `augmentation`."
    )


def selection_diagnostics(state: LabelState, clean_labels: torch.Tensor | None) -> dict[str, float]:
    """Describe what the networks of Co-teaching selected.

    Args:
        state: Has ``instance_posterior``.
        clean_labels: (N, K) truth, where it is known.

    Returns:
        Shares of the images that each network selected; where the truth is known also, on average of both networks,
        the share of selected images whose labels are all right (``selection_precision``), the share of such images
        that are selected (``selection_recall``) and the share of right labels in selected images
        (``selected_labels_right``). NaN is a share of nothing.
    """
    assert state.instance_posterior is not None
    selected = state.instance_posterior > SELECTED_ABOVE
    first, second = selected.double().mean(dim=0).tolist()
    out = {"selected_by_first": first, "selected_by_second": second}
    if clean_labels is not None:
        right = (state.labels == clean_labels).double()
        whole = (right.amin(dim=1) == 1)[:, None]
        both = (selected & whole).sum(dim=0).double()
        share = (selected * right.mean(dim=1)[:, None]).sum(dim=0)
        out["selection_precision"] = float((both / selected.sum(dim=0)).mean())
        out["selection_recall"] = float((both / whole.sum()).mean())
        out["selected_labels_right"] = float((share / selected.sum(dim=0)).mean())
    return out
