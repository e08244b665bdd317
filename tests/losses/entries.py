"""Every loss as a function of (logits, targets) that returns entries, and random inputs for them."""

import math
from functools import partial

import torch

from hf_balancemix.losses import asymmetric_loss, focal_loss, large_loss, reweighted_losses, weighted_bce

TRANSITION = torch.tensor([[[0.9, 0.1], [0.25, 0.75]]] * 6)
ENTRIES = {
    "bce": partial(weighted_bce, class_reduction="none"),
    "focal": partial(focal_loss, class_reduction="none"),
    "focal, gamma 0": partial(focal_loss, gamma=0, class_reduction="none"),
    "focal, gamma 0.3, alpha": partial(focal_loss, gamma=0.3, alpha=0.25, class_reduction="none"),
    "asl": partial(asymmetric_loss, class_reduction="none"),
    "asl, gamma 0": partial(asymmetric_loss, gamma_negative=0, class_reduction="none"),
    "asl, attached": partial(asymmetric_loss, gamma_positive=1, detach_weight=False, class_reduction="none"),
    "asl, fractional gamma": partial(
        asymmetric_loss, gamma_negative=0.5, gamma_positive=0.3, detach_weight=False, class_reduction="none"
    ),
    "asl, no margin": partial(
        asymmetric_loss, gamma_positive=1, margin=0, detach_weight=False, class_reduction="none"
    ),
    "ll_r": partial(large_loss, rate=0.2, class_reduction="none"),
    "ll_ct": partial(large_loss, rate=0.2, correct=True, class_reduction="none"),
    "reweighted": lambda logits, labels: reweighted_losses(logits, labels, TRANSITION[: logits.shape[-1]]),
}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def sample(seed=0, shape=(8, 6), spread=3.0, dtype=torch.float64):
    """Random logits, and targets of which a third are 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits.to(dtype), (torch.rand(shape, generator=generator) < 1 / 3).to(dtype)


def plain_bce(logits, labels):
    """The losses in lists, an entry at a time."""
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    return [[math.log1p(math.exp(-x if y else x)) for x, y in zip(*row, strict=True)] for row in rows]


def gradient(loss, logits):
    leaf = logits.detach().clone().requires_grad_()
    loss(leaf).sum().backward()
    return leaf.grad


def close(actual, expected, atol=1e-9, rtol=0.0):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)
