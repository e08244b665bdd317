"""Eq. 2–4 and the minority draws."""

import math

import pytest
import torch

from hf_balancemix.method import (
    MINORITY_SCORES,
    class_confidence,
    describe_sampling,
    draw,
    instance_score,
    partial_score,
    sampling,
    sampling_probability,
    sampling_weight,
    shares_of_sums,
)


def random_case(n=40, k=6, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, k, generator=g, dtype=dtype), (torch.rand(n, k, generator=g) < 0.3).long()


def probability_of(probs, labels, minority_score):
    return sampling_probability(instance_score(labels, *class_confidence(probs, labels), minority_score))


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), atol=atol, rtol=0)


@pytest.mark.parametrize("label_dtype", [torch.int64, torch.bool, torch.uint8, torch.float32])
def test_vector_04(vectors, label_dtype):
    given, expected = vectors["04_eq2_4_sampling"]["inputs"], vectors["04_eq2_4_sampling"]["expected"]
    probs = torch.tensor(given["probabilities"], dtype=torch.float64)
    labels = torch.tensor(given["given_labels"]).to(label_dtype)
    presence, absence = class_confidence(probs, labels)
    close(presence, expected["P"])
    close(absence, expected["A"])
    score = instance_score(labels, presence, absence)
    close(score, expected["score"])
    close(sampling_probability(score), expected["p_sampling"])
    score = instance_score(labels, presence, absence, "mean_positive")
    close(score, expected["mean_positive_score"])
    close(sampling_probability(score), expected["mean_positive_p_sampling"])


def test_class_confidence_is_the_plain_mean_and_float64():
    probs, labels = random_case(dtype=torch.float32)
    presence, absence = class_confidence(probs, labels)
    assert presence.dtype == absence.dtype == torch.float64
    for k in range(labels.shape[1]):
        close(presence[k], probs[labels[:, k] == 1, k].double().mean(), atol=1e-14)
        close(absence[k], (1 - probs[labels[:, k] == 0, k].double()).mean(), atol=1e-14)


@pytest.mark.parametrize(
    ("labels", "presence", "absence"),
    [
        ([[0, 1], [0, 1]], [0.0, 0.5], [0.7, 0.0]),  # a class without positives, one without negatives
        ([[1, 0]], [0.2, 0.0], [0.0, 0.6]),  # a single instance
    ],
)
def test_class_confidence_of_degenerate_classes(labels, presence, absence):
    probs = torch.tensor([[0.2, 0.4], [0.4, 0.6]], dtype=torch.float64)[: len(labels)]
    found = class_confidence(probs, torch.tensor(labels))
    close(found[0], presence)
    close(found[1], absence)
    for name in MINORITY_SCORES:
        assert probability_of(probs, torch.tensor(labels), name).isfinite().all()


@pytest.mark.parametrize("minority_score", MINORITY_SCORES)
def test_invariants_of_the_probability(minority_score):
    probs, labels = random_case()
    labels[7], labels[11] = labels[3], 0
    presence, absence = class_confidence(probs, labels)
    p = sampling_probability(instance_score(labels, presence, absence, minority_score))
    assert p.dtype == torch.float64
    assert (p > 0).all()
    close(p.sum(), 1.0, atol=1e-12)
    close(p[7], p[3], atol=1e-15)
    assert p.max() > 1.01 * p.min()
    scaled = sampling_probability(instance_score(labels, 0.3 * presence, 0.3 * absence, minority_score))
    close(scaled, p, atol=1e-14)
    constant = torch.full_like(presence, 0.6)
    uniform = sampling_probability(instance_score(labels, constant, constant, minority_score))
    close(uniform, torch.full_like(p, 1 / len(p)), atol=1e-15)
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(1))
    close(probability_of(probs[order], labels[order], minority_score), p[order], atol=1e-14)


def test_rarer_confidence_is_drawn_more_often_under_mean_positive():
    labels = torch.eye(3, dtype=torch.long)
    p = sampling_probability(instance_score(labels, torch.tensor([0.9, 0.3, 0.1]), torch.ones(3), "mean_positive"))
    close(p, torch.tensor([1 / 9, 1 / 3, 1]).double() / (1 / 9 + 1 / 3 + 1), atol=1e-7)


def test_mean_positive_without_any_positive_is_uniform():
    labels = torch.zeros(4, 3, dtype=torch.long)
    score = instance_score(labels, torch.zeros(3), torch.ones(3), "mean_positive")
    close(sampling_probability(score), [0.25] * 4)


