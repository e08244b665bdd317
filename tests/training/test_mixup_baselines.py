"""Focal, ASL, LL-R and LL-Ct with plain Mixup: every step against plain loops, however it is divided."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_balancemix import BalanceMixTrainer
from hf_balancemix.data.pairs import PairSampler
from hf_balancemix.training.methods import METHODS
from tests import tiny
from tests.distributed.launch import norms_of, run
from tests.training.baselines import BASELINES, LOSS_OPTIONS, ROWS, STEPS, TRAIN, asl, make, multi_hot, recorded

# Of the 40 entries of a batch: none in the first epoch, then 2, then 4.
CHANGED = (0, 2, 4)


# ---- the losses again, an entry at a time ----


def bce(x, y):
    return F.softplus(-x if y else x)


def focal(x, y):
    f = torch.sigmoid(x)
    weight, missing = (0.3, 1 - f) if y else (0.7, f)
    return weight * missing**1.5 * bce(x, y)


def plain_entries(method, epoch, logits, labels):
    """B × K losses of one member's labels, in lists."""
    pairs = [list(zip(*rows, strict=True)) for rows in zip(logits.double(), labels.tolist(), strict=True)]
    if method in ("focal", "asl"):
        return [[{"focal": focal, "asl": asl}[method](x, y) for x, y in row] for row in pairs]
    losses = [[bce(x, y) for x, y in row] for row in pairs]
    places = [(i, k) for i, row in enumerate(pairs) for k, (_, y) in enumerate(row) if not y]
    places.sort(key=lambda place: -float(losses[place[0]][place[1]].detach()))
    for i, k in places[: math.ceil(CHANGED[epoch] * len(pairs) / 8)]:
        losses[i][k] = bce(pairs[i][k][0], 1) if method == "ll_ct" else 0 * pairs[i][k][0]
    return losses


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (4, 2)])
@pytest.mark.parametrize("method", BASELINES)
def test_every_step_agrees_with_plain_loops(tmp_path, method, batch, accumulation):
    """Pixels, partners, λ, loss and gradient. The large losses are ranked per member and micro-batch."""
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    trainer = make(tmp_path, method, augmentation="none", num_train_epochs=3, **sizes)
    hot, images = multi_hot(TRAIN), torch.stack([row["pixel_values"] for row in tiny.plain_rows(ROWS)])
    steps = recorded(trainer)
    assert [step["epoch"] for step in steps] == [0] * STEPS + [1] * STEPS + [2] * STEPS
    for number, step in enumerate(steps):
        stream = list(PairSampler(ROWS, 42, lambda step=step: step["epoch"], "batch", batch_size=8))
        items = stream[number % STEPS * 8 :][:8]
        assert sorted(m[0] for m, _, _ in items) == sorted(m[1] for m, _, _ in items)
        total = 0.0
        for part, found in enumerate(step["batches"]):
            own = items[part * batch :][:batch]
            assert found["index"].tolist() == [list(members) for members, _, _ in own]
            shares = [float(np.random.default_rng((token, 9)).beta(4, 4)) for _, token, _ in own]
            pairs = zip(shares, (members for members, _, _ in own), strict=True)
            mixed = [share * images[i] + (1 - share) * images[j] for share, (i, j) in pairs]
            logits = step["model"](pixel_values=torch.stack(mixed)).logits
            first, second = (
                plain_entries(method, step["epoch"], logits, hot[[members[m] for members, _, _ in own]])
                for m in (0, 1)
            )
            loss = sum(
                share * one + (1 - share) * other
                for share, ones, others in zip(shares, first, second, strict=True)
                for one, other in zip(ones, others, strict=True)
            )
            loss = loss / batch
            assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
            total = total + loss / accumulation
        total.backward()
        for name, parameter in step["model"].named_parameters():
            torch.testing.assert_close(step["gradients"][name], parameter.grad, rtol=1e-3, atol=1e-5)


# ---- the stream ----


