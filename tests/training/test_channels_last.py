"""Weights with the channels last: every network, every way to get one, and nothing changed but rounding."""

import pytest
import torch

from hf_balancemix import BalanceMixTrainer, CoTeachingTrainer, TEstimatorTrainer
from tests import tiny


def ordered(model):
    """Whether the weights of each k × k convolution, k > 1, lie with their channels last, and how many there are."""
    kernels = [p for p in model.parameters() if p.ndim == 4 and p.shape[2] > 1 and p.shape[1] > 1]
    return [p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in kernels]


def make(folder, cls=BalanceMixTrainer, channels_last=True, **inputs):
    changes = {"num_train_epochs": 4, "warmup_epochs": 1, "learning_rate": 0.01, "save_strategy": "epoch"}
    changes["second_sampler"] = "minority" if cls is BalanceMixTrainer else "batch"
    args = tiny.arguments(folder, channels_last=channels_last, **changes)
    inputs = {"model": tiny.tiny_resnet(), "eval_dataset": tiny.tiny_dataset(seed=1), **inputs}
    if "model_init" in inputs:
        del inputs["model"]
    return cls(args=args, train_dataset=tiny.tiny_dataset(), processing_class=tiny.processor(), **inputs)


@pytest.mark.parametrize("cls", [BalanceMixTrainer, CoTeachingTrainer, TEstimatorTrainer])
@pytest.mark.parametrize("inputs", [{}, {"model_init": lambda: tiny.tiny_resnet()}], ids=["model", "model_init"])
def test_all_convolutions_stay_ordered(tmp_path, cls, inputs):
    trainer = make(tmp_path, cls, **inputs)
    assert ordered(trainer.model)
    assert all(ordered(trainer.model))
    trainer.train()
    assert all(ordered(trainer.model))


def test_the_same_but_for_rounding_and_saved_as_usual(tmp_path):
    plain = make(tmp_path / "plain", channels_last=False)
    assert not any(ordered(plain.model))
    last = make(tmp_path / "last")
    losses = [trainer.train().training_loss for trainer in (plain, last)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    last.save_model(tmp_path / "saved")
    loaded = type(last.model).from_pretrained(tmp_path / "saved")
    assert tiny.same_weights(tiny.weights_of(last.model), tiny.weights_of(loaded))
    assert not any(ordered(loaded))


def test_a_resumed_run_is_the_same_run(tmp_path):
    whole = make(tmp_path / "whole")
    whole.train()
    checkpoints = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    resumed = make(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(checkpoints[0]))
    assert all(ordered(resumed.model))
    assert tiny.same_weights(tiny.weights_of(whole.model), tiny.weights_of(resumed.model))