def test_scores_do_not_depend_on_the_chunk_size(monkeypatch):
    _, labels = random_case()
    presence, absence = torch.rand(2, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = [instance_score(labels, presence, absence, name) for name in MINORITY_SCORES]
    monkeypatch.setattr(sampling, "_CHUNK_ENTRIES", 6 * 7)
    for name, expected in zip(MINORITY_SCORES, whole, strict=True):
        close(instance_score(labels, presence, absence, name), expected, atol=1e-14)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ([0.0, 0.0], [0.5, 0.5]),
        ([0.0, 1.0], [1 / (1 + sampling.SCORE_FLOOR), sampling.SCORE_FLOOR / (1 + sampling.SCORE_FLOOR)]),
        ([1e-310, 1e-310], [0.5, 0.5]),
        ([1e300, 2e300], [2 / 3, 1 / 3]),
        ([5.0], [1.0]),
    ],
)
def test_degenerate_scores(score, expected):
    close(sampling_probability(torch.tensor(score, dtype=torch.float64)), expected, atol=1e-15)


@pytest.mark.parametrize("score", [[1.0, float("nan")], [-1.0, 1.0], [float("inf"), 1.0], []])
def test_impossible_scores_are_refused(score):
    with pytest.raises(ValueError, match="score must hold"):
        sampling_probability(torch.tensor(score))


@pytest.mark.parametrize("confidently", ["absent", "present"])
def test_a_model_that_is_surely_wrong_leaves_no_negative_score(confidently):
    for seed in range(300):
        probs, labels = random_case(n=20, k=1 + seed % 11, seed=seed, dtype=torch.float32)
        labels[0] = 1
        if confidently == "absent":  # no confidence in any presence: Eq. 3 of row 0 is exactly 0
            probs[labels == 1] = 0
        else:  # none in any absence: A(k) is exactly 0
            probs = torch.where(labels == 1, probs * 1e-6, 1.0)
        presence, absence = class_confidence(probs, labels)
        score = instance_score(labels, presence, absence)
        assert torch.stack([presence.min(), absence.min(), score.min()]).min() >= 0
        close(score, torch.where(labels == 1, presence, absence).sum(dim=1))
        close(sampling_probability(score).sum(), 1.0)


def test_unknown_score_and_different_shapes_are_refused():
    with pytest.raises(ValueError, match="eq3, mean_positive; got 'sum'"):
        instance_score(torch.ones(1, 1), torch.ones(1), torch.ones(1), "sum")
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 1\)"):
        class_confidence(torch.ones(2, 3), torch.ones(2, 1))


def test_distance_from_uniform():
    uniform, skewed = torch.full((4,), 0.25), torch.tensor([0.5, 0.5, 0.0, 0.0])
    facts = ("sampling_max", "sampling_min", "effective_sample_share", "sampling_total_variation")
    assert describe_sampling([uniform], 4) == dict(zip(facts, (1, 1, 1, 0), strict=True))
    for parts in ([skewed], skewed.split(3)):
        assert describe_sampling(parts, 4) == pytest.approx(dict(zip(facts, (2, 0, 0.5, 0.5), strict=True)))


def test_shares_of_running_sums(monkeypatch):
    monkeypatch.setattr(sampling, "_CHUNK_ENTRIES", 3)
    p = torch.rand(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [*shares_of_sums(7 * p.cumsum(dim=0))]
    assert [len(part) for part in parts] == [3, 3, 3, 1]
    torch.testing.assert_close(torch.cat(parts), p / p.sum(), rtol=0, atol=1e-15)


def test_scores_of_parts_are_those_of_the_whole():
    """Rows without positives score as much as the largest, wherever that is (Figure 6 variant)."""
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(50, 4, generator=generator) < 0.2).to(torch.uint8)
    assert (labels.sum(dim=1) == 0).any()
    presence, absence = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    for name in MINORITY_SCORES:
        whole = instance_score(labels, presence, absence, name)
        parts = torch.cat([partial_score(part, presence, absence, name) for part in labels.split(7)])
        assert torch.equal(parts[~parts.isinf()], whole[~parts.isinf()])
        weight = sampling_weight(parts, float(whole.max()))
        torch.testing.assert_close(weight / weight.sum(), sampling_probability(whole))
    alone = partial_score(torch.zeros(3, 4), presence, absence, "mean_positive")
    assert alone.tolist() == [math.inf] * 3
    assert sampling_weight(alone, 0.0).tolist() == [1.0] * 3


