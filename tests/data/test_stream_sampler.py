"""Schedule "stream" draws what the other schedules draw, by chance and not by number, and holds none of it."""

import itertools

import pytest
import torch

from hf_balancemix.data import stream_sampler
from hf_balancemix.data.stream_sampler import StreamSampler

N = 30


def rows(half, items):
    return [members[half] for members, _, _ in items]


def test_one_epoch_is_a_permutation_and_depends_on_seed_and_epoch_only():
    clock = {"epoch": 0}
    sampler = StreamSampler(N, 7, lambda: clock["epoch"], "random", lambda: 2)
    first = list(sampler)
    assert first == list(sampler)
    assert [sorted(rows(half, first)) for half in (0, 1)] == [list(range(N))] * 2
    assert rows(0, first) != rows(1, first)
    assert len({token for _, token, _ in first}) == N
    assert {views for _, _, views in first} == {2}
    clock["epoch"] = 1
    assert list(sampler) != first
    assert list(StreamSampler(N, 8, lambda: 0, "random")) != first
    assert [members for members, _, _ in StreamSampler(N, 7, lambda: 0)] == [(row,) for row in rows(0, first)]


def test_the_stream_does_not_change_with_its_parts(monkeypatch):
    sums = torch.arange(1, N + 1, dtype=torch.float64)
    for second in ("random", "batch", lambda: None, lambda: sums):
        found = []
        for chunk in (1, 7, 2**16):
            monkeypatch.setattr(stream_sampler, "CHUNK_ITEMS", chunk)
            found.append(list(StreamSampler(N, 3, lambda: 0, second, batch_size=4)))
        assert found[0] == found[1] == found[2]
        assert len(found[0]) == N


def test_the_minority_half_follows_its_weights():
    weights = torch.zeros(N, dtype=torch.float64)
    weights[3], weights[11] = 6, 2
    sampler = [StreamSampler(N, 0, lambda epoch=epoch: epoch, lambda: weights.cumsum(0)) for epoch in range(40)]
    drawn = [row for epoch in sampler for row in rows(1, epoch)]
    assert set(drawn) == {3, 11}
    assert abs(drawn.count(3) - 900) < 4 * (1200 * 0.75 * 0.25) ** 0.5


def test_before_the_first_refresh_the_draws_are_uniform():
    drawn = [row for epoch in range(40) for row in rows(1, StreamSampler(N, 0, lambda e=epoch: e, lambda: None))]
    counts = torch.bincount(torch.tensor(drawn), minlength=N).double()
    assert float(((counts - 40) ** 2 / 40).sum()) < 75  # chi-squared with 29 degrees of freedom, p = 5e-6


@pytest.mark.parametrize("batch_size", [1, 8, 15, 30, 64])
def test_partners_are_a_permutation_of_the_same_batch(batch_size, monkeypatch):
    monkeypatch.setattr(stream_sampler, "CHUNK_ITEMS", 16)
    items = list(StreamSampler(N, 0, lambda: 0, "batch", batch_size=batch_size))
    for batch in (items[start : start + batch_size] for start in range(0, N, batch_size)):
        assert sorted(rows(0, batch)) == sorted(rows(1, batch))
    assert batch_size == 1 or rows(0, items) != rows(1, items)


def test_nothing_is_held_of_an_epoch():
    """The largest epoch there is begins at once."""
    items = iter(StreamSampler(2**40, 0, lambda: 0, lambda: None))
    first = list(itertools.islice(items, 1000))
    assert len(set(rows(0, first))) == 1000
