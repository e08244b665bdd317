"""The losses: reference numbers, independent implementations, hand-counted cases."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel
from torchvision.ops import sigmoid_focal_loss

from hf_balancemix.losses import (
    asymmetric_loss,
    focal_loss,
    label_losses,
    large_loss,
    pair_losses,
    reduce_losses,
    reweighted_losses,
    weighted_bce,
)
from hf_balancemix.method import mix, refine
from tests.losses.entries import ENTRIES, TRANSITION, close, gradient, plain_bce, sample, tensor
from tests.tiny import refused

# ---- Eq. 1 and Eq. 10 ----


def test_vector_07(vectors):
    inputs, expected = vectors["07_eq10_loss"]["inputs"], vectors["07_eq10_loss"]["expected"]
    logits, mixed = tensor(inputs["logits"]), tensor(inputs["y_mix"])
    posterior = tensor(inputs["posterior_of_random_instance"])
    ambiguous = torch.tensor([[state == "U" for state in row] for row in inputs["state_of_random_instance"]])
    weights = torch.where(ambiguous, posterior, 1.0)
    close(weights, tensor(expected["weights"]))
    close(weighted_bce(logits, mixed, class_reduction="none"), tensor(expected["bce"]))
    assert float(weighted_bce(logits, mixed, weights)) == pytest.approx(expected["loss"], abs=1e-9)
    assert float(weighted_bce(logits, mixed)) == pytest.approx(expected["eq1_loss_all_weights_one"], abs=1e-9)


def test_all_posteriors_one_make_eq10_equal_to_eq1():
    logits, labels = sample(dtype=torch.float32)
    refined = refine(labels, torch.ones(8, 6), torch.rand(8, 6), 0.6)
    assert torch.equal(weighted_bce(logits, refined.targets, refined.entry_weights), weighted_bce(logits, labels))


def test_scale_against_torch():
    logits, targets = torch.randn(4, 9), torch.rand(4, 9)
    reference = F.binary_cross_entropy_with_logits(logits, targets)
    close(weighted_bce(logits, targets), 9 * reference, atol=1e-5)
    close(weighted_bce(logits, targets, class_reduction="mean"), reference, atol=1e-6)


def test_label_losses_are_the_entries_against_the_given_labels():
    logits, labels = sample()
    close(label_losses(logits, labels.to(torch.uint8)), tensor(plain_bce(logits, labels)))


@pytest.mark.parametrize("name", [name for name in ENTRIES if name != "reweighted"])
def test_class_reduction(name):
    logits, targets = sample()
    entries = ENTRIES[name](logits, targets)
    assert entries.shape == (8, 6)
    whole = ENTRIES[name].func
    options = {key: value for key, value in ENTRIES[name].keywords.items() if key != "class_reduction"}
    by_hand = sum(float(entry) for entry in entries.flatten())
    assert float(whole(logits, targets, **options)) == pytest.approx(by_hand / 8)
    assert float(whole(logits, targets, class_reduction="mean", **options)) == pytest.approx(by_hand / 48)
    assert torch.equal(reduce_losses(entries, "none"), entries)


# ---- focal ----


def test_vector_03(vectors):
    inputs, expected = vectors["03_focal"]["inputs"], vectors["03_focal"]["expected"]
    logits, targets = tensor(inputs["logits"]), tensor(inputs["targets"])
    focal = partial(focal_loss, logits, targets, class_reduction="none")
    for name, found in (("no_alpha", focal()), ("alpha_0.25", focal(alpha=0.25))):
        close(found, tensor(expected[f"{name}_per_element"]))
        assert float(found.sum()) == pytest.approx(expected[f"{name}_sum"], abs=1e-9)
    close(focal(gamma=0), tensor(expected["gamma0_equals_bce_per_element"]))
    scalar = float(focal_loss(logits, targets, gamma=0))
    assert scalar == pytest.approx(expected["bce_class_sum_batch_mean"], abs=1e-9)


@pytest.mark.parametrize(("gamma", "alpha"), itertools.product([0.0, 0.5, 1.0, 2.0, 3.7], [None, 0.25, 0.0, 1.0]))
def test_focal_equals_torchvision(gamma, alpha):
    logits, targets = sample(int(10 * gamma))
    reference = partial(sigmoid_focal_loss, targets=targets, alpha=-1 if alpha is None else alpha, gamma=gamma)
    ours = partial(focal_loss, targets=targets, gamma=gamma, alpha=alpha, class_reduction="none")
    close(ours(logits), reference(logits))
    close(gradient(ours, logits), gradient(reference, logits))


# ---- ASL ----


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(("name", "positive"), [("balancemix_gp0", 0), ("library_default_gp1", 1)])
def test_vector_01(vectors, name, positive, detach):
    inputs = vectors["01_asl"]["inputs"]
    expected = vectors["01_asl"]["expected"][f"{name}_gn4_{'detached' if detach else 'full'}_grad"]
    logits, targets = tensor(inputs["logits"]).requires_grad_(), tensor(inputs["targets"])
    entries = asymmetric_loss(logits, targets, 4, positive, inputs["clip"], detach, "none")
    close(entries.detach(), tensor(expected["per_element"]))
    entries.sum().backward()
    close(logits.grad, tensor(expected["d_sum_d_logits"]))
    scalar = float(asymmetric_loss(logits.detach(), targets, 4, positive, inputs["clip"], detach))
    assert scalar == pytest.approx(expected["class_sum_batch_mean"], abs=1e-9)


@pytest.mark.parametrize("gammas", [(4, 0), (4, 1), (2, 0), (0, 0), (1, 3), (2.5, 0.7)])
@pytest.mark.parametrize(("margin", "detach"), itertools.product([0.0, 0.05, 0.3], [True, False]))
def test_asl_equals_timm(gammas, margin, detach):
    """timm computes in float32."""
    logits, targets = sample(7, shape=(40, 9), dtype=torch.float32)
    reference = AsymmetricLossMultiLabel(*gammas, clip=margin, disable_torch_grad_focal_loss=detach, reduction="sum")
    ours = partial(asymmetric_loss, targets=targets, detach_weight=detach, margin=margin, class_reduction="none")
    ours = partial(ours, gamma_negative=gammas[0], gamma_positive=gammas[1])
    close(ours(logits).sum(), reference(logits, targets), rtol=1e-5)
    close(40 * asymmetric_loss(logits, targets, *gammas, margin, detach), reference(logits, targets), rtol=1e-5)
    close(gradient(ours, logits), gradient(lambda x: reference(x, targets), logits), atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 4.0])
def test_attached_symmetric_asl_without_margin_is_focal(gamma):
    logits, targets = sample()
    asl = partial(
        asymmetric_loss,
        targets=targets,
        gamma_negative=gamma,
        gamma_positive=gamma,
        margin=0,
        detach_weight=False,
        class_reduction="none",
    )
    focal = partial(focal_loss, targets=targets, gamma=gamma, class_reduction="none")
    close(asl(logits), focal(logits), atol=1e-12)
    close(gradient(asl, logits), gradient(focal, logits), atol=1e-12)
    if gamma:  # the published scripts' gradient is another one
        detached = partial(asl, detach_weight=True)
        assert (gradient(detached, logits) - gradient(focal, logits)).abs().max() > 1e-2


def test_negatives_below_the_margin_have_neither_loss_nor_gradient():
    probability = tensor([[0.0499, 0.0501, 0.01, 1e-9]])
    logits = probability.logit()
    for name in ("asl", "asl, attached", "asl, gamma 0"):
        loss = partial(ENTRIES[name], targets=torch.zeros_like(logits))
        assert (loss(logits) > 0).tolist() == [[False, True, False, False]]
        assert (gradient(loss, logits) != 0).tolist() == [[False, True, False, False]]


def test_detached_weights_are_left_out_of_the_gradient():
    """d/dx of −w·log p with w fixed: −w·(1 − f) for a positive, w·f·(1 − f)/q for a negative above the margin."""
    logits, targets = sample()
    f = logits.sigmoid()
    for margin, (negative, positive) in itertools.product((0.0, 0.05), ((4, 0), (3, 1.5))):
        q = (1 - f + margin).clamp(max=1)
        expected = torch.where(
            targets == 1, -((1 - f) ** positive) * (1 - f), (1 - q) ** negative * f * (1 - f) / q * (f > margin)
        )
        found = gradient(
            partial(
                asymmetric_loss,
                targets=targets,
                gamma_negative=negative,
                gamma_positive=positive,
                margin=margin,
                class_reduction="none",
            ),
            logits,
        )
        close(found, expected)


# ---- reweighting ----


def test_vector_14(vectors):
    inputs, expected = vectors["14_t_estimator"]["inputs"], vectors["14_t_estimator"]["expected"]
    logits, labels = tensor(inputs["logits"]).requires_grad_(), tensor(inputs["noisy_labels"])
    found = reweighted_losses(logits, labels, tensor(inputs["T"]))
    close(found.detach(), tensor(expected["weighted_bce"]))
    assert float(reduce_losses(found.detach())) == pytest.approx(expected["class_sum_batch_mean"], abs=1e-9)
    assert float(reduce_losses(found.detach(), "mean")) == pytest.approx(expected["mean"], abs=1e-9)
    found.sum().backward()  # β carries no gradient: only BCE's own slope is weighted
    close(logits.grad, tensor(expected["beta"]) * (logits.detach().sigmoid() - labels))


def test_reweighting_without_noise_is_bce():
    logits, labels = sample()
    close(reweighted_losses(logits, labels, torch.eye(2).expand(6, 2, 2)), label_losses(logits, labels))


def test_reweighting_is_not_rounded_by_autocast():
    """A matrix product under autocast would be in bfloat16, with three digits."""
    logits, labels = sample(dtype=torch.float32)
    expected = reweighted_losses(logits, labels, TRANSITION)
    with torch.autocast("cpu", torch.bfloat16):
        found = reweighted_losses(logits, labels, TRANSITION)
    assert torch.equal(found, expected)
    close(found, reweighted_losses(logits.double(), labels.double(), TRANSITION).float(), atol=1e-5)


# ---- pairs ----


def test_vector_02(vectors):
    inputs, expected = vectors["02_asl_mixup"]["inputs"], vectors["02_asl_mixup"]["expected"]
    logits = tensor(inputs["logits"])
    first, second = tensor(inputs["targets_a"]), tensor(inputs["targets_b"])
    share = torch.full((2,), inputs["lambda"], dtype=torch.float64)
    found = pair_losses(ENTRIES["asl"], logits, first, second, share)
    close(found, tensor(expected["pair_rule_per_element"]))
    assert float(found.sum()) == pytest.approx(expected["pair_rule_sum"], abs=1e-9)
    assert abs(float(found.sum()) - expected["naive_sum"]) > 0.9
    # The naive soft target cannot be had by accident.
    mixed = mix(first, second, share)
    parts = ("targets of 0 or 1", "found 0.7", "row 0, class 0", "pair_losses")
    refused(ValueError, parts, asymmetric_loss, logits, mixed)


def test_only_bce_is_linear_in_the_target():
    logits, first = sample()
    _, second = sample(1)
    share = torch.linspace(0, 1, 8, dtype=torch.float64)
    close(pair_losses(ENTRIES["bce"], logits, first, second, share), ENTRIES["bce"](logits, mix(first, second, share)))
    for name, loss in ENTRIES.items():
        by_hand = [
            share[i] * loss(logits, first)[i] + (1 - share[i]) * loss(logits, second)[i] for i in range(len(share))
        ]
        close(pair_losses(loss, logits, first, second, share), torch.stack(by_hand))
        if name != "bce":
            with pytest.raises(ValueError, match="targets of 0 or 1"):
                loss(logits, mix(first, second, share))


def test_large_losses_of_a_pair_are_ranked_for_each_member():
    """The first entry is large against both labels; where one member has it as a positive, it stays there."""
    logits = tensor([[4.0, 1.0, -2.0, -2.0, -2.0]])
    first, second = tensor([[0, 0, 0, 0, 1]]), tensor([[1, 0, 0, 0, 0]])
    found = pair_losses(partial(large_loss, rate=0.2, class_reduction="none"), logits, first, second, tensor([0.7]))
    one, other = label_losses(logits, first), label_losses(logits, second)
    one[0, 0] = other[0, 1] = 0.0
    close(found, 0.7 * one + 0.3 * other)


def test_shares_are_read_in_the_precision_of_the_loss():
    logits, first = sample(dtype=torch.bfloat16)
    found = pair_losses(ENTRIES["bce"], logits, first, 1 - first, torch.full((8,), 0.7, dtype=torch.float64))
    assert found.dtype == torch.float32
    close(found, 0.7 * label_losses(logits, first) + 0.3 * label_losses(logits, 1 - first), atol=1e-5)