def test_draw_follows_the_probability():
    p = torch.tensor([0.05, 0.0, 0.15, 0.3, 0.0, 0.5], dtype=torch.float64)
    count = 20_000
    index = draw(p, count, torch.Generator().manual_seed(3))
    assert index.dtype == torch.int64
    assert index.shape == (count,)
    observed = index.bincount(minlength=6).double()
    assert (observed[p == 0] == 0).all()
    chi_square = ((observed - count * p)[p > 0] ** 2 / (count * p[p > 0])).sum()
    assert chi_square < 16.3  # 99.9% point of chi-square with 3 degrees of freedom
    assert torch.equal(index, draw(p, count, torch.Generator().manual_seed(3)))
    assert not torch.equal(index, draw(p, count, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("sum_of_p", [0.7, 1 - 1e-12, 1.0, 3.0])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53, 1.0])
def test_draw_stays_on_possible_indices_at_the_ends(monkeypatch, uniform, sum_of_p):
    p = sum_of_p * torch.tensor([0.0, 0.25, 0.25, 0.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda n, **kw: torch.full((n,), uniform, dtype=torch.float64))
    index = draw(p, 3, torch.Generator())
    # Half of the mass lies before index 4; the ends must not fall on the zeros around it.
    assert index.tolist() == [{0.0: 1}.get(uniform, 4)] * 3


def test_draw_beyond_the_limit_of_multinomial():
    n = 2**24 + 2**22  # of which the last fifth, beyond 2^24, gets half of the mass
    p = torch.ones(n, dtype=torch.float64)
    p[2**24 :] = 4
    p[2**24 : 2**24 + 1000], p[-1000:] = 0, 0
    index = draw(p, 100_000, torch.Generator().manual_seed(0))
    assert (p[index] > 0).all()
    expected = torch.stack([part.sum() for part in p.split(2**20)]) / p.sum() * len(index)
    observed = (index >> 20).bincount(minlength=20).double()
    assert ((observed - expected) ** 2 / expected).sum() < 43.8  # 99.9% point of chi-square with 19 degrees of freedom
    far = 2**24 + 1000
    p.zero_()[far], p[-2] = 1, 3
    index = draw(p, 4000, torch.Generator().manual_seed(0))
    assert set(index.tolist()) == {far, n - 2}
    assert abs((index == far).double().mean() - 0.25) < 4 * (0.1875 / 4000) ** 0.5


def test_threads_and_chunks_change_no_draw(monkeypatch):
    score = torch.rand(200_003, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.01
    threads, results = torch.get_num_threads(), []
    try:
        for count, entries in [(1, 2**22), (2, 2**22), (3, 1000), (4, 77_777)]:
            torch.set_num_threads(count)
            monkeypatch.setattr(sampling, "_CHUNK_ENTRIES", entries)
            p = sampling_probability(score)
            results.append((p, draw(p, 200_003, torch.Generator().manual_seed(1))))
    finally:
        torch.set_num_threads(threads)
    for p, index in results[1:]:
        assert torch.equal(p, results[0][0])
        assert torch.equal(index, results[0][1])
    assert not torch.equal(results[0][1], results[0][1].sort().values)


def test_tiny_probabilities_are_drawn_as_often_as_they_should():
    # Beside large ones, and each less than float32 could add to their sum: they have half of the mass together.
    p = torch.cat([torch.full((10,), 0.05), torch.full((10**6,), 0.5e-6)]).double()
    index = draw(p, 100_000, torch.Generator().manual_seed(2))
    assert abs((index >= 10).double().mean() - 0.5) < 4 * (0.25 / 1e5) ** 0.5
    assert (index[index >= 10] - 10).double().mean() == pytest.approx(5e5, rel=0.01)


@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
def test_sparse_scores_are_the_dense_formula(density):
    g = torch.Generator().manual_seed(4)
    labels = (torch.rand(500, 13, generator=g) < density).to(torch.uint8)
    presence, absence = torch.rand(2, 13, generator=g, dtype=torch.float64)
    y = labels.double()
    close(instance_score(labels, presence, absence), (y * presence + (1 - y) * absence).sum(dim=1), atol=1e-12)
    own = (y * presence).sum(dim=1) / y.sum(dim=1)
    expected = own.nan_to_num(nan=float(own[~own.isnan()].max())) if density else torch.ones(500)
    close(instance_score(labels, presence, absence, "mean_positive"), expected.double(), atol=1e-12)


@pytest.mark.parametrize("p", [[0.0, 0.0], [-0.1, 1.1], [float("nan"), 1.0], [float("inf"), 1.0], [[0.5, 0.5]], []])
def test_draw_refuses_what_is_no_distribution(p):
    with pytest.raises(ValueError, match="finite sum above 0"):
        draw(torch.tensor(p), 1, torch.Generator())
