"""The losses at the edges of number formats, their derivatives, and what they refuse."""

import math
from functools import partial

import pytest
import torch

from hf_balancemix.losses import (
    LOSSES,
    asymmetric_loss,
    focal_loss,
    large_loss,
    pair_losses,
    reweighted_losses,
    weighted_bce,
)
from tests.losses.entries import ENTRIES, close, gradient, sample, tensor
from tests.tiny import refused

# ---- number formats ----


@pytest.mark.parametrize("name", [name for name in ENTRIES if name not in ("asl", "reweighted")])
def test_gradcheck(name):
    """In float64. The two left out hold weights constant, so that their slope is by design not that of their value."""
    for seed in range(3):
        logits, targets = sample(seed, shape=(3, 4))
        assert torch.autograd.gradcheck(partial(ENTRIES[name], targets=targets), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ENTRIES)
def test_saturated_logits_give_finite_values_and_gradients(name, autocast, dtype):
    rows = [[1e4, -1e4, 18.0, -18.0, 0.0, 60.0], [1e4, -1e4, 18.0, -18.0, 0.0, -60.0], [-0.0, 1e-4, -1e-4, 88, -90, 3]]
    logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
    for targets in (torch.zeros(3, 6), torch.ones(3, 6), torch.tensor([[0.0, 1.0] * 3] * 3)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            entries = ENTRIES[name](logits, targets.to(dtype))
        (grad,) = torch.autograd.grad(entries.sum(), logits)
        assert entries.dtype == torch.float32
        assert entries.isfinite().all()
        assert grad.isfinite().all()
        assert (entries >= 0).all()
        # Inside, everything is float32, whatever the logits or the context.
        exact = ENTRIES[name](logits.detach().float(), targets)
        assert torch.equal(entries.detach(), exact)


def test_saturated_bce_and_focal_keep_the_gradient_of_what_is_wrong():
    for name in ("bce", "focal"):
        logits = torch.tensor([[1e4, -1e4, 18.0]], dtype=torch.float16)
        found = gradient(partial(ENTRIES[name], targets=torch.tensor([[0.0, 1.0, 0.0]])), logits)
        close(found, torch.tensor([[1.0, -1.0, 1.0]], dtype=torch.float16), atol=1e-3)
    wrong = tensor([[18.0, -18.0]]), tensor([[0.0, 1.0]])
    close(weighted_bce(*(part.float() for part in wrong)), torch.tensor(36.0), atol=1e-5)


def test_asl_stops_at_its_published_floor():
    logits = torch.tensor([[-1e4, 1e4, -18.0]])
    entries = asymmetric_loss(logits, torch.tensor([[1.0, 0.0, 1.0]]), margin=0, class_reduction="none")
    close(entries, torch.tensor([[math.log(1e8), math.log(1e8), 18.0]]), atol=1e-4)


def test_gamma_zero_is_bce_also_where_the_weight_is_zero_to_the_zero():
    logits, targets = torch.tensor([[200.0, -200.0, 200.0, -200.0]]), torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    assert torch.equal(focal_loss(logits, targets, gamma=0), weighted_bce(logits, targets))
    easy = tensor([[12.0, -12.0]]), tensor([[1.0, 0.0]])
    close(asymmetric_loss(*easy, 0, 0, 0), weighted_bce(*easy), atol=1e-12)
    assert float(asymmetric_loss(*easy, 0, 0, 0)) > 0


# ---- mistakes ----


def test_labels_of_any_type():
    logits, targets = sample()
    for name, loss in ENTRIES.items():
        for dtype in (torch.bool, torch.uint8, torch.int64, torch.float16):
            assert torch.equal(loss(logits, targets.to(dtype)), loss(logits, targets)), name


@pytest.mark.parametrize("name", ENTRIES)
def test_wrong_targets(name):
    loss, targets = ENTRIES[name], torch.zeros(2, 3)
    refused(ValueError, ("shape (B, K)", "(2, 3)", "(2, 4)"), loss, torch.zeros(2, 4), targets)
    refused(ValueError, ("shape (B, K)", "(3,)"), loss, torch.zeros(3), torch.zeros(3))
    targets[1, 2] = -1  # the image sets of PASCAL VOC
    refused(
        ValueError, ("found -1.0", "row 1, class 2", "Write 1 for present classes"), loss, torch.zeros(2, 3), targets
    )
    targets[1, 2] = math.nan
    refused(ValueError, ("found nan",), loss, torch.zeros(2, 3), targets)


@pytest.mark.parametrize(
    ("loss", "options", "parts"),
    [
        (focal_loss, {"gamma": -1}, ("`gamma` at least 0", "found -1")),
        (focal_loss, {"gamma": math.inf}, ("`gamma`", "inf")),
        (focal_loss, {"gamma": "2"}, ("`gamma`", "found '2'")),
        (focal_loss, {"alpha": 25}, ("`alpha` between 0 and 1", "found 25")),
        (asymmetric_loss, {"gamma_negative": -0.1}, ("`gamma_negative`", "found -0.1")),
        (asymmetric_loss, {"gamma_positive": math.nan}, ("`gamma_positive`", "found nan")),
        (asymmetric_loss, {"margin": 5}, ("`margin` between 0 and 1", "found 5", "probability")),
        (large_loss, {"rate": 20}, ("`rate` between 0 and 1", "found 20", "not a percentage")),
        (weighted_bce, {"class_reduction": "total"}, ("`class_reduction`", "'sum', 'mean', 'none'", "'total'")),
        (large_loss, {"rate": 0.1, "class_reduction": "total"}, ("`class_reduction`", "'total'")),
    ],
)
def test_wrong_options(loss, options, parts):
    refused(ValueError, parts, loss, torch.zeros(2, 3), torch.zeros(2, 3), **options)


def test_wrong_shapes_of_the_rest():
    logits, targets = sample()
    parts = ("`mix_lambda`", "(8,)", "found (8, 1)")
    refused(ValueError, parts, pair_losses, ENTRIES["bce"], logits, targets, targets, torch.ones(8, 1))
    parts = ("`transition`", "(6, 2, 2)", "found (2, 2)")
    refused(ValueError, parts, reweighted_losses, logits, targets, torch.eye(2))


def test_every_loss_of_the_table_is_tested():
    assert set(LOSSES) <= set(ENTRIES)
