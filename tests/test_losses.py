"""Eq. 1 and Eq. 10, and their behaviour at the edges of number formats."""

import pytest
import torch
import torch.nn.functional as F

from hf_balancemix.losses import label_losses, weighted_bce
from hf_balancemix.method import refine


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_eq10_vector(vectors):
    vector = vectors["07_eq10_loss"]
    inputs, expected = vector["inputs"], vector["expected"]
    logits, mixed = tensor(inputs["logits"]), tensor(inputs["y_mix"])
    posterior = tensor(inputs["posterior_of_random_instance"])
    ambiguous = torch.tensor([[state == "U" for state in row] for row in inputs["state_of_random_instance"]])
    weights = torch.where(ambiguous, posterior, 1.0)
    torch.testing.assert_close(weights, tensor(expected["weights"]), atol=1e-9, rtol=0)
    torch.testing.assert_close(label_losses(logits, mixed), tensor(expected["bce"]), atol=1e-9, rtol=0)
    assert float(weighted_bce(logits, mixed, weights)) == pytest.approx(expected["loss"], abs=1e-9)
    assert float(weighted_bce(logits, mixed)) == pytest.approx(expected["eq1_loss_all_weights_one"], abs=1e-9)


def test_all_posteriors_one_make_eq10_equal_to_eq1():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5, 7, generator=generator), torch.randint(0, 2, (5, 7), generator=generator)
    refined = refine(labels, torch.ones(5, 7), torch.rand(5, 7, generator=generator), 0.6)
    assert torch.equal(weighted_bce(logits, refined.targets, refined.entry_weights), weighted_bce(logits, labels))


def test_scale_against_torch():
    logits, targets = torch.randn(4, 9), torch.rand(4, 9)
    reference = F.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(weighted_bce(logits, targets), 9 * reference)
    torch.testing.assert_close(weighted_bce(logits, targets, class_reduction="mean"), reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_logits_stay_finite_and_keep_their_gradient(dtype):
    logits = torch.tensor([[1e4, -1e4, 18.0]], dtype=dtype, requires_grad=True)
    loss = weighted_bce(logits, torch.tensor([[0.0, 1.0, 0.0]]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(2 * float(logits[0, 0]) + 18, rel=1e-3)
    assert torch.equal(logits.grad.sign(), torch.tensor([[1.0, -1.0, 1.0]], dtype=dtype))


@pytest.mark.parametrize(
    ("targets", "reduction", "message"),
    [(torch.zeros(2, 4), "sum", r"\(2, 3\) and \(2, 4\)"), (torch.zeros(2, 3), "total", "'sum', 'mean'.*'total'")],
)
def test_mistakes(targets, reduction, message):
    with pytest.raises(ValueError, match=message):
        weighted_bce(torch.zeros(2, 3), targets, class_reduction=reduction)
