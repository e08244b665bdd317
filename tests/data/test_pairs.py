"""The stream of pairs and the batches made from it."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_balancemix.data import pairs
from hf_balancemix.data.pairs import EvalDataset, ImageRows, PairDataset, PairSampler, ViewDataset, as_batch
from hf_balancemix.data.transforms import ImageTransform
from hf_balancemix.method import draw_lambda
from tests import tiny

N = 30


@pytest.fixture(scope="module")
def images():
    return ImageRows(tiny.tiny_dataset(N), "image", ImageTransform(tiny.processor()))


def transform(name="affine"):
    return ImageTransform(tiny.processor(), name)


def test_one_epoch_is_a_permutation_and_depends_on_seed_and_epoch_only():
    clock = {"epoch": 0}
    sampler = PairSampler(N, 7, lambda: clock["epoch"], "random")
    first, again = list(sampler), list(sampler)
    assert first == again
    for half in (0, 1):
        assert sorted(members[half] for members, _, _ in first) == list(range(N))
    clock["epoch"] = 1
    assert list(sampler) != first
    assert list(PairSampler(N, 8, lambda: 0, "random")) != first
    assert len({token for _, token, _ in first}) == N


def test_the_stream_is_that_of_whole_tensors_however_it_is_cut(monkeypatch):
    """A checkpoint in mid-epoch knows how far its stream went: the stream must never change."""
    g = torch.Generator().manual_seed((7 << 20) + 2)
    first, uniform = torch.randperm(N, generator=g), torch.rand(N, generator=g, dtype=torch.float64)
    second, tokens = (uniform * N).long(), torch.randint(2**62, (N,), generator=g)
    for chunk in (1, 7, 2**16):
        monkeypatch.setattr(pairs, "CHUNK_ITEMS", chunk)
        found = list(PairSampler(N, 7, lambda: 2, lambda: None))
        assert [members[0] for members, _, _ in found] == first.tolist()
        assert [members[1] for members, _, _ in found] == second.tolist()
        assert [token for _, token, _ in found] == tokens.tolist()


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    list(PairSampler(N, 0, lambda: 0, lambda: None))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_minority_half_follows_its_probability():
    probability = torch.zeros(N, dtype=torch.float64)
    probability[3], probability[11] = 0.75, 0.25
    counts = np.zeros(N)
    for epoch in range(40):
        for members, _, _ in PairSampler(N, 0, lambda epoch=epoch: epoch, lambda: probability):
            counts[members[1]] += 1
    assert counts.sum() == counts[3] + counts[11] == 40 * N
    assert abs(counts[3] - 900) < 4 * np.sqrt(1200 * 0.75 * 0.25)


def test_probability_and_epoch_are_read_when_the_epoch_starts():
    """The loader is built before a checkpoint is loaded: a copy taken at construction would be stale."""
    state = {"p": None, "views": 1}
    sampler = PairSampler(N, 0, lambda: 0, lambda: state["p"], lambda: state["views"])
    state["p"], state["views"] = torch.zeros(N, dtype=torch.float64), 2
    state["p"][4] = 1
    assert {(members[1], views) for members, _, views in sampler} == {(4, 2)}


@pytest.mark.parametrize("batch_size", [1, 8, 15, 30, 64])
def test_partners_are_a_permutation_of_the_same_batch(batch_size):
    """Plain Mixup: each row once as first and once as second member, both within the same block of the stream."""
    for epoch in range(3):
        sampler = PairSampler(N, 0, lambda epoch=epoch: epoch, "batch", batch_size=batch_size)
        pairs = [members for members, _, _ in sampler]
        assert pairs == [members for members, _, _ in sampler]
        first, second = zip(*pairs, strict=True)
        assert sorted(first) == list(range(N))
        for start in range(0, N, batch_size):
            assert sorted(first[start : start + batch_size]) == sorted(second[start : start + batch_size])
        if batch_size > 8:
            assert first != second
        assert first == tuple(members[0] for members, _, _ in PairSampler(N, 0, lambda epoch=epoch: epoch))


def test_partners_are_drawn_anew_and_from_anywhere_in_the_batch():
    partners = {row: set() for row in range(N)}
    for epoch in range(400):
        for (first, second), _, _ in PairSampler(N, 0, lambda epoch=epoch: epoch, "batch", batch_size=10):
            partners[first].add(second)
    assert all(len(found) == N for found in partners.values())  # itself too, as in any permutation


def test_rows_to_draw_from_may_be_a_part():
    rows = torch.tensor([3, 7, 8, 20, 29])
    for second in (None, "random", "batch"):
        sampler = PairSampler(N, 0, lambda: 0, second, batch_size=2, rows=rows)
        assert len(sampler) == 5
        for half in zip(*[members for members, _, _ in sampler], strict=True):
            assert sorted(half) == rows.tolist()


@pytest.mark.parametrize("mix_alpha", [0.0, 4.0])
def test_unfolded_shares(images, mix_alpha):
    items = list(PairSampler(N, 0, lambda: 0, "batch", batch_size=8))
    folded, plain = (
        PairDataset(images, transform(), mix_alpha, folded=f).__getitems__(items)["mix_lambda"] for f in (True, False)
    )
    assert plain.dtype == torch.float32
    torch.testing.assert_close(torch.maximum(plain, 1 - plain), folded)
    assert bool((plain < 0.5).any()) == (mix_alpha > 0)


@pytest.mark.parametrize("augmentation", ["affine", "randaugment", "randaugment_asl", "none"])
def test_a_pair_does_not_depend_on_how_it_is_batched(images, augmentation):
    items = list(PairSampler(N, 0, lambda: 0, "random", lambda: 2))
    dataset = PairDataset(images, transform(augmentation), mix_alpha=4.0)
    whole = dataset.__getitems__(items)
    assert whole["pixel_values"].shape == (N, 2, 2, 3, tiny.SIZE, tiny.SIZE)
    for order in (range(N), reversed(range(N))):
        for i in order:
            single = dataset.__getitems__([items[i]])
            for name, value in single.items():
                assert torch.equal(value[0], whole[name][i]), name
    expected = draw_lambda(4.0, [(token, 9) for _, token, _ in items]).float()
    assert torch.equal(whole["mix_lambda"], expected)
    assert whole["index"].tolist() == [list(members) for members, _, _ in items]
    two_views = whole["pixel_values"].flatten(0, 1)
    assert torch.equal(two_views[:, 0], two_views[:, 1]) == (augmentation == "none")


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing_and_spare_the_global_generator(images, workers):
    dataset = PairDataset(images, transform("randaugment"), mix_alpha=4.0)
    sampler = PairSampler(N, 0, lambda: 0, "random")

    def batches(num_workers):
        loader = DataLoader(dataset, batch_size=7, sampler=sampler, num_workers=num_workers, collate_fn=as_batch)
        return [batch["pixel_values"] for batch in loader]

    first, second = batches(0), batches(workers)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    before = torch.random.get_rng_state()
    dataset.__getitems__(list(sampler)[:3])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_cached_images_are_the_same(images):
    cached = ImageRows(tiny.tiny_dataset(N), "image", ImageTransform(tiny.processor()), cache=True)
    rows = [5, 2, 5, 29, 0]
    assert torch.equal(cached[rows], images[rows])
    assert torch.equal(images[rows][0], images[rows][2])


def test_views_depend_on_seed_epoch_and_row_only(images):
    views = ViewDataset(images, transform(), clean=True, augmented=2, seed=0, epoch=3)
    whole = views.__getitems__(list(range(N)))["pixel_values"]
    assert whole.shape == (N, 3, 3, tiny.SIZE, tiny.SIZE)
    assert torch.equal(views.__getitems__([9, 4])["pixel_values"], whole[[9, 4]])
    assert torch.equal(whole[:, 0], images[range(N)])
    assert not torch.equal(whole[:, 1], whole[:, 2])
    other = ViewDataset(images, transform(), clean=False, augmented=2, seed=0, epoch=4)
    assert not torch.equal(other.__getitems__(list(range(N)))["pixel_values"], whole[:, 1:])


def test_evaluation_sees_what_the_processor_gives(images):
    dataset = tiny.tiny_dataset(N)
    batch = EvalDataset(images, torch.eye(N, 5)).__getitems__([3, 7])
    expected = tiny.processor()([dataset[3]["image"], dataset[7]["image"]], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(transform().finish(batch["pixel_values"]), expected, atol=1e-6, rtol=0)
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["labels"].dtype == torch.float32
    assert "labels" not in EvalDataset(images, None).__getitems__([3])
