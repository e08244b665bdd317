"""Mixed precision: losses and statistics in float32 whatever the layers compute in, and fp16 with its scaler."""

import math

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from hf_balancemix.training import statistics
from hf_balancemix.training.methods import METHODS
from hf_balancemix.training.objective import entry_losses
from tests import tiny

CHECKED = ("bce", "focal", "asl", "ll_r", "ll_ct", "balancemix")
TRAIN, EVAL, STEPS = tiny.tiny_dataset(24), tiny.tiny_dataset(13, seed=9), 3


def make(folder, method, callbacks=(), **changes):
    options = {"relabel_threshold": 0.55, "large_loss_rate": 5.0, "learning_rate": 0.01, **METHODS[method].options}
    trainer = METHODS[method].trainer(
        tiny.tiny_vit(),
        tiny.arguments(folder, **{**options, **changes}),
        train_dataset=TRAIN,
        eval_dataset=EVAL,
        processing_class=tiny.processor(),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def losses_of(trainer):
    """The loss of every training step, and the precision of the layers behind them."""
    losses, layers, step = [], set(), trainer.training_step
    trainer.model.classifier.register_forward_hook(lambda module, inputs, output: layers.add(output.dtype))

    def recorded(*args):
        loss = step(*args)
        losses.append(loss)
        return loss

    trainer.training_step = recorded
    return losses, layers


@pytest.mark.parametrize("method", CHECKED)
def test_bf16(tmp_path, method, monkeypatch):
    weights, passes = {}, []
    sums = statistics.confidence_sums
    monkeypatch.setattr(
        statistics, "confidence_sums", lambda probs, labels: passes.append(probs.dtype) or sums(probs, labels)
    )
    for precision in ("bf16", "float32"):
        trainer = make(tmp_path, method, bf16=precision == "bf16")
        start, (losses, layers) = tiny.weights_of(trainer.model), losses_of(trainer)
        trainer.train()
        assert layers == {torch.bfloat16 if precision == "bf16" else torch.float32}  # the statistics' pass too
        assert len(losses) == 2 * STEPS
        assert all(loss.dtype == torch.float32 and math.isfinite(loss) for loss in losses)
        weights[precision] = tiny.weights_of(trainer.model)
        assert all(value.dtype == torch.float32 for value in weights[precision].values())
        assert not [
            name
            for name, value in start.items()
            if name.endswith("weight") and torch.equal(value, weights[precision][name])
        ]
        assert math.isfinite(trainer.evaluate()["eval_map"])
    assert set(passes) == ({torch.float32} if method == "balancemix" else set())
    # bf16 has eight bits: near the float32 run, and not that run.
    moved = [(weights["float32"][name] - start[name]).norm() for name in start]
    apart = [(weights["float32"][name] - weights["bf16"][name]).norm() for name in start]
    assert 0 < sum(apart) < 0.5 * sum(moved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", CHECKED[:-1])
def test_losses_under_autocast_are_those_of_float32(tmp_path, method, dtype):
    """Also with saturated logits, where a probability computed in half precision is exactly 0 or 1."""
    args = make(tmp_path, method).args
    values = torch.tensor([-1e4, -30, -9, -1, -0.01, 0, 0.01, 1, 9, 30, 1e4]).to(dtype)
    logits = values.repeat(2, 1).requires_grad_()
    targets = torch.stack([torch.zeros(11), torch.ones(11)])
    with torch.autocast("cpu", dtype):
        found = entry_losses(args, 3, 4, logits, targets)
        gradient = torch.autograd.grad(found.sum(), logits)[0]
    plain = logits.detach().double().requires_grad_()
    expected = entry_losses(args, 3, 4, plain, targets.double())
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)
    exact = torch.autograd.grad(expected.sum(), plain)[0]
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient.double(), exact, rtol=2**-7, atol=1e-3)


# ---- fp16 ----


class Scaler(TrainerCallback):
    """What the gradient scaler did, step by step."""

    def __init__(self):
        self.skipped, self.schedule = [], []

    def on_step_end(self, args, state, control, lr_scheduler, **kwargs):
        self.skipped.append(self.trainer.accelerator.optimizer_step_was_skipped)
        self.schedule.append(lr_scheduler.last_epoch)


def with_scaler(trainer, watch, scale):
    """Accelerate has no fp16 on CPUs and trains in float32; give it autocast and the scaler that a GPU would get."""
    assert trainer.accelerator.native_amp is False
    trainer.accelerator.native_amp = True
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    watch.trainer = trainer


@pytest.mark.parametrize("method", CHECKED)
def test_fp16(tmp_path, method):
    """The scaled loss of a step is out of range at first: the scaler skips steps until it is not."""
    watch = Scaler()
    trainer = make(tmp_path, method, [watch], fp16=True, num_train_epochs=4, max_grad_norm=1.0)
    losses, layers = losses_of(trainer)
    start = tiny.weights_of(trainer.model)
    with_scaler(trainer, watch, 2.0**21)
    trainer.train()
    assert layers == {torch.float16}
    assert all(loss.dtype == torch.float32 and math.isfinite(loss) for loss in losses)
    assert watch.skipped[0]
    assert watch.skipped.count(False) > 2 * STEPS
    # The schedule waits meanwhile.
    assert watch.schedule == np.cumsum(np.logical_not(watch.skipped)).tolist()
    after = tiny.weights_of(trainer.model)
    assert all(value.dtype == torch.float32 for value in after.values())
    assert not [name for name in start if name.endswith("weight") and torch.equal(start[name], after[name])]


def test_a_skipped_step_counts_for_the_average_and_not_for_the_cycle(tmp_path):
    """As in the ASL and ML-Decoder scripts; a cycle of six steps is then cut short, never overrun."""
    watch, updates = Scaler(), []
    trainer = make(tmp_path, "asl", [watch], fp16=True, ema_decay=0.9, one_cycle=True)
    with_scaler(trainer, watch, 2.0**120)
    update = trainer.average.update
    trainer.average.update = lambda: (updates.append(1), update())
    trainer.train()
    assert watch.skipped == [True] * 2 * STEPS
    assert len(updates) == 2 * STEPS
    assert trainer.lr_scheduler.last_epoch == 0
    assert tiny.same_weights(trainer.average.average, tiny.weights_of(trainer.model))
