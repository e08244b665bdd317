"""T-estimator's matrices, against vector 14, hand-counted numbers, a plain double loop, and noise that is known."""

import time
from collections import Counter

import numpy as np
import pytest
import torch

from hf_balancemix.losses import reduce_losses, reweighted_losses
from hf_balancemix.method import (
    TRANSITION_CHOICES,
    dual_transition,
    empirical_transition,
    estimate_transition,
    normalised_losses,
    pair_counts,
    solve_pair,
    transition,
)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def correlated_labels(n=2000, k=6, seed=0, spread=1.0):
    """Labels that share two hidden causes; the last class is independent of all others."""
    rng = np.random.default_rng(seed)
    causes = rng.normal(size=(n, 2)) @ rng.normal(size=(2, k)) * spread
    causes[:, -1] = 0
    return torch.from_numpy((causes + rng.normal(size=(n, k)) > 0.3).astype(np.uint8))


def with_noise(clean, false_positive, false_negative, seed=0):
    """D4: every entry changes on its own, 0 to 1 and 1 to 0 with rates of their own."""
    draws = torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed))
    changed = torch.where(clean == 1, draws < torch.as_tensor(false_negative), draws < torch.as_tensor(false_positive))
    return clean ^ changed.to(torch.uint8)


def matrix(false_positive, false_negative):
    return [[1 - false_positive, false_positive], [false_negative, 1 - false_negative]]


def test_vector_14(vectors):
    vector = vectors["14_t_estimator"]
    inputs, expected = ({k: tensor(v) for k, v in vector[part].items()} for part in ("inputs", "expected"))
    prior, found = solve_pair(inputs["E"], inputs["M"])
    torch.testing.assert_close(prior, expected["p_hat"], atol=1e-9, rtol=0)
    torch.testing.assert_close(found, expected["T_hat"], atol=1e-9, rtol=0)
    entries = reweighted_losses(inputs["logits"], inputs["noisy_labels"], inputs["T"])
    torch.testing.assert_close(entries, expected["weighted_bce"], atol=1e-9, rtol=0)
    torch.testing.assert_close(reduce_losses(entries), expected["class_sum_batch_mean"], atol=1e-9, rtol=0)


def test_the_weights_have_no_gradient(vectors):
    """β times the gradient of BCE, which is f - t."""
    inputs = {k: tensor(v) for k, v in vectors["14_t_estimator"]["inputs"].items()}
    logits = inputs["logits"].clone().requires_grad_()
    reweighted_losses(logits, inputs["noisy_labels"], inputs["T"]).sum().backward()
    beta = tensor(vectors["14_t_estimator"]["expected"]["beta"])
    expected = beta * (inputs["logits"].sigmoid() - inputs["noisy_labels"])
    torch.testing.assert_close(logits.grad, expected, atol=1e-9, rtol=0)


def test_solved_pairs_fulfil_their_equation():
    generator = torch.Generator().manual_seed(0)
    rates, prior, m = (torch.rand(50, n, generator=generator, dtype=torch.float64) for n in (2, 1, 2))
    T = torch.stack([1 - rates[:, 0], rates[:, 0], rates[:, 1], 1 - rates[:, 1]], -1).view(-1, 2, 2)
    M = torch.stack([1 - m[:, 0], m[:, 0], 1 - m[:, 1], m[:, 1]], -1).view(-1, 2, 2)
    joint = T.mT @ torch.diag_embed(torch.cat([1 - prior, prior], -1)) @ M
    found_prior, found = solve_pair(joint, M)
    torch.testing.assert_close(found_prior, prior[:, 0], atol=1e-9, rtol=0)
    torch.testing.assert_close(found, T, atol=1e-9, rtol=0)


def test_pairs_are_counted_as_by_hand(monkeypatch):
    labels = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 1], [0, 0]])
    selected = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 1], [0, 1]]).bool()
    assert pair_counts(labels)[0, 1].tolist() == [[1, 1], [1, 2]]
    assert pair_counts(labels)[1, 0].tolist() == [[1, 1], [1, 2]]
    assert pair_counts(labels, selected)[0, 1].tolist() == [[0, 1], [1, 1]]
    assert pair_counts(labels, selected)[1, 0].tolist() == [[1, 1], [1, 1]]
    whole = pair_counts(labels, selected)
    monkeypatch.setattr(transition, "_CHUNK_ENTRIES", 4)
    assert torch.equal(pair_counts(labels, selected), whole)


# ---- against a plain double loop ----


def frequencies(labels, rows, j, i):
    table = np.zeros((2, 2))
    for n in rows:
        table[labels[n, j], labels[n, i]] += 1
    return table


