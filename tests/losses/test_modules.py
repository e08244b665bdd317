"""The modules, alone and in a stock Trainer: one scale, however a batch is divided."""

import json
import subprocess

import pytest
import torch

from hf_balancemix.losses import (
    AsymmetricLoss,
    BCELoss,
    FocalLoss,
    LargeLoss,
    asymmetric_loss,
    focal_loss,
    large_loss,
    weighted_bce,
)
from tests import tiny
from tests.distributed.launch import ROOT, environment, launcher
from tests.losses.entries import close, sample
from tests.losses.stock_step import LOSSES, MODELS, gradient_norm, train

CASES = [
    (BCELoss, {}, weighted_bce, {}),
    (FocalLoss, {"gamma": 1.5, "alpha": 0.3}, focal_loss, {"gamma": 1.5, "alpha": 0.3}),
    (AsymmetricLoss, {}, asymmetric_loss, {}),
    (
        AsymmetricLoss,
        {"gamma_negative": 2, "gamma_positive": 1, "margin": 0.1, "detach_weight": False},
        asymmetric_loss,
        {"gamma_negative": 2, "gamma_positive": 1, "margin": 0.1, "detach_weight": False},
    ),
    (LargeLoss, {"rate": 0.3, "correct": True}, large_loss, {"rate": 0.3, "correct": True}),
]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("module", "given", "function", "expected"), CASES)
def test_modules_are_the_functions(module, given, function, expected, reduction):
    logits, labels = sample()
    loss = module(**given, class_reduction=reduction)
    value = function(logits, labels, class_reduction=reduction, **expected)
    assert torch.equal(loss(logits, labels), value)
    # By the entries of the batch itself; half of an optimiser step counts half.
    close(loss(logits, labels, num_items_in_batch=48), value)
    close(loss(logits, labels, num_items_in_batch=torch.tensor(96)), value / 2)


def test_outputs_of_any_kind():
    logits, labels = sample()
    value = BCELoss()(logits, labels)
    for outputs in ({"loss": None, "logits": logits}, (logits, "hidden states")):
        assert torch.equal(BCELoss()(outputs, labels), value)


def test_mistakes():
    logits, labels = sample()
    tiny.refused(ValueError, ("`class_reduction`", "'sum', 'mean'", "found 'none'"), BCELoss, "none")
    tiny.refused(ValueError, ("key 'labels'", "found none"), BCELoss(), logits, None)
    for make, given, name in (
        (FocalLoss, {"gamma": -2}, "gamma"),
        (FocalLoss, {"alpha": 1.5}, "alpha"),
        (FocalLoss, {"alpha": ""}, "alpha"),
        (AsymmetricLoss, {"gamma_negative": "4"}, "gamma_negative"),
        (AsymmetricLoss, {"gamma_positive": float("nan")}, "gamma_positive"),
        (AsymmetricLoss, {"margin": 5}, "margin"),
        (LargeLoss, {"rate": -0.1}, "rate"),
    ):
        (value,) = given.values()
        tiny.refused(ValueError, (f"`{name}`", f"found {value!r}"), make, **given)
    loss = LargeLoss()
    loss.rate = 40  # percent
    tiny.refused(ValueError, ("`rate`", "found 40"), loss, logits, labels)


def reference(loss, model_name):
    """Norm and loss by hand: one forward of all 16 rows."""
    model = MODELS[model_name]()
    rows = tiny.plain_rows(16)
    pixels, labels = (torch.stack([row[name] for row in rows]) for name in ("pixel_values", "labels"))
    value = LOSSES[loss]()(model(pixels).logits, labels)
    value.backward()
    return gradient_norm(model), float(value.detach())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_of_the_stock_trainer_is_the_same_however_it_is_divided(tmp_path, loss, model):
    expected, value = reference(loss, model)
    assert expected > 0
    for batch, accumulation in ((16, 1), (4, 4)):
        trainer, norm = train(tmp_path, loss, model, batch, accumulation)
        assert trainer.model_accepts_loss_kwargs is (model == "vit")
        assert norm == pytest.approx(expected, rel=1e-5), (batch, accumulation)
        logged = [entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry]
        assert logged == pytest.approx([value], rel=1e-4)


def test_a_partly_filled_last_step_is_a_mean_too(tmp_path):
    """16 images in batches of 6 with two accumulated: steps of 12 and of 4."""
    trainer, _ = train(tmp_path, "asl", "vit", 6, 2, max_steps=2, learning_rate=0.0, logging_steps=1)
    seen = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    value = reference("asl", "vit")[1]
    assert len(seen) == 2
    assert (12 * seen[0] + 4 * seen[1]) / 16 == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_evaluation(tmp_path, model):
    trainer, _ = train(tmp_path, "focal", model, 16, 1, learning_rate=0.0, per_device_eval_batch_size=8)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(reference("focal", model)[1], rel=1e-5)


def test_a_data_set_without_labels_says_what_is_missing(tmp_path, monkeypatch):
    rows = [{"pixel_values": row["pixel_values"], "targets": row["labels"]} for row in tiny.plain_rows(16)]
    monkeypatch.setattr(tiny, "plain_rows", lambda count: rows)
    tiny.refused(ValueError, ("key 'labels'",), train, tmp_path, "asl", "vit", 8, 1)


@pytest.mark.slow
def test_two_processes(tmp_path):
    common = {"output_dir": str(tmp_path), "batch": 4, "accumulation": 2, "learning_rate": 0.0}
    common["per_device_eval_batch_size"] = 8
    jobs = [{**common, "loss": loss, "model": model} for loss, model in (("asl", "vit"), ("bce", "convnext"))]
    words = [*launcher(2), "-m", "tests.losses.stock_step", json.dumps(jobs)]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    for rank in (0, 1):
        results = json.loads((tmp_path / f"result-{rank}.json").read_text(encoding="utf-8"))
        for job, found in zip(jobs, results, strict=True):
            norm, value = reference(job["loss"], job["model"])
            assert found["world_size"] == 2
            assert found["norm"] == pytest.approx(norm, rel=1e-5)
            assert found["eval_loss"] == pytest.approx(value, rel=1e-5)
