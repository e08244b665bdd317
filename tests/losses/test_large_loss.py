"""LL-R and LL-Ct: which entries are changed, and what becomes of them."""

import math
from functools import partial

import pytest
import torch

from hf_balancemix.losses import label_losses, large_loss, large_loss_rate, weighted_bce
from tests.losses.entries import ENTRIES, close, gradient, plain_bce, sample, tensor


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.3])
@pytest.mark.parametrize(("name", "correct"), [("LL-R", False), ("LL-Ct", True)])
def test_vector_11(vectors, name, correct, rate):
    inputs, expected = vectors["11_large_loss"]["inputs"], vectors["11_large_loss"]["expected"][f"{name}_rate_{rate}"]
    logits, labels = tensor(inputs["logits"]), tensor(inputs["labels"])
    found = large_loss(logits, labels, rate, correct, "none")
    close(found, tensor(expected["per_element"]))
    if expected["modified"] is not None:
        modified = torch.tensor(expected["modified"], dtype=torch.bool)
        assert torch.equal(found != label_losses(logits, labels), modified)
        assert int(modified.sum()) == expected["k"]
    scalar = large_loss(logits, labels, rate, correct)
    assert float(scalar) == pytest.approx(expected["class_sum_batch_mean"], abs=1e-9)
    mean = large_loss(logits, labels, rate, correct, "mean")
    assert float(mean) == pytest.approx(expected["mean"], abs=1e-9)


def test_rates_of_vector_11(vectors):
    """Rates of the first, second and last epoch; ours are numbered from 0."""
    for name, expected in vectors["11_large_loss"]["expected"]["rate_schedule"].items():
        _, epochs, percent = name.split("_")
        last = int(epochs.removesuffix("ep")) - 1
        assert [large_loss_rate(e, float(percent)) for e in (0, 1, last)] == pytest.approx(expected, abs=1e-12)
    assert large_loss_rate(50, 10.0) == 1.0


def by_plain_loops(logits, labels, count, correct):
    """LL-R or LL-Ct by sorting a list: the `count` largest losses of zeros and whatever ties with the last of them."""
    losses = plain_bce(logits, labels)
    negatives = sorted((losses[i][j] for i, j in (labels == 0).nonzero().tolist()), reverse=True)
    threshold = negatives[min(count, len(negatives)) - 1] if count and negatives else math.inf
    for i, j in (labels == 0).nonzero().tolist():
        if losses[i][j] >= threshold:
            losses[i][j] = math.log1p(math.exp(-float(logits[i, j]))) if correct else 0.0
    return tensor(losses)


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, 17, 30, 48])
def test_large_loss_equals_plain_loops(count, correct):
    for seed in range(4):
        logits, labels = sample(seed)
        labels[0] = 1  # a row without zeros
        expected = by_plain_loops(logits, labels, count, correct)
        close(large_loss(logits, labels, count / 48, correct, "none"), expected)
        coarse = logits.round()  # many ties
        expected = by_plain_loops(coarse, labels, count, correct)
        close(large_loss(coarse, labels, count / 48, correct, "none"), expected)


def test_ties_at_the_threshold_are_all_taken():
    logits, labels = tensor([[2.0, 1.0, 1.0, 1.0, -3.0]]), torch.zeros(1, 5)
    assert (large_loss(logits, labels, 2 / 5, class_reduction="none") == 0).tolist() == [[True] * 4 + [False]]


@pytest.mark.parametrize(("rate", "changed"), [(0.3, 3), (0.1 * 3, 3), (0.7, 7), (0.31, 4), (0.0, 0), (1e-7, 1)])
def test_how_many_are_changed(rate, changed):
    """0.1 · 3 · 10 is 3.0000000000000004 in floats, which is still three."""
    logits, labels = torch.arange(10.0).view(2, 5), torch.zeros(2, 5)
    assert int((large_loss(logits, labels, rate, class_reduction="none") == 0).sum()) == changed


def test_every_exact_product_changes_that_many():
    logits, labels = torch.arange(1000.0).view(10, 100) / 100, torch.zeros(10, 100)
    for epoch in range(0, 40, 3):  # Δ = 0.1 percent of 1000 entries: one more in each epoch
        found = large_loss(logits, labels, large_loss_rate(epoch, 0.1), class_reduction="none")
        assert int((found == 0).sum()) == epoch


@pytest.mark.parametrize("correct", [False, True])
def test_positives_never_change_even_where_all_negatives_do(correct):
    logits, labels = sample()
    labels[:, 2] = 1
    found, plain = large_loss(logits, labels, 1.0, correct, "none"), label_losses(logits, labels)
    assert torch.equal(found[labels == 1], plain[labels == 1])
    negative = labels == 0
    close(found[negative], label_losses(logits, torch.ones_like(labels))[negative] if correct else 0 * plain[negative])
    ones = torch.ones_like(labels)
    assert torch.equal(large_loss(logits, ones, 0.5, correct), weighted_bce(logits, ones))


def test_gradients_of_changed_entries():
    logits, labels = sample()
    rejected, corrected = (large_loss(logits, labels, 0.2, c, "none") != label_losses(logits, labels) for c in (0, 1))
    assert torch.equal(rejected, corrected)
    assert int(rejected.sum()) == 10
    plain = logits.sigmoid() - labels
    for name, slope in (("ll_r", torch.zeros_like(logits)), ("ll_ct", logits.sigmoid() - 1)):
        found = gradient(partial(ENTRIES[name], targets=labels), logits)
        close(found, torch.where(rejected, slope, plain))


def test_ranking_is_in_float32():
    """Three logits next to each other in float32 are one in bfloat16; their losses also differ in float32 only."""
    logits = torch.tensor([[5.0, 5.0001, 5.0002, 1.0]])
    found = large_loss(logits, torch.zeros(1, 4), 0.25, class_reduction="none")
    assert (found == 0).tolist() == [[False, False, True, False]]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(large_loss(logits, torch.zeros(1, 4), 0.25, class_reduction="none"), found)
