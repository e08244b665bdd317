"""What single trainers make of common options: samplers, the average's warning, large losses, one image."""

import pytest
from transformers import PrinterCallback

from hf_balancemix import BalanceMixTrainer, MultiLabelTrainer
from hf_balancemix.training import ema, objective
from hf_balancemix.training.co_teaching import CoTeachingTrainer
from hf_balancemix.training.t_estimator import TEstimatorTrainer
from tests import tiny

TRAIN = tiny.tiny_dataset(24)  # three steps of eight per epoch


def make(folder, cls=MultiLabelTrainer, model=None, train=TRAIN, **changes):
    args = tiny.arguments(folder, **{"learning_rate": 0.01, **changes})
    trainer = cls(model or tiny.tiny_vit(), args, train_dataset=train, processing_class=tiny.processor())
    trainer.remove_callback(PrinterCallback)
    return trainer


# ---- samplers ----


@pytest.mark.parametrize("cls", [CoTeachingTrainer, TEstimatorTrainer])
def test_where_no_pairs_are_made_it_must_be_said_whether_images_are_mixed(tmp_path, cls):
    """The default means nothing to these trainers, so it must not silently stand for one of the two."""
    for changes, found in (({}, "'minority'"), ({"second_sampler": "random"}, "'random'")):
        parts = (
            f"`second_sampler` batch or none with {cls.__name__}",
            f"found {found}",
            "'batch' to mix",
            "or 'none'",
        )
        tiny.refused(ValueError, parts, make(tmp_path, cls, **changes).train)
    for sampler, members in (("batch", 2), ("none", 1)):
        trainer = make(tmp_path, cls, second_sampler=sampler)
        index = next(iter(trainer.get_train_dataloader()))["index"]
        assert index.shape[1] == members * trainer.networks


def test_balancemix_without_pairs(tmp_path):
    parts = ("`second_sampler` minority, random or batch with BalanceMixTrainer", "found 'none'", "MultiLabelTrainer")
    tiny.refused(ValueError, parts, make(tmp_path, BalanceMixTrainer, second_sampler="none").train)


# ---- the average of the weights ----


@pytest.mark.parametrize(("decay", "steps"), [(0.7, 6), (0.4, None)])
def test_the_warning_counts_the_steps_since_the_average_began_anew(tmp_path, monkeypatch, decay, steps):
    """Four epochs, two of them before the estimate: six steps of twelve. 0.7**12 is little, 0.7**6 is not."""
    lines = []
    monkeypatch.setattr(ema.logger, "warning", lines.append)
    options = {"num_train_epochs": 4, "ema_decay": decay, "max_steps": 12}
    make(tmp_path, **options).train()
    assert lines == []
    train = tiny.tiny_dataset(27)  # three are held out
    options |= {"warmup_epochs": 2, "second_sampler": "none"}
    make(tmp_path, TEstimatorTrainer, train=train, **options).train()
    assert [f"{steps} optimiser steps" in line and "12%" in line for line in lines] == [True] * (steps is not None)


# ---- large losses ----


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_train_epochs": 4}, [0, 0.005, 0.01, 0.015]),
        ({"num_train_epochs": 1, "max_steps": 6}, [0, 0.01]),
        ({"num_train_epochs": 4, "large_loss_rate": 3.0}, [0, 0.03, 0.06, 0.09]),
    ],
)
def test_the_rate_follows_the_epochs_of_the_run(tmp_path, monkeypatch, changes, expected):
    rates, original = [], objective.large_loss

    def spy(logits, targets, rate, *args):
        rates.append(rate)
        return original(logits, targets, rate, *args)

    monkeypatch.setattr(objective, "large_loss", spy)
    make(tmp_path, loss="ll_r", second_sampler="none", **changes).train()
    assert rates == pytest.approx([rate for rate in expected for _ in range(3)])


@pytest.mark.parametrize(("epochs", "published"), [(50, 0.04), (20, 0.1), (40, 0.05), (10, 0.2)])  # per epoch
def test_unless_set_it_is_the_published_one(tmp_path, monkeypatch, epochs, published):
    seen = []
    monkeypatch.setattr(objective, "large_loss_rate", lambda epoch, percent: seen.append(percent) or 0.0)
    make(tmp_path, loss="ll_ct", second_sampler="none", num_train_epochs=epochs, train=TRAIN.select(range(8))).train()
    assert seen
    assert seen == pytest.approx([published] * len(seen))


# ---- one image ----


@pytest.mark.parametrize("cls", [MultiLabelTrainer, BalanceMixTrainer, CoTeachingTrainer])
@pytest.mark.parametrize("rows", [8, 9])
def test_a_batch_of_one_with_batch_norm(tmp_path, cls, rows):
    """On 2 × 2 maps a single image will do; where maps are down to one pixel PyTorch refuses it."""
    sampler = "minority" if cls is BalanceMixTrainer else "batch"
    options = {"second_sampler": sampler, "dataloader_drop_last": False, "num_train_epochs": 1}
    options["per_device_train_batch_size"] = 8 if rows == 9 else 1
    train = TRAIN.select(range(rows))
    for size in (16, 4):
        args = tiny.arguments(tmp_path, **options)
        trainer = cls(tiny.tiny_resnet(), args, train_dataset=train, processing_class=tiny.processor(size))
        trainer.remove_callback(PrinterCallback)
        if size == 16:
            trainer.train()
            continue
        parts = ("at least two images per batch", "found one", "per_device_train_batch_size", "dataloader_drop_last")
        tiny.refused(ValueError, parts, trainer.train)
    vit = cls(tiny.tiny_vit(), args, train_dataset=train, processing_class=tiny.processor())
    vit.train()  # has no batch norm