def naive(labels, selected, choice, reasons):
    """Candidates pair by pair with a matrix inverse, as the equations are written."""
    n, k = labels.shape
    chosen = {}
    for j in range(k):
        members = np.flatnonzero(selected[:, j])
        candidates, equations = [], []
        enough = min((labels[members, j] == value).sum() for value in (0, 1)) >= 50
        for i in range(k):
            if i == j or not enough:
                reasons["too few" if i != j else "itself"] += 1
                continue
            E = frequencies(labels, range(n), j, i) / n
            M = frequencies(labels, members, j, i)
            M /= M.sum(axis=1, keepdims=True)
            if abs(M[0, 0] - M[1, 0]) < 1e-3:
                reasons["uncorrelated"] += 1
                continue
            p = (M[0, 0] - E[:, 0].sum()) / (M[0, 0] - M[1, 0])
            T = (E @ np.linalg.inv(M) @ np.diag([1 / (1 - p), 1 / p])).T
            rates = np.array([T[0, 1], T[1, 0]])
            small = (rates < 0) & (rates > -0.3 / k)
            reasons["small negative"] += int(small.any())
            rates[small] = 0
            if not 0 <= p <= 1:
                reasons["prior"] += 1
            elif (rates < 0).any() or (rates > 1).any():
                reasons["rate"] += 1
            elif rates.sum() >= 1:
                reasons["sum"] += 1
            else:
                reasons["kept"] += 1
                candidates.append(rates)
                # rate · den = num, without dividing
                num = [E[1, 0] * M[1, 1] - E[1, 1] * M[1, 0], E[0, 1] * M[0, 0] - E[0, 0] * M[0, 1]]
                equations.append((num, [E[:, 0].sum() - M[1, 0], M[0, 0] - E[:, 0].sum()]))
        if candidates:
            if choice == "medoid":
                tables = [np.array(matrix(*rates)) for rates in candidates]
                costs = [sum(np.abs(a - b).sum() for b in tables) for a in tables]
            else:
                costs = [
                    sum(abs(r * d - m) for num, den in equations for r, d, m in zip(rates, den, num, strict=True))
                    for rates in candidates
                ]
            chosen[j] = (matrix(*candidates[int(np.argmin(costs))]), len(candidates))
    return chosen


@pytest.mark.parametrize("choice", TRANSITION_CHOICES)
def test_a_double_loop_over_the_pairs_finds_the_same(choice):
    reasons, different = Counter(), 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        clean = correlated_labels(n=500, k=7, seed=seed, spread=(0.05, 1.0)[seed % 2])
        clean[:, 0] = torch.from_numpy(rng.random(500) < 0.08)  # rare: too few positives are selected
        labels = with_noise(clean, rng.uniform(0, 0.3, 7), rng.uniform(0, 0.5, 7), seed)
        # A selection that errs: some wrong labels in, some right ones out, at random by class and value.
        share = torch.from_numpy(rng.uniform(0.3, 1, (2, 7)))
        picked = torch.where(labels == clean, share[0], 1 - share[1])
        selected = torch.from_numpy(rng.random(labels.shape)) < picked
        fit = estimate_transition(labels, selected, torch.rand(labels.shape), choice)
        expected = naive(labels.numpy(), selected.numpy(), choice, reasons)
        assert fit.n_candidates.tolist() == [expected[j][1] if j in expected else 0 for j in range(7)]
        for j, (table, _) in expected.items():
            torch.testing.assert_close(fit.transition[j], tensor(table), atol=1e-9, rtol=0)
        other = estimate_transition(labels, selected, torch.rand(labels.shape), TRANSITION_CHOICES[choice == "medoid"])
        different += int((fit.transition != other.transition)[fit.n_candidates > 2].any())
    print(reasons)
    for reason in ("too few", "small negative", "prior", "rate", "sum", "kept"):
        assert reasons[reason] > 0, reason
    assert different > 0  # the two rules are two rules


def test_fifty_selected_of_each_value_are_needed():
    clean = correlated_labels(400, 4, seed=1)
    first = clean[:, 0].nonzero().flatten()
    for count, used in ((50, True), (49, False)):
        selected = torch.ones_like(clean, dtype=torch.bool)
        selected[first[count:], 0] = False
        fit = estimate_transition(clean, selected, torch.rand(clean.shape))
        assert bool(fit.n_candidates[0] > 0) is used
        assert (fit.n_candidates[1:3] > 0).all()


@pytest.mark.parametrize(("more", "proposed"), [(0, 0), (4, 0), (6, 1)])
def test_uncorrelated_pairs_propose_nothing(more, proposed):
    """Two classes whose gap is 0, 0.0008 or 0.0012, without noise."""
    first = torch.arange(10_000) >= 5000
    second = torch.arange(10_000) % 5000 >= 2500
    second[5000 + 2500 - more : 5000 + 2500] = True
    labels = torch.stack([first, second], dim=1)
    fit = estimate_transition(labels, torch.ones_like(labels), torch.rand(labels.shape))
    assert fit.n_candidates.tolist() == [proposed] * 2


# ---- known noise ----


