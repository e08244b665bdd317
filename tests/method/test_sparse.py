"""Sparse labels are the dense ones, row by row and added up."""

import pytest
import torch

from hf_balancemix.method import MINORITY_SCORES, SparseLabels, instance_score, sparse


def labels(n=300, k=17):
    generator = torch.Generator().manual_seed(0)
    table = (torch.rand(n, k, generator=generator) < torch.linspace(0, 0.4, k)).to(torch.uint8)
    table[[0, 5, n - 1]] = 0  # rows without a positive, at both ends
    return table


def sparse_of(table):
    rows, classes = table.nonzero(as_tuple=True)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    again = torch.cat([order, order[:10]])  # some of them twice
    return SparseLabels.of(rows[again], classes[again], *table.shape)


@pytest.mark.parametrize("together", [1, 7, 2**22])
def test_sparse_labels_hold_what_dense_ones_do(together, monkeypatch):
    monkeypatch.setattr(sparse, "_TOGETHER", together)
    table = labels()
    held = sparse_of(table)
    assert held.shape == tuple(table.shape)
    assert len(held.classes) == int(table.sum())
    assert torch.equal(held.dense(slice(None)), table)
    for start, stop in ((0, 300), (5, 12), (299, 300), (7, 7)):
        part = held.part(start, stop)
        assert torch.equal(part.dense(slice(None)), table[start:stop])
        assert torch.equal(part.counts, table[start:stop].sum(dim=0))
    some = torch.tensor([[3, 3], [0, 299], [7, 5]])
    assert torch.equal(held.dense(some), table[some])
    assert held.dense(torch.tensor([], dtype=torch.int64)).shape == (0, 17)
    assert torch.equal(held.counts, table.sum(dim=0))
    rows, classes = (torch.cat(part) for part in zip(*held.positives(), strict=True))
    assert torch.equal(torch.stack([rows, classes], dim=1), table.nonzero())


@pytest.mark.parametrize("score", MINORITY_SCORES)
def test_scores_are_those_of_the_dense_labels(score):
    table = labels()
    presence, absence = torch.rand(2, 17, generator=torch.Generator().manual_seed(2)).double()
    found = instance_score(sparse_of(table), presence, absence, score)
    torch.testing.assert_close(found, instance_score(table, presence, absence, score), rtol=0, atol=1e-12)


def test_no_positive_at_all():
    nothing = torch.zeros(4, 3, dtype=torch.uint8)
    held = sparse_of(nothing)
    assert torch.equal(held.dense(slice(None)), nothing)
    assert torch.equal(instance_score(held, torch.zeros(3), torch.ones(3)), torch.full((4,), 3.0).double())
