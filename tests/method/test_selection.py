"""Co-teaching's pure part: which images are selected, who trains on them, and what they weigh."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from hf_balancemix.method import exchange, instance_posteriors, mean_probability_logits, step_weights


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_vector_17(vectors):
    given, expected = (vectors["17_coteaching_exchange"][part] for part in ("inputs", "expected"))
    posterior = torch.stack([tensor(given["clean_by_net1"]), tensor(given["clean_by_net2"])], dim=1)
    for network, trained in enumerate(exchange(posterior), start=1):
        losses = tensor(given[f"instance_losses_net{network}"])
        weights = step_weights(torch.arange(4), trained, 4).double()
        assert float((weights * losses).mean()) == pytest.approx(expected[f"loss_net{network}"], abs=1e-7)


def test_the_selection_is_strict_and_goes_to_the_other_network():
    posterior = tensor([[0.5, 0.9], [0.500001, 0.1], [1.0, 0.49]])
    assert exchange(posterior).tolist() == [[True, False, False], [False, True, True]]


@pytest.mark.parametrize(("rows", "used", "step_size"), [(24, 24, 8), (26, 26, 8), (26, 24, 8), (5, 5, 8), (7, 7, 1)])
def test_step_weights_against_loops(rows, used, step_size):
    """However a step's images are divided into equal batches, the mean of their means is the mean of the trained."""
    rng = np.random.default_rng(rows + step_size)
    order, losses = torch.from_numpy(rng.permutation(rows))[:used], rng.random(rows)
    trained = torch.from_numpy(rng.random(rows) < 0.4)
    trained[order[:step_size]] = False  # a step without any
    weights = step_weights(order, trained, step_size)
    assert weights.shape == (rows,)
    assert weights.dtype == torch.float32
    for start in range(0, used, step_size):
        step = [int(row) for row in order[start : start + step_size]]
        kept = [losses[row] for row in step if trained[row]]
        expected = sum(kept) / len(kept) if kept else 0.0
        for size in (s for s in (1, 2, 4, 8) if len(step) % s == 0):
            means = [
                np.mean([float(weights[row]) * losses[row] for row in step[at : at + size]])
                for at in range(0, len(step), size)
            ]
            assert np.mean(means) == pytest.approx(expected, abs=1e-6)
    assert not weights[~trained].any()
    assert not weights[[row for row in range(rows) if row not in order.tolist()]].any()


def test_posteriors_are_those_of_scikit_learn():
    """Each network's losses by themselves, min–max normalised, with the start and the settings of the mixtures."""
    rng = np.random.default_rng(0)
    easy, hard = rng.exponential(0.5, 240), rng.normal(6, 1, 60)
    columns = [np.abs(np.concatenate([easy, hard])), rng.gamma(2, 1, 300)]
    found = instance_posteriors(torch.from_numpy(np.stack(columns, axis=1)))
    assert found.dtype == torch.float64
    for column, posterior in zip(columns, found.T.numpy(), strict=True):
        scaled = ((column - column.min()) / (column.max() - column.min()))[:, None]
        fit = GaussianMixture(
            2,
            weights_init=[0.5, 0.5],
            means_init=[[0.0], [1.0]],
            precisions_init=[[[25.0]], [[25.0]]],
            max_iter=10,
            tol=1e-2,
            reg_covar=5e-4,
        ).fit(scaled)
        small = int(fit.means_[:, 0].argmin())
        np.testing.assert_allclose(posterior, fit.predict_proba(scaled)[:, small], atol=1e-5)
    assert (found[:240, 0] > 0.5).double().mean() > 0.95
    assert (found[240:, 0] > 0.5).double().mean() < 0.05


@pytest.mark.parametrize(
    ("losses", "options"),
    [
        (torch.full((40,), 2.0), {}),  # no spread
        (torch.arange(3.0), {}),  # too few
        (torch.arange(40.0), {"min_fit": 41}),
    ],
)
def test_where_nothing_separates_all_are_selected(losses, options):
    clear = torch.linspace(0, 1, len(losses)).round() * 5 + 0.01 * torch.arange(len(losses))
    found = instance_posteriors(torch.stack([losses, clear], dim=1), **options)
    assert (found[:, 0] == 1).all()
    if not options and len(losses) > 3:
        assert exchange(found)[0].sum() == 20  # the other network's two modes are divided all the same


def test_the_mean_of_two_probabilities():
    first, second = torch.tensor([0.0, 2.0, -3.0, 30.0, 1e4, -1e4]), torch.tensor([0.0, -1.0, 5.0, 40.0, 1e4, 1e4])
    found = mean_probability_logits(first, second)
    mean = (first.double().sigmoid() + second.double().sigmoid()) / 2
    torch.testing.assert_close(found[:3].double(), mean[:3].logit(), atol=1e-6, rtol=1e-6)
    # The smaller distance from 1 is twice too large and half of the mean: 30 + log 2.
    assert float(found[3]) == pytest.approx(30 + np.log(2), abs=1e-3)
    assert found[4:].tolist() == [1e4, 0.0]
    assert torch.equal(found, mean_probability_logits(second, first))
    assert (
        mean_probability_logits(first.half().clamp(-100, 100), second.half().clamp(-100, 100)).dtype == torch.float32
    )
