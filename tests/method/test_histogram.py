"""Histograms of losses: what is in them, how shards add up, and how near the fit is to that of all losses."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from hf_balancemix.method import fit_mixtures, label_posteriors, loss_histogram, loss_range, mixture_posteriors
from hf_balancemix.method.histogram import BINS, INTERVALS, LEVELS

INF = math.inf


def table(n=2000, num_labels=7, seed=0):
    """Losses of a model that has seen noisy labels: most of them near 0; some infinite."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, num_labels, generator=generator) < torch.linspace(0.002, 0.6, num_labels)
    logits = torch.where(labels, 1.0, -5.0) + 2.5 * torch.randn(n, num_labels, generator=generator)
    losses = torch.nn.functional.softplus(torch.where(labels, -logits, logits))
    losses[torch.rand(n, num_labels, generator=generator) < 0.001] = INF
    return losses, labels.to(torch.uint8)


def test_counts_and_sums_by_hand():
    losses = torch.tensor([[1.0], [3.0], [2.0], [2.0], [1.0 + 2 / 4096 * 1.5], [INF], [7.0]])
    labels = torch.tensor([[0], [0], [0], [0], [0], [0], [1]])
    low, high = loss_range(losses, labels)
    assert low.tolist() == [[1.0], [7.0]]
    assert high.tolist() == [[3.0], [7.0]]
    count, total = loss_histogram(losses, labels, low, high)
    assert (INTERVALS, BINS) == (4096, 4098)
    expected = {0: (1, 0.0), 1: (1, 1.5 / 4096), 2048: (2, 1.0), 4096: (1, 1.0)}
    assert count[0, 0].nonzero().flatten().tolist() == [*expected, 4097]  # the last bin holds the infinite loss
    for place, (number, value) in expected.items():
        assert int(count[0, 0, place]) == number
        assert int(total[0, 0, place]) / LEVELS == value
    assert count[1, 0].nonzero().flatten().tolist() == [0]  # no spread: normalised to 0


def test_every_loss_is_in_the_histogram_of_its_set():
    losses, labels = table()
    low, high = loss_range(losses, labels)
    count, total = loss_histogram(losses, labels, low, high)
    for label in (0, 1):
        for k in range(losses.shape[1]):
            members = losses[labels[:, k] == label, k].double()
            finite = members[members.isfinite()]
            assert (float(low[label, k]), float(high[label, k])) == (float(finite.min()), float(finite.max()))
            value = ((finite - finite.min()) / (finite.max() - finite.min())).numpy()
            expected = np.bincount((value * INTERVALS).astype(int), minlength=INTERVALS + 1)
            found = count[label, k].numpy()
            assert np.abs(found[:-1] - expected).sum() <= 4  # rounding to float32 at the edge of a bin
            assert found[-1] == len(members) - len(finite)
            assert float(total[label, k, :-1].sum()) / LEVELS == pytest.approx(value.sum(), rel=1e-6)


@pytest.mark.parametrize("shards", [2, 4, 7])
def test_shards_add_up_to_the_whole_bit_for_bit(shards):
    losses, labels = table()
    whole = label_posteriors(losses, labels)
    parts = [(losses[rank::shards], labels[rank::shards]) for rank in range(shards)]
    ranges = [loss_range(*part) for part in parts]
    low = torch.stack([low for low, _ in ranges]).amin(dim=0)
    high = torch.stack([high for _, high in ranges]).amax(dim=0)
    histogram = torch.stack([loss_histogram(*part, low, high) for part in parts]).sum(dim=0)
    mixtures = fit_mixtures(histogram, low, high)
    for name, value in vars(mixtures).items():
        assert torch.equal(value, getattr(whole, name))
    for rank, part in enumerate(parts):
        found = mixture_posteriors(*part, mixtures)
        torch.testing.assert_close(found, whole.posterior[rank::shards], atol=1e-6, rtol=0)


def test_a_shard_without_any_positive_leaves_the_range_to_the_others():
    losses, labels = table()
    low, high = loss_range(losses[:3], torch.zeros_like(labels[:3]))
    assert (low[1] == INF).all()
    assert (high[1] == -INF).all()


def hard_sets(n, seed):
    """Sets on which equal bins could fail: nearly all losses in few of them, or far apart, or on few values."""
    rng = np.random.default_rng(seed)
    noisy = rng.random(n) < 0.3
    return {
        "bce": np.logaddexp(0, rng.normal(-6, 2, n)),
        "noisy bce": np.logaddexp(0, np.where(noisy, rng.normal(3, 2, n), rng.normal(-6, 2, n))),
        "one outlier": np.append(np.logaddexp(0, rng.normal(-1, 2, n - 1)), 1e6),
        "two outliers": np.append(rng.exponential(1, n - 2), [40.0, 80.0]),
        "lognormal": rng.lognormal(0, 3, n),
        "pareto": rng.pareto(1, n),
        "two values": np.where(noisy, 0.0, 1.0) + rng.normal(0, 1e-3, n),
        "ties": np.round(rng.exponential(1, n), 1),
        "offset": 1000 + rng.exponential(1, n),
        "one mode": rng.normal(10, 1, n),
        "near 0": rng.gamma(0.1, 1, n),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "seeds"), [(5, 6), (12, 6), (60, 6), (400, 3), (20_000, 1)])
def test_posteriors_of_hard_sets_are_those_of_an_exact_fit(n, seeds, dtype):
    for seed in range(seeds):
        sets = hard_sets(n, seed)
        losses = torch.from_numpy(np.stack(list(sets.values()), axis=1)).to(dtype)
        fit = label_posteriors(losses, torch.zeros_like(losses))
        for k, name in enumerate(sets):
            if not fit.fitted[0, k]:
                continue
            value = losses[:, k].double()
            value = ((value - value.min()) / (value.max() - value.min())).numpy()[:, None]
            start = {"weights_init": [0.5] * 2, "means_init": [[0.0], [1.0]], "precisions_init": [25.0] * 2}
            exact = GaussianMixture(2, covariance_type="spherical", max_iter=10, tol=1e-2, reg_covar=5e-4, **start)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                exact.fit(value)
            expected = exact.predict_proba(value)[:, exact.means_[:, 0].argmin()]
            assert int(fit.n_steps[0, k]) == exact.n_iter_, name
            np.testing.assert_allclose(fit.posterior[:, k].double(), expected, atol=5e-4, err_msg=name)


def test_the_work_of_fitting_does_not_grow_with_the_losses():
    shapes = [loss_histogram(*pair, *loss_range(*pair)).shape for pair in (table(n=10), table(n=3000))]
    assert shapes[0] == shapes[1] == (2, 2, 7, BINS)


def test_a_batch_with_losses_beyond_the_range_of_the_training_set():
    """What has since become larger than any loss of the fit looks mislabelled, what has become smaller clean."""
    losses, labels = table()
    fit = label_posteriors(losses, labels, monotone=True)
    batch = torch.tensor([[0.0], [100.0], [INF]]).repeat(1, losses.shape[1])
    for label in (0, 1):
        found = mixture_posteriors(batch, torch.full_like(batch, label), fit, monotone=True)
        fitted = fit.fitted[label]
        assert (found[0, fitted] == 1).all()
        assert (found[1, fitted] < 0.5).all()
        assert (found[2] == 0).all()
    trusted = mixture_posteriors(batch, torch.ones_like(batch), fit, trust_positives=True)
    assert (trusted == 1).all()
