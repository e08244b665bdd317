"""Label-wise management: which given labels are kept, replaced or weighed down (Eq. 8–10)."""

from dataclasses import dataclass

import torch
from torch import Tensor

CLEAN, RELABELLED, AMBIGUOUS = 0, 1, 2
"""The three states of a label, as stored in `Refinement.state`."""

REFINEMENTS = ("full", "relabelled", "clean", "none")
"""How much of the management is applied, from all of it to nothing: the steps of the paper's ablation (Table 5)."""


@dataclass(frozen=True)
class Refinement:
    """What the loss gets in place of the given labels.

    Attributes:
        targets: (N, K) refined labels, 0 or 1, in the dtype of the posterior.
        entry_weights: (N, K) weight of each label in Eq. 10, in [0, 1], in the dtype of the posterior.
        state: (N, K) uint8, `CLEAN`, `RELABELLED` or `AMBIGUOUS`.
    """

    targets: Tensor
    entry_weights: Tensor
    state: Tensor


def view_confidence(view1_logits: Tensor, view2_logits: Tensor) -> Tensor:
    """Mean probability of two augmented views of the same images (Eq. 9).

    Args:
        view1_logits: (N, K) logits of the first view, any floating dtype.
        view2_logits: (N, K) logits of the second view.

    Returns:
        (N, K) float32, ½(σ(logits₁) + σ(logits₂)). The sigmoid is taken in float32: half precision has too few values
        next to 1 for a threshold of .975.
    """
    return (view1_logits.float().sigmoid() + view2_logits.float().sigmoid()) / 2


def refine(
    labels: Tensor,
    posterior: Tensor,
    confidence: Tensor | None,
    relabel_threshold: float,
    refinement: str = "full",
) -> Refinement:
    """Sort given labels into clean, re-labelled and ambiguous ones and weigh them (Eq. 8–10).

    A label is clean if its posterior is above ½. Of the others, those whose confidence is above ε become 1 and those
    whose confidence is below 1 − ε become 0; they count as re-labelled, with weight 1, even if that is the value they
    had. What is left is ambiguous: it keeps its value, and its weight is its posterior. All comparisons are strict and
    made in the dtype of the inputs. Works on the whole table as well as on one batch, without waiting for the device.

    | `refinement` | not clean, confident | not clean, unsure | row of Table 5 |
    |---|---|---|---|
    | `"full"` | replaced, weight 1 | kept, weight = posterior | BalanceMix |
    | `"relabelled"` | replaced, weight 1 | kept, weight 0 | + Eq. 9 |
    | `"clean"` | kept, weight 0, ambiguous | kept, weight 0, ambiguous | + clean labels |
    | `"none"` | kept, weight 1, clean | kept, weight 1, clean | Mixup, minority sampler |

    Args:
        labels: (N, K) given labels, 0 or 1, any dtype. Always the given ones: a replacement is never built on an
            earlier one.
        posterior: (N, K) probability that each given label is clean, floating point (`label_posteriors`). Half
            precision moves values next to ½ onto it.
        confidence: (N, K) probability that each class is present (`view_confidence`), whatever the label says. May be
            None for `"clean"` and `"none"`, which do not read it.
        relabel_threshold: ε in [½, 1]. Not checked here, because this runs at every step.
        refinement: One of `REFINEMENTS`.

    Returns:
        Targets, entry weights and states.

    Raises:
        ValueError: `refinement` is unknown, or needs a confidence that is not given.
    """
    if refinement not in REFINEMENTS:
        raise ValueError(f"refinement must be one of {', '.join(REFINEMENTS)}; got {refinement!r}.")
    given = labels.to(posterior.dtype)
    if refinement == "none":
        return Refinement(given, torch.ones_like(given), torch.zeros_like(given, dtype=torch.uint8))
    clean = posterior > 0.5
    if refinement == "clean":
        return Refinement(given, clean.to(given.dtype), AMBIGUOUS * (~clean).to(torch.uint8))
    if confidence is None:
        raise ValueError(
            f"refinement={refinement!r} replaces labels by the model's confidence, but confidence is None."
        )
    present = ~clean & (confidence > relabel_threshold)
    absent = ~clean & (confidence < 1 - relabel_threshold)
    relabelled = present | absent
    unsure = posterior if refinement == "full" else torch.zeros_like(posterior)
    state = RELABELLED * relabelled.to(torch.uint8) + AMBIGUOUS * (~(clean | relabelled)).to(torch.uint8)
    return Refinement(
        targets=given.masked_fill(present, 1).masked_fill(absent, 0),
        entry_weights=unsure.masked_fill(clean | relabelled, 1),
        state=state,
    )
