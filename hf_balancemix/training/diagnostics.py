"""One line of numbers per refresh: what the sampler does and what refinement thinks of the labels."""

from __future__ import annotations

from typing import Any

import torch

from hf_balancemix.label_state import LabelState
from hf_balancemix.method import (
    AMBIGUOUS,
    CLEAN,
    RELABELLED,
    SELECTED_ABOVE,
    effective_sample_size,
    refine,
    total_variation,
)
from hf_balancemix.metrics import label_quality


def refresh_diagnostics(state: LabelState, args: Any, clean_labels: torch.Tensor | None) -> dict[str, float]:
    """Describe the statistics of a refresh.

    Returns:
        For the minority sampler its largest and smallest probability relative to uniform, its
        effective sample size as a share of N and its total variation from uniform; once labels are refined the shares
        clean, relabelled and ambiguous and the mean posterior; where the truth is known also label precision, recall
        (Eq. 14), relabel proportion and accuracy (Eq. 15). Shares are fractions.
    """
    out: dict[str, float] = {}
    p = state.sampling_probability
    if p is not None:
        n = len(state)
        out |= {
            "sampling_max": float(p.max()) * n,
            "sampling_min": float(p.min()) * n,
            "effective_sample_share": effective_sample_size(p) / n,
            "sampling_total_variation": total_variation(p),
        }
    if state.posterior is None:
        return out
    # Before the views are predicted (schedule "step") only the clean ones among the labels are known.
    mode = args.refinement if state.confidence is not None else "clean"
    refined = refine(state.labels.float(), state.posterior, state.confidence, args.relabel_threshold, mode)
    out["mean_posterior"] = float(state.posterior.double().mean())
    out["clean"] = float((refined.state == CLEAN).double().mean())
    if mode != "clean":
        out["relabelled"] = float((refined.state == RELABELLED).double().mean())
        out["ambiguous"] = float((refined.state == AMBIGUOUS).double().mean())
    if clean_labels is not None:
        arrays = (t.numpy() for t in (clean_labels, state.labels, refined.state, refined.targets))
        quality = label_quality(*arrays)
        known = ("label_precision", "label_recall") if mode == "clean" else tuple(quality)
        out |= {name: quality[name] for name in known}
    return out


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