@pytest.mark.parametrize(("rows", "drop_last"), [(24, True), (26, True), (26, False)])
def test_each_row_is_once_a_first_and_once_a_second_member(tmp_path, rows, drop_last):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trainer = make(tmp_path, "asl", train=tiny.tiny_dataset(rows), dataloader_drop_last=drop_last, **sizes)
    epochs = {}
    for step in recorded(trainer):
        index = torch.cat([batch["index"] for batch in step["batches"]])
        assert index.shape[1] == 2
        assert sorted(index[:, 0].tolist()) == sorted(index[:, 1].tolist())
        epochs.setdefault(step["epoch"], []).append(index)
    for index in epochs.values():
        for member in torch.cat(index).T.tolist():
            assert len(set(member)) == len(member) == (24 if drop_last else rows)
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))


def test_shares_are_not_folded(tmp_path):
    shares = torch.cat(
        [batch["mix_lambda"] for step in recorded(make(tmp_path, "focal")) for batch in step["batches"]]
    )
    assert (shares < 0.5).any()
    assert (shares > 0.5).any()
    balancemix = recorded(make(tmp_path, "balancemix", cls=BalanceMixTrainer, second_sampler="batch", loss="asl"))
    assert min(float(batch["mix_lambda"].min()) for step in balancemix for batch in step["batches"]) >= 0.5


@pytest.mark.parametrize("method", BASELINES)
def test_without_mixing_the_partners_do_not_matter(tmp_path, method):
    """α = 0 makes every λ 1; then it is the loss without pairs, bit for bit."""
    weights = []
    for changes in ({"mix_alpha": 0.0}, {"second_sampler": "none"}, {"mix_alpha": 4.0}):
        trainer = make(tmp_path, method, augmentation="none", **changes)
        trainer.train()
        weights.append(tiny.weights_of(trainer.model))
    assert tiny.same_weights(weights[0], weights[1])
    assert not tiny.same_weights(weights[0], weights[2])


def test_samplers_of_balancemix_make_no_pairs_here(tmp_path):
    for second in ("none", "minority", "random"):
        for step in recorded(make(tmp_path, "focal", second_sampler=second, max_steps=1)):
            assert step["batches"][0]["index"].shape == (8, 1)


# ---- one step, divided ----


def norms(folder, method, batch, accumulation):
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 2}
    steps = recorded(make(folder, method, train=tiny.tiny_dataset(32), **sizes))
    return [float(torch.stack([g.norm() for g in step["gradients"].values()]).double().norm()) for step in steps]


@pytest.mark.parametrize("method", ["focal", "asl"])
def test_accumulation_changes_nothing(tmp_path, method):
    reference = norms(tmp_path, method, 16, 1)
    assert reference[0] > 0
    assert norms(tmp_path, method, 4, 4) == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize("method", ["ll_r", "ll_ct"])
def test_large_losses_are_those_of_their_micro_batch(tmp_path, method):
    """What is promised: in the first epoch nothing is changed; later another division changes other entries."""
    options = {"train": tiny.tiny_dataset(16), "num_train_epochs": 2, "learning_rate": 0.0}
    found = {}
    for batch, accumulation in ((16, 1), (4, 4)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        found[batch] = recorded(make(tmp_path, method, **options, **sizes))
    for step in (0, 1):
        loss = [sum(b["loss"] for b in found[n][step]["batches"]) / len(found[n][step]["batches"]) for n in (16, 4)]
        assert (loss[0] == pytest.approx(loss[1], rel=1e-5)) == (step == 0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["focal", "asl"])
def test_two_processes_take_the_same_step(tmp_path, method):
    """Partners come from the whole optimiser step, also from what the other process reads."""
    options = {"max_steps": 2, "learning_rate": 0.01, **LOSS_OPTIONS, **METHODS[method].options}
    job = {"output_dir": str(tmp_path / "two"), "rows": 32, "model": "vit", "method": method, "world_size": 2}
    results = run({**job, "options": {**options, "per_device_train_batch_size": 8}})
    found = norms_of(job)
    assert found == pytest.approx(norms(tmp_path / "one", method, 16, 1), rel=1e-5)
    (_, first, _), (_, other, _) = (result["seen"][0] for result in results)
    crossing = {pair[1] for pair in first} - {pair[0] for pair in first}
    assert crossing
    assert crossing <= {pair[0] for pair in other}
    assert sorted(pair[0] for pair in first + other) == sorted(pair[1] for pair in first + other)
