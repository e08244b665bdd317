"""Eq. 6–8: all mixtures at once, against closed forms, brute force and scikit-learn."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from hf_balancemix.method import gaussian_posterior, histogram, label_posteriors, mixture_fit

INF = float("inf")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def column(values):
    return tensor(values)[:, None]


def random_table(n=300, num_labels=25, seed=0):
    """Losses of many shapes: two modes of any balance and distance, skewed tails, uniform, heavy ties."""
    rng = np.random.default_rng(seed)
    losses, labels = np.empty((n, num_labels)), np.zeros((n, num_labels), dtype=np.int64)
    for k in range(num_labels):
        labels[rng.permutation(n)[: rng.integers(6, n - 6)], k] = 1
        for label in (0, 1):
            rows = np.flatnonzero(labels[:, k] == label)
            far = rng.random(len(rows)) < rng.uniform(0.02, 0.6)
            body = rng.exponential(rng.uniform(0.05, 1), len(rows)) + far * rng.normal(
                rng.uniform(1, 6), 0.3, len(rows)
            )
            shape = (body, rng.lognormal(0, 1, len(rows)), rng.random(len(rows)), np.round(body, 1))[(k + label) % 4]
            losses[rows, k] = np.abs(shape)
    return torch.from_numpy(losses), torch.from_numpy(labels)


def assert_equal_fits(one, other, atol=1e-12):
    for name in ("posterior", "means", "variances", "weights", "low", "high"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=atol, rtol=0)
    for name in ("n_steps", "fitted", "non_monotone"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("name", ["set_a", "set_b"])
def test_vector_09(vectors, name):
    vector = vectors["09_gmm_posterior_closed_form"]
    given = {key: tensor(value) for key, value in vector["inputs"][name].items()}
    found = gaussian_posterior(tensor(vector["inputs"]["losses"]), **given)
    torch.testing.assert_close(found, tensor(vector["expected"][f"{name}_posterior"]), atol=1e-9, rtol=0)
    flipped = {key: value.flip(0) for key, value in given.items()}
    assert torch.equal(gaussian_posterior(tensor(vector["inputs"]["losses"]), **flipped), found)


def test_posterior_far_from_both_means_and_at_equal_means():
    far = gaussian_posterior(tensor([-1e6, 1e6]), tensor([0, 1]), tensor([0.01, 0.01]), tensor([0.5, 0.5]))
    assert far.tolist() == [1.0, 0.0]
    equal = gaussian_posterior(tensor(0.4), tensor([0.4, 0.4]), tensor([0.01, 0.01]), tensor([0.3, 0.7]))
    assert float(equal) == pytest.approx(0.3, abs=1e-12)  # the lower-index component


@pytest.mark.parametrize("label", [0, 1])
def test_vector_10(vectors, label):
    losses = column(vectors["10_gmm_fit"]["inputs"]["losses"])
    expected = vectors["10_gmm_fit"]["expected"]
    fit = label_posteriors(losses, torch.full_like(losses, label))
    for actual, name in (
        (fit.means[label, 0], "means"),
        (fit.variances[label, 0], "variances"),
        (fit.weights[label, 0], "weights"),
        (fit.posterior[:, 0], "posterior"),
        ((losses[:, 0] - fit.low[label]) / (fit.high - fit.low)[label], "normalised"),
    ):
        torch.testing.assert_close(actual, tensor(expected[name]), atol=1e-6, rtol=0)
    assert (fit.posterior[:, 0] > 0.5).int().tolist() == expected["clean_mask"]
    assert fit.n_steps[:, 0].tolist() == [expected["n_iter"] if value == label else 0 for value in (0, 1)]
    assert fit.fitted[:, 0].tolist() == [value == label for value in (0, 1)]


def scikit_learn_fit(value, covariance_type="spherical"):
    """The reference on min–max normalised losses, and its posterior of the smaller mean."""
    reference = GaussianMixture(
        2,
        covariance_type=covariance_type,
        tol=1e-2,
        reg_covar=5e-4,
        max_iter=10,
        weights_init=[0.5, 0.5],
        means_init=[[0.0], [1.0]],
        precisions_init={"spherical": np.full(2, 25.0), "full": np.full((2, 1, 1), 25.0)}[covariance_type],
    )
    value = ((value - value.min()) / (value.max() - value.min())).numpy()[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        reference.fit(value)
    return reference, reference.predict_proba(value)[:, reference.means_[:, 0].argmin()]


@pytest.mark.parametrize("covariance_type", ["spherical", "full"])
def test_fifty_sets_agree_with_scikit_learn(covariance_type):
    losses, labels = random_table()
    fit = label_posteriors(losses, labels)
    assert fit.fitted.all()  # 50 sets, none of them taken as clean
    for label in (0, 1):
        for k in range(losses.shape[1]):
            rows = labels[:, k] == label
            reference, expected = scikit_learn_fit(losses[rows, k], covariance_type)
            found = fit.posterior[rows, k].numpy()
            np.testing.assert_allclose(found, expected, atol=1e-3)
            decided = np.abs(expected - 0.5) > 1e-3
            assert ((found > 0.5) == (expected > 0.5))[decided].all()
            assert int(fit.n_steps[label, k]) == reference.n_iter_
            np.testing.assert_allclose(fit.means[label, k], np.sort(reference.means_[:, 0]), atol=1e-6)


def test_components_whose_means_cross_during_the_fit():
    losses = column([0.0, 0.209, 0.464, 0.467, 0.468, 0.469, 0.474, 0.476, 0.477, 0.477, 0.478, 1.0])
    reference, expected = scikit_learn_fit(losses[:, 0])
    assert reference.means_[1, 0] < reference.means_[0, 0]  # the one that started at 1 ended below
    fit = label_posteriors(losses, torch.ones_like(losses))
    np.testing.assert_allclose(fit.means[1, 0], reference.means_[::-1, 0], atol=1e-9)
    np.testing.assert_allclose(fit.weights[1, 0], reference.weights_[::-1], atol=1e-9)
    np.testing.assert_allclose(fit.variances[1, 0], reference.covariances_[::-1], atol=1e-9)
    np.testing.assert_allclose(fit.posterior[:, 0], expected, atol=1e-9)


def test_each_set_stops_by_itself_and_steps_are_bounded():
    losses, labels = random_table()
    fit = label_posteriors(losses, labels)
    assert fit.n_steps.unique().numel() > 3
    assert fit.n_steps.max() == 10
    assert label_posteriors(losses, labels, max_steps=3).n_steps.max() == 3
    assert (label_posteriors(losses, labels, tolerance=1e9).n_steps == 2).all()  # the first change is infinite
    loose, tight = (label_posteriors(losses, labels, tolerance=tolerance).n_steps for tolerance in (0.1, 0.0))
    assert (loose <= fit.n_steps).all()
    assert (tight == 10).all()


def test_covariance_floor_is_added():
    losses = column([0.0] * 5 + [1.0] * 5)
    fit = label_posteriors(losses, torch.zeros_like(losses), covariance_floor=0.002)
    torch.testing.assert_close(fit.variances[0, 0], tensor([0.002, 0.002]), atol=1e-6, rtol=0)


def test_classes_and_rows_may_come_in_any_order_and_chunk(monkeypatch):
    losses, labels = random_table()
    whole = label_posteriors(losses, labels)
    rows = torch.randperm(len(losses), generator=torch.Generator().manual_seed(1))
    moved = label_posteriors(losses[rows], labels[rows])
    assert torch.equal(moved.means, whole.means)  # sums are of integers: no order of summation
    torch.testing.assert_close(moved.posterior, whole.posterior[rows], atol=1e-12, rtol=0)
    classes = torch.randperm(losses.shape[1], generator=torch.Generator().manual_seed(2))
    moved = label_posteriors(losses[:, classes], labels[:, classes])
    torch.testing.assert_close(moved.posterior, whole.posterior[:, classes], atol=1e-9, rtol=0)
    torch.testing.assert_close(moved.means, whole.means[:, classes], atol=1e-9, rtol=0)
    for entries, sets in ((1, 1), (100, 3), (2**20, 50)):
        monkeypatch.setattr(histogram, "CHUNK_ENTRIES", entries)
        monkeypatch.setattr(mixture_fit, "SETS_TOGETHER", sets)
        assert_equal_fits(label_posteriors(losses, labels), whole, atol=1e-9)


@pytest.mark.parametrize("label_dtype", [torch.bool, torch.uint8, torch.float32])
def test_dtypes_of_the_inputs(label_dtype):
    losses, labels = random_table(num_labels=4)
    exact = label_posteriors(losses, labels.to(label_dtype))
    assert_equal_fits(exact, label_posteriors(losses, labels), atol=0)
    assert exact.posterior.dtype == exact.means.dtype == exact.low.dtype == torch.float64
    assert exact.means.shape == (2, 4, 2)
    fit = label_posteriors(losses.float(), labels.to(label_dtype))
    assert fit.posterior.dtype == torch.float32
    assert fit.means.dtype == fit.low.dtype == torch.float64
    torch.testing.assert_close(fit.posterior.double(), exact.posterior, atol=1e-5, rtol=0)
    torch.testing.assert_close(fit.means, exact.means, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_with_in_float32(dtype):
    losses, labels = random_table(num_labels=8)
    losses[0, 0], losses = INF, losses.to(dtype)
    assert_equal_fits(label_posteriors(losses, labels), label_posteriors(losses.float(), labels), atol=0)


def wide_small_mode(n=400):
    """Two classes whose small-loss mode is wide and re-captures the largest losses, one where it is narrow."""
    rng = np.random.default_rng(0)
    wide = np.concatenate([rng.uniform(0, 0.6, n - 105), rng.normal(0.7, 0.01, 100), [0.9, 0.95, 0.97, 0.99, 1.0]])
    narrow = np.concatenate([rng.normal(0.1, 0.01, n // 2), rng.normal(0.7, 0.1, n // 2)])
    return torch.from_numpy(np.stack([wide, narrow, wide * 3], axis=1))


# A set whose literal posterior is lowest at the smallest loss, below the small mean, where no running minimum applies.
LOWEST_FIRST = column([0.0, 0.38, 0.424, 0.44, *[0.577] * 11, 0.601, 0.705, 0.713, 0.976, 1.0])


def assert_running_minimum(losses, labels, label, k):
    """Compare with the running minimum over a fine grid; return whether the literal posterior rises."""
    literal, monotone = (label_posteriors(losses, labels, monotone=value) for value in (False, True))
    assert torch.equal(literal.non_monotone, monotone.non_monotone)
    assert torch.equal(literal.means, monotone.means)
    small_mean = float(literal.means[label, k, 0])
    grid = torch.linspace(small_mean, 1, 50_001, dtype=torch.float64)
    parameters = (table[label, k] for table in (literal.means, literal.variances, literal.weights))
    literal_grid = gaussian_posterior(grid, *parameters)
    running = literal_grid.cummin(0).values
    rows = labels[:, k] == label
    value = (losses[rows, k] - literal.low[label, k]) / (literal.high - literal.low)[label, k]
    expected = torch.where(value < small_mean, 1.0, tensor(np.interp(value, grid, running)))
    torch.testing.assert_close(monotone.posterior[rows, k], expected, atol=1e-6, rtol=0)
    assert (monotone.posterior[rows, k][value.argsort()].diff() <= 1e-12).all()
    rises = bool(literal_grid[-1] > running[-1] + 1e-6)
    assert bool(literal.non_monotone[label, k]) == rises
    return rises


def test_monotone_is_the_running_minimum_above_the_small_mean():
    losses = wide_small_mode()
    labels = torch.zeros(losses.shape)
    labels[::2, 2] = 1
    rises = [assert_running_minimum(losses, labels, *where) for where in ((0, 0), (0, 1), (0, 2), (1, 2))]
    assert rises == [True, False, True, True]
    fit = label_posteriors(LOWEST_FIRST, torch.zeros_like(LOWEST_FIRST))
    assert fit.fitted[0, 0]
    assert fit.posterior[0, 0] < fit.posterior[4:, 0].min()
    assert_running_minimum(LOWEST_FIRST, torch.zeros_like(LOWEST_FIRST), 0, 0)
    losses, labels = random_table(num_labels=5)
    for label in (0, 1):
        for k in range(5):
            assert_running_minimum(losses, labels, label, k)


def test_collapsed_modes_count_as_monotone():
    losses = column([0.0, 0.358, 0.492, 0.496, 0.507, 0.515, 0.519, 0.519, 0.532, 0.534, 0.688, 1.0])
    _, literal = scikit_learn_fit(losses[:, 0])
    assert literal[-1] > literal[4:8].min() + 0.1
    fit = label_posteriors(losses, torch.zeros_like(losses))
    assert fit.n_steps[0, 0] > 0
    assert not fit.fitted.any()
    assert not fit.non_monotone.any()
    assert (fit.posterior == 1).all()


def two_peaks(count=5):
    """Losses 0 and 1 alone: means 0 and 1, both variances the covariance floor v, so D is √2 / √(2v) = 1 / √v."""
    losses = column([0.0] * count + [1.0] * count)
    return losses, torch.zeros_like(losses)


@pytest.mark.parametrize("floor", [5e-4, 0.01])
def test_separation_is_ashmans_d(floor):
    losses, labels = two_peaks()
    for factor, fitted in ((0.999, True), (1.001, False)):
        fit = label_posteriors(losses, labels, covariance_floor=floor, separation=factor / floor**0.5)
        assert bool(fit.fitted[0, 0]) is fitted
        assert fit.posterior[:, 0].round().tolist() == ([1] * 5 + [0] * 5 if fitted else [1] * 10)


def test_a_wide_mode_counts_in_full():
    """D = √2·|μ₁ − μ₂| / √(σ₁² + σ₂²): the sum of variances, not their mean or the larger one."""
    losses = column([0.0, 0.04, 0.08, 0.0, 0.04, 0.08, 0.6, 0.8, 1.0, 0.6, 0.8, 1.0])
    means, variances = (0.04, 0.8), (0.0016 * 2 / 3 + 5e-4, 0.04 * 2 / 3 + 5e-4)
    d = math.sqrt(2) * (means[1] - means[0]) / math.sqrt(sum(variances))
    for factor, fitted in ((0.99, True), (1.01, False)):
        fit = label_posteriors(losses, torch.ones_like(losses), separation=factor * d)
        torch.testing.assert_close(fit.means[1, 0], tensor(means), atol=1e-4, rtol=0)
        assert bool(fit.fitted[1, 0]) is fitted


def test_separation_leaves_separated_sets_as_they_are():
    losses, labels = random_table()
    plain = label_posteriors(losses, labels)
    assert_equal_fits(label_posteriors(losses, labels, separation=0.0), plain)
    distances = torch.empty(2, 25)
    for label in (0, 1):
        for k in range(25):
            reference, _ = scikit_learn_fit(losses[labels[:, k] == label, k])
            distances[label, k] = math.sqrt(2 / reference.covariances_.sum()) * abs(np.diff(reference.means_[:, 0])[0])
    for separation in (2.0, 2.5, 4.0):
        fit = label_posteriors(losses, labels, separation=separation)
        separated = distances >= separation
        assert 0 < int(separated.sum()) < 50
        assert torch.equal(fit.fitted, separated)
        inside = separated[labels, torch.arange(25)]
        assert torch.equal(fit.posterior[inside], plain.posterior[inside])
        assert (fit.posterior[~inside] == 1).all()
        assert torch.equal(fit.means, plain.means)
        assert not fit.non_monotone[~separated].any()


def test_separation_and_the_other_rules_hold_together():
    losses, labels = random_table(num_labels=5)
    losses[0], labels[0] = INF, 1
    fit = label_posteriors(losses, labels, separation=1e6)
    assert not fit.fitted.any()
    assert (fit.posterior[0] == 0).all()  # an infinite loss is never clean
    assert (fit.posterior[1:] == 1).all()
    trusting = label_posteriors(losses, labels, separation=2.5, trust_positives=True)
    assert (trusting.posterior[labels == 1] == 1).all()
    monotone = label_posteriors(losses, labels, separation=2.5, monotone=True)
    assert torch.equal(monotone.fitted, label_posteriors(losses, labels, separation=2.5).fitted)


def test_trusted_positives_are_clean_and_negatives_are_not_touched():
    losses, labels = random_table(num_labels=5)
    losses[0], labels[0] = INF, 1
    plain, trusting = (label_posteriors(losses, labels, trust_positives=value) for value in (False, True))
    assert (plain.posterior[labels == 1] < 0.5).any()
    assert (plain.posterior[0] == 0).all()
    assert (trusting.posterior[labels == 1] == 1).all()
    torch.testing.assert_close(trusting.posterior[labels == 0], plain.posterior[labels == 0], atol=1e-12, rtol=0)
    assert trusting.fitted.tolist() == [[True] * 5, [False] * 5]
    assert (trusting.n_steps[1] == 0).all()


@pytest.mark.parametrize(
    ("losses", "labels", "fitted"),
    [
        ([0.1, 0.2, 2.0, 2.1, 0.1], [0, 0, 0, 0, 0], [True, False]),  # no positive
        ([0.1, 0.2, 2.0, 2.1, 9.0], [0, 0, 0, 0, 1], [True, False]),  # one positive
        ([0.1, 0.2, 2.0, 2.1], [1, 1, 1, 1], [False, True]),  # positive everywhere
        ([0.1, 0.2, 2.0], [0, 0, 0], [False, False]),  # one short of min_fit
        ([0.3] * 9, [0] * 9, [False, False]),  # all losses equal
        ([0.3] * 8 + [0.3 + 5e-7], [0] * 9, [False, False]),  # spread below MIN_RANGE
        ([0.3] * 8 + [0.3 + 5e-6], [0] * 9, [True, False]),
        ([0.0] + [0.5] * 1000 + [1.0], [0] * 1002, [False, False]),  # both modes on one point
        ([7.0], [1], [False, False]),  # one instance
        ([7.0, INF], [1, 1], [False, False]),
        ([0.1, 0.2, 2.0, 2.1, INF, INF], [0, 0, 0, 0, 1, 1], [True, False]),  # all positives infinite
        ([INF] * 5, [0] * 5, [False, False]),
    ],
)
def test_degenerate_sets_are_clean_as_a_whole(losses, labels, fitted):
    losses, labels = column(losses), torch.tensor(labels)[:, None]
    for monotone in (False, True):
        fit = label_posteriors(losses, labels, monotone=monotone)
        assert fit.fitted[:, 0].tolist() == fitted
        for part in (fit.posterior, fit.means, fit.variances, fit.weights, fit.low, fit.high):
            assert part.isfinite().all()
        whole = ~fit.fitted[labels[:, 0], 0]
        assert torch.equal(fit.posterior[whole, 0], losses[whole, 0].isfinite().double())
        assert not fit.non_monotone[~fit.fitted].any()
        if (~whole).any():
            assert fit.posterior[~whole, 0].max() > 0.9
            assert fit.posterior[~whole, 0].min() < 0.1


def test_min_fit_counts_finite_losses():
    losses, labels = column([0.1, 0.2, 2.0, INF]), torch.zeros(4, 1)
    assert not label_posteriors(losses, labels).fitted.any()
    assert label_posteriors(losses, labels, min_fit=3).fitted[0, 0]


def test_infinite_losses_take_no_part_in_the_fit():
    losses, labels = random_table(num_labels=6)
    extra = torch.full((2, 6), INF, dtype=torch.float64)
    fit = label_posteriors(torch.cat([losses, extra]), torch.cat([labels, tensor([[0] * 6, [1] * 6])]))
    without = label_posteriors(losses, labels)
    assert (fit.posterior[-2:] == 0).all()
    torch.testing.assert_close(fit.posterior[:-2], without.posterior, atol=1e-9, rtol=0)
    assert torch.equal(fit.high, without.high)


def test_sets_that_are_not_fitted_do_not_disturb_the_others():
    losses, labels = random_table(num_labels=3)
    labels[:3], labels[3:] = 1, 0
    expected = label_posteriors(losses, labels)
    losses[:3] = 1e200 * tensor([[1.0], [2.0], [3.0]])  # their squares are infinite
    fit = label_posteriors(losses, labels)
    assert torch.equal(fit.posterior, expected.posterior)
    assert (fit.posterior[:3] == 1).all()
    assert (expected.posterior[3:] < 0.5).any()


@pytest.mark.parametrize(
    ("losses", "labels", "message"),
    [
        ([[0.1, float("nan")]], [[0, 1]], "NaN"),
        ([[0.1, -INF]], [[0, 1]], "NaN or -inf"),
        ([[0.1, 0.2]], [[0, 2]], "0 or 1"),
        ([[0.1, 0.2]], [[0, 0.5]], "0 or 1"),
        ([[0.1, 0.2]], [[0]], r"\(1, 2\) and \(1, 1\)"),
        ([0.1, 0.2], [0, 1], "non-empty shape"),
        ([[]], [[]], "non-empty shape"),
    ],
)
def test_wrong_inputs_are_refused(losses, labels, message):
    with pytest.raises(ValueError, match=message):
        label_posteriors(torch.tensor(losses), torch.tensor(labels))


def test_disagreement_is_the_mean_loss_of_the_large_component():
    """The same sets at another scale: normalised they are equal, in nats they are not."""
    torch.manual_seed(0)
    small, large = 0.05 + 0.01 * torch.randn(80).abs(), 0.9 + 0.02 * torch.randn(20)
    base = torch.cat([small, large])
    losses = torch.stack([base, base / 2], dim=1)  # large means about 0.9 and 0.45
    labels = torch.zeros(100, 2)
    plain, tested = label_posteriors(losses, labels), label_posteriors(losses, labels, disagreement=math.log(2))
    assert plain.fitted[0].tolist() == [True, True]
    assert tested.fitted[0].tolist() == [True, False]
    assert torch.equal(tested.posterior[:, 0], plain.posterior[:, 0])
    assert bool((tested.posterior[:, 1] == 1).all())
    mean = float(large.double().mean())
    for factor, fitted in ((0.99, True), (1.01, False)):
        found = label_posteriors(losses[:, :1], labels[:, :1], disagreement=factor * mean)
        assert bool(found.fitted[0, 0]) is fitted
