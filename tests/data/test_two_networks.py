"""The stream of items for two networks, and the batches made from it."""

import pytest
import torch

from hf_balancemix.data.pairs import ImageRows, PairDataset
from hf_balancemix.data.transforms import ImageTransform
from hf_balancemix.data.two_networks import TwoNetworkDataset, TwoNetworkSampler, epoch_orders
from tests import tiny

N, STEP = 30, 8
MASK = torch.stack([torch.arange(N) % 3 > 0, torch.arange(N) % 2 > 0])


def make(epoch=0, seed=7, trained=MASK, used=N, **changes):
    return TwoNetworkSampler(N, seed, lambda: epoch, lambda: trained, STEP, used, **changes)


def columns(sampler):
    return torch.tensor([members for members, _, _ in sampler]).T


def test_each_network_has_an_order_of_its_own():
    first, _, second, _ = columns(make())
    orders, _ = epoch_orders(N, 7, 0)
    assert torch.equal(torch.stack([first, second]), orders)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(N))
    assert not torch.equal(first, second)
    assert torch.equal(columns(make()), columns(make()))
    for other in (make(epoch=1), make(seed=8)):
        assert not torch.equal(columns(other)[0], first)
        assert not torch.equal(columns(other)[2], second)
    # What is selected changes the partners, not order and tokens.
    everything = make(trained=torch.ones(2, N, dtype=torch.bool))
    assert [item[1] for item in everything] == [item[1] for item in make()]
    assert torch.equal(columns(everything)[[0, 2]], columns(make())[[0, 2]])
    assert not torch.equal(columns(everything), columns(make()))


@pytest.mark.parametrize("used", [N, 24, 28])
def test_partners_are_trained_rows_of_the_same_step(used):
    rows = columns(make(used=used))
    moved = 0
    for network, mask in enumerate(MASK):
        row, partner = rows[2 * network], rows[2 * network + 1]
        assert torch.equal(partner[~mask[row]], row[~mask[row]])
        assert torch.equal(partner[used:], row[used:])
        for start in range(0, used, STEP):
            step = slice(start, min(start + STEP, used))
            chosen = mask[row[step]]
            assert sorted(row[step][chosen].tolist()) == sorted(partner[step][chosen].tolist())
            moved += int((row[step] != partner[step]).sum())
    assert moved > used / 2


def test_without_mixing_there_are_no_partners():
    first, second = columns(make(mixed=False))
    assert torch.equal(torch.stack([first, second]), epoch_orders(N, 7, 0)[0])


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    list(make())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_epoch_and_selection_are_read_when_the_epoch_starts():
    state = {"epoch": 0, "trained": MASK}
    sampler = TwoNetworkSampler(N, 7, lambda: state["epoch"], lambda: state["trained"], STEP, N)
    state.update(epoch=3, trained=MASK.flip(0))
    assert list(sampler) == list(make(epoch=3, trained=MASK.flip(0)))
    assert len(sampler) == N


def test_batches_have_a_mixing_coefficient_for_each_network():
    transform = ImageTransform(tiny.processor(), "affine")
    images = ImageRows(tiny.tiny_dataset(N), "image", transform)
    items = list(make())[:6]
    found = TwoNetworkDataset(images, transform, 4.0, folded=False).__getitems__(items)
    usual = PairDataset(images, transform, 4.0, folded=False).__getitems__(items)
    assert found["pixel_values"].shape == (6, 4, 1, 3, tiny.SIZE, tiny.SIZE)
    assert torch.equal(found["pixel_values"], usual["pixel_values"])
    assert found["index"].tolist() == [list(members) for members, _, _ in items]
    assert torch.equal(found["mix_lambda"][:, 0], usual["mix_lambda"])
    assert found["mix_lambda"].shape == (6, 2)
    assert found["mix_lambda"].unique().numel() == 12
    assert (found["mix_lambda"] < 0.5).any()
    # An item's coefficients follow from its own token.
    alone = TwoNetworkDataset(images, transform, 4.0, folded=False).__getitems__(items[3:4])
    assert torch.equal(alone["mix_lambda"], found["mix_lambda"][3:4])
