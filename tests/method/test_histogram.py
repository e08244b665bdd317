"""Histograms of losses: what is in them, how shards add up, and how near the fit is to that of all losses."""

import math
import threading
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from hf_balancemix.method import LossHistogram, fit_mixtures, label_posteriors, mixture_posteriors
from hf_balancemix.method.histogram import BINS

INF = math.inf


def table(n=2000, num_labels=7, seed=0):
    """Losses of a model that has seen noisy labels: most of them near 0; some infinite."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, num_labels, generator=generator) < torch.linspace(0.002, 0.6, num_labels)
    logits = torch.where(labels, 1.0, -5.0) + 2.5 * torch.randn(n, num_labels, generator=generator)
    losses = torch.nn.functional.softplus(torch.where(labels, -logits, logits))
    losses[torch.rand(n, num_labels, generator=generator) < 0.001] = INF
    return losses, labels.to(torch.uint8)


def histogram_of(*parts):
    histogram = LossHistogram(parts[0][0].shape[1])
    for losses, labels in parts:
        histogram.add(losses, labels)
    return histogram


def test_counts_and_sums_by_hand():
    # 1 to 3 takes more than 2048 bins of 2^-10: 1 is the start of the first one.
    losses = torch.tensor([[1.0], [3.0], [2.0], [2.0], [1.0 + 1.5 / 1024], [INF], [7.0]])
    labels = torch.tensor([[0], [0], [0], [0], [0], [0], [1]])
    found = histogram_of((losses, labels))
    assert found.low.tolist() == [[1.0], [7.0]]
    assert found.high.tolist() == [[3.0], [7.0]]
    assert BINS == 4096
    assert (int(found.exponent[0, 0]), int(found.origin[0, 0])) == (-10, 1024)
    expected = {0: (1, 1.0), 1: (1, 1.0 + 1.5 / 1024), 1024: (2, 4.0), 2048: (1, 3.0)}
    assert found.count[0, 0].nonzero().flatten().tolist() == [*expected]  # the infinite loss is in none
    for place, (number, value) in expected.items():
        assert int(found.count[0, 0, place]) == number
        assert float(found.total[0, 0, place]) == value
    assert found.count[1, 0].sum() == 1
    assert found.total[1, 0].sum() == 7.0


def test_every_loss_is_in_the_histogram_of_its_set():
    losses, labels = table()
    histogram = histogram_of((losses, labels))
    for label in (0, 1):
        for k in range(losses.shape[1]):
            members = losses[labels[:, k] == label, k].double()
            finite = members[members.isfinite()]
            ends = float(histogram.low[label, k]), float(histogram.high[label, k])
            assert ends == (float(finite.min()), float(finite.max()))
            width = 2.0 ** int(histogram.exponent[label, k])
            assert (ends[1] - ends[0]) / (BINS - 2) < width <= 2 * (ends[1] - ends[0]) / (BINS - 2)
            cells = np.floor(finite.numpy() / width).astype(int) - int(np.floor(ends[0] / width))
            np.testing.assert_array_equal(histogram.count[label, k], np.bincount(cells, minlength=BINS))
            sums = np.bincount(cells, weights=finite.numpy(), minlength=BINS)
            np.testing.assert_allclose(histogram.total[label, k], sums, rtol=1e-12)


def equal_histograms(one, other):
    for name in ("low", "high", "exponent", "origin", "count"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    torch.testing.assert_close(one.total, other.total, rtol=1e-12, atol=0)


@pytest.mark.parametrize("order", ["growing", "falling", "given"])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_losses_may_come_in_any_order_and_in_parts_of_any_size(rows, order):
    losses, labels = table(n=1500)
    losses[:, 0] += 1000  # far from 0: the bins begin elsewhere
    losses[5, 1] = 1e30
    losses[:, 2] *= 1e-7
    whole = histogram_of((losses, labels))
    by_size = losses.nan_to_num(posinf=0).amax(dim=1).argsort(descending=order == "falling")
    arranged = torch.arange(len(losses)) if order == "given" else by_size
    equal_histograms(histogram_of(*((losses[part], labels[part]) for part in arranged.split(rows))), whole)


@pytest.mark.parametrize("shards", [2, 4, 7])
def test_shards_add_up_to_the_whole(shards):
    losses, labels = table()
    whole = histogram_of((losses, labels))
    parts = [histogram_of((losses[rank::shards], labels[rank::shards])) for rank in range(shards)]
    pool = threading.Barrier(shards)
    given = [None] * shards

    def reduce(rank):
        def all_reduce(tensor, how):
            given[rank] = tensor.clone()
            pool.wait()
            stacked = torch.stack(list(given))
            pool.wait()
            tensor.copy_({"min": torch.amin, "max": torch.amax, "sum": torch.sum}[how](stacked, dim=0))

        parts[rank].reduce(all_reduce)

    threads = [threading.Thread(target=reduce, args=(rank,)) for rank in range(shards)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    mixtures = fit_mixtures(whole)
    for part in parts:
        equal_histograms(part, whole)
        for name, value in vars(fit_mixtures(part)).items():
            torch.testing.assert_close(value, getattr(mixtures, name), rtol=1e-9, atol=1e-12)


def test_a_shard_without_any_positive_leaves_the_range_to_the_others():
    losses, labels = table()
    few = histogram_of((losses[:3], torch.zeros_like(labels[:3])))
    assert (few.low[1] == INF).all()
    assert (few.high[1] == -INF).all()


@pytest.mark.parametrize("wrong", [float("nan"), -INF])
def test_what_is_no_loss_is_refused_and_nothing_taken_in(wrong):
    losses, labels = table(n=50)
    histogram = histogram_of((losses, labels))
    bad = losses.clone()
    bad[3, 2] = wrong
    with pytest.raises(ValueError, match="must not be NaN or -inf"):
        histogram.add(bad, labels)
    equal_histograms(histogram, histogram_of((losses, labels)))


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
