"""One optimiser step is the same however the images are batched; the stock Trainer's is not."""

import pytest

from tests.distributed.launch import SETTINGS, all_close, norms_of, run


def norms_of_two_steps(tmp_path, batch, accumulation, world, method):
    options = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 2,
        "warmup_epochs": 0,
        "relabel_threshold": 0.5,
        "relabel_views": "step",
    }
    output = tmp_path / f"{method}-{batch}-{accumulation}-{world}"
    job = {"output_dir": str(output), "rows": 16, "model": "vit", "method": method, "world_size": world}
    run({**job, "options": options})
    return norms_of(job)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bce", "balancemix"])
def test_one_step_is_the_same_however_it_is_batched(tmp_path, method):
    """Mixing, augmentation, refinement, views at the step: all follow from the pair, not from the batch."""
    all_close({name: norms_of_two_steps(tmp_path, *sizes, method) for name, sizes in SETTINGS.items()}, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "accumulation", "world", "factor"), [(4, 4, 1, 4), (8, 1, 2, 2)])
def test_the_stock_trainer_is_wrong(tmp_path, batch, accumulation, world, factor):
    """The trap that `MultiLabelTrainer` removes (huggingface/transformers#47688); fails when upstream mends it."""
    job = {"rows": 16, "model": "vit", "method": "stock"}
    norms = []
    for name, (b, a, w) in {"right": (16, 1, 1), "wrong": (batch, accumulation, world)}.items():
        options = {"per_device_train_batch_size": b, "gradient_accumulation_steps": a}
        norms += [run({**job, "output_dir": str(tmp_path / name), "world_size": w, "options": options})[0]["norm"]]
    print(f"stock Trainer, {batch} x {accumulation} on {world}: {norms[1] / norms[0]:.4f} times the right norm")
    assert norms[1] == pytest.approx(factor * norms[0], rel=1e-3)


def stream(results, batch):
    """Pairs per epoch over all ranks, each (random row, minority row, λ)."""
    epochs = {}
    for result in results:
        for epoch, index, mix_lambda in result["seen"]:
            pairs = [(*rows, value) for rows, value in zip(index, mix_lambda, strict=True)]
            epochs.setdefault(epoch, []).extend(pairs)
    return epochs


@pytest.mark.slow
@pytest.mark.parametrize(("drop_last", "views"), [(True, "epoch"), (False, "epoch"), (True, "stream")])
def test_two_processes_share_one_stream_of_whole_pairs(tmp_path, drop_last, views):
    options = {"dataloader_drop_last": drop_last, "num_train_epochs": 3, "per_device_train_batch_size": 4}
    options |= {"relabel_views": views, "augment_on": "device" if views == "stream" else "auto"}
    job = {"rows": 44, "options": options}
    one = run({**job, "output_dir": str(tmp_path / "one")})
    two = run({**job, "output_dir": str(tmp_path / "two"), "world_size": 2})
    assert two[0]["state"] == two[1]["state"]
    assert two[0]["weights"] == two[1]["weights"]
    single, both = stream(one, 4), stream(two, 4)
    for epoch in range(3):
        random_half = [pair[0] for pair in both[epoch]]
        if drop_last:
            assert len(random_half) == 40  # ⌊44 / 8⌋ steps of 8
            assert len(set(random_half)) == 40
        else:
            assert len(random_half) == 48  # the tail is padded with the first pairs
            assert set(random_half) == set(range(44))
        if epoch == 0:  # later epochs draw from statistics of differently batched training
            assert set(both[epoch]) <= set(single[epoch])
            assert {pair[0]: pair for pair in both[epoch]}.items() <= {pair[0]: pair for pair in single[epoch]}.items()