@pytest.mark.parametrize("choice", TRANSITION_CHOICES)
@pytest.mark.parametrize(("false_positive", "false_negative"), [(0.1, 0.3), (0.0, 0.4), (0.2, 0.0), (0.0, 0.0)])
def test_known_noise_is_recovered_with_a_perfect_selection(choice, false_positive, false_negative):
    clean = correlated_labels(n=40_000)
    labels = with_noise(clean, false_positive, false_negative)
    fit = estimate_transition(labels, labels == clean, torch.rand(clean.shape), choice)
    expected = empirical_transition(clean, labels)
    assert (fit.n_candidates[:-1] > 0).all()
    # Sampling: about 1/√(members) per frequency, divided by the gap of a few tenths.
    assert float((fit.transition - expected)[:-1].abs().max()) < 0.05
    torch.testing.assert_close(fit.transition.sum(dim=-1), torch.ones(6, 2).double(), atol=1e-12, rtol=0)


def test_rates_of_their_own_for_every_class():
    clean = correlated_labels(n=40_000)
    false_positive, false_negative = torch.linspace(0, 0.25, 6), torch.linspace(0.4, 0.05, 6)
    labels = with_noise(clean, false_positive, false_negative)
    found = estimate_transition(labels, labels == clean, torch.rand(clean.shape)).transition
    for k in range(5):
        torch.testing.assert_close(found[k], tensor(matrix(false_positive[k], false_negative[k])), atol=0.05, rtol=0)


def test_a_set_taken_as_clean_as_a_whole_means_no_noise():
    labels = correlated_labels()
    fit = estimate_transition(labels, torch.ones_like(labels).bool(), torch.rand(labels.shape))
    assert (fit.n_candidates[:-1] > 0).all()
    torch.testing.assert_close(fit.transition[:-1], torch.eye(2).double().expand(5, 2, 2), atol=1e-9, rtol=0)


def test_as_large_as_coco_takes_seconds():
    clean = correlated_labels(117_266, 80)
    labels = with_noise(clean, 0.05, 0.2)
    start = time.perf_counter()
    fit = estimate_transition(labels, labels == clean, torch.rand(clean.shape))
    seconds = time.perf_counter() - start
    print(f"K = 80, N = 117,266: {seconds:.1f} s")
    assert seconds < 20
    assert (fit.n_candidates[:-1] > 0).all()


# ---- Dual-T, the truth, losses ----


def test_dual_t_by_hand():
    probs = tensor([[0.1], [0.2], [0.9], [0.8], [0.6]])
    labels = torch.tensor([[0], [1], [1], [0], [1]])
    # Surest instances: 0.1 and 0.9. Predicted 0: given 0, 1. Predicted 1: given 1, 0, 1.
    expected = tensor([[0.9, 0.1], [0.1, 0.9]]) @ tensor([[1 / 2, 1 / 2], [1 / 3, 2 / 3]])
    torch.testing.assert_close(dual_transition(probs, labels)[0], expected, atol=1e-12, rtol=0)
    # Too few for candidates, so this is what a class gets.
    fit = estimate_transition(labels, torch.ones(5, 1).bool(), probs)
    torch.testing.assert_close(fit.transition[0], expected, atol=1e-12, rtol=0)
    assert fit.n_candidates.tolist() == [0]


def test_dual_t_of_a_value_that_is_never_predicted():
    probs, labels = tensor([[0.1], [0.4], [0.3]]), torch.tensor([[0], [1], [0]])
    expected = tensor([[0.9, 0.1], [0.6, 0.4]]) @ tensor([[2 / 3, 1 / 3], [0, 1]])
    torch.testing.assert_close(dual_transition(probs, labels)[0], expected, atol=1e-12, rtol=0)


def test_the_true_matrix_by_hand():
    clean = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 0]])
    labels = torch.tensor([[1, 0], [0, 1], [1, 0], [1, 0]])
    found = empirical_transition(clean, labels)
    torch.testing.assert_close(found[0], tensor([[0, 1], [1 / 3, 2 / 3]]))
    torch.testing.assert_close(found[1, 0], tensor([3 / 4, 1 / 4]))
    assert found[1, 1].isnan().all()  # class 1 is never present


def test_losses_are_normalised_within_class_and_value():
    labels = torch.tensor([[0, 1], [0, 1], [0, 1], [1, 1], [1, 1]])
    losses = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [10.0, 5.0], [30.0, 5.0 + 4e-7]])
    expected = [[0, 0], [0.5, 0], [1, 0], [0, 0], [1, 0]]
    assert normalised_losses(losses, labels).tolist() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice": "mediod"}, "medoid, residual; got 'mediod'"),
        ({"selected": torch.ones(4, 2).bool()}, r"\(4, 3\), \(4, 2\), \(4, 3\)"),
        ({"labels": torch.full((4, 3), 2)}, "0 or 1"),
        (dict.fromkeys(("labels", "selected", "probs"), torch.ones(0, 3)), "non-empty"),
    ],
)
def test_wrong_inputs_are_refused(change, message):
    inputs = {"labels": torch.ones(4, 3), "selected": torch.ones(4, 3).bool(), "probs": torch.rand(4, 3)}
    with pytest.raises(ValueError, match=message):
        estimate_transition(**{**inputs, **change})
