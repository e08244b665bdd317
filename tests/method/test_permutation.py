"""The computed shuffle is a permutation, and as random as one that is drawn."""

from collections import Counter

import pytest
import torch
from scipy import stats

from hf_balancemix.method import Permutation


def permutation(n, seed=0):
    return Permutation(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [*range(1, 40), 255, 256, 257, 1000, 2**16, 2**16 + 1, 1_000_003])
def test_every_instance_has_one_place(n):
    found = permutation(n)[torch.arange(n)]
    assert found.dtype == torch.int64
    assert torch.equal(found.sort().values, torch.arange(n))


def test_places_are_looked_up_one_by_one():
    order = permutation(1000)
    whole = order[torch.arange(1000)]
    places = torch.tensor([[3, 999], [0, 3]])
    assert torch.equal(order[places], whole[places])
    assert order[torch.empty(0, dtype=torch.int64)].tolist() == []
    assert not torch.equal(permutation(1000, 1)[torch.arange(1000)], whole)


def test_all_permutations_are_as_probable():
    """Those of 5 instances over 24,000 keys: 120 of them, 200 times each."""
    counts = Counter(tuple(permutation(5, seed)[torch.arange(5)].tolist()) for seed in range(24_000))
    assert len(counts) == 120
    assert stats.chisquare([*counts.values()]).pvalue > 1e-4


def test_neighbours_are_torn_apart():
    """Where instances stand is not correlated with where they or their neighbours stood, nor with another key's."""
    n = 200_000
    places = torch.arange(n, dtype=torch.float64)
    first, second = (permutation(n, seed)[places.long()].double() for seed in (0, 1))
    pairs = [(first, places), (first[1:], first[:-1]), (first[1:] - first[:-1], places[1:]), (first, second)]
    for one, other in pairs:
        correlation = torch.corrcoef(torch.stack([one, other]))[0, 1]
        assert abs(float(correlation)) < 5 / n**0.5
    # The first half of an epoch holds a fair share of every part of the data set, as a random half would.
    counts = torch.histc(first[: n // 2], 100, 0, n)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_the_largest_sets():
    n = 3 * 10**12
    order = permutation(n)
    found = order[torch.arange(n - 10_000, n)]
    assert len(found.unique()) == 10_000
    assert 0 <= int(found.min()) < int(found.max()) < n
    assert stats.kstest(found.numpy() / n, "uniform").pvalue > 1e-4
