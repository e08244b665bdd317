"""Runs of focal, ASL, LL-R and LL-Ct: resumed, evaluated, with wrong options."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_balancemix import MultiLabelTrainer
from hf_balancemix.training import objective
from hf_balancemix.training.methods import METHODS
from tests import tiny
from tests.training.baselines import BASELINES, EVAL, STEPS, K, make, multi_hot, recorded

# ---- resuming ----


@pytest.fixture
def rates(monkeypatch):
    """The rate of every large loss, in order."""
    seen, original = [], objective.large_loss

    def spy(logits, targets, rate, *args):
        seen.append(rate)
        return original(logits, targets, rate, *args)

    monkeypatch.setattr(objective, "large_loss", spy)
    return seen


@pytest.mark.parametrize("method", BASELINES)
def test_resume_is_exact_and_the_rate_follows_the_epoch(tmp_path, method, rates):
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3, "optim": "adamw_torch"}
    alone = make(tmp_path / "alone", method, tiny.tiny_vit(dropout=0.1), **options)
    alone.train()
    expected = [0.0] * STEPS + [0.05] * STEPS + [0.1] * STEPS if method.startswith("ll") else []
    assert rates == pytest.approx([rate for rate in expected for _ in (0, 1)])
    for done in (4, 6):  # in an epoch, and at its end
        rates.clear()
        resumed = make(tmp_path / "resumed", method, tiny.tiny_vit(dropout=0.1), **options)
        resumed.train(resume_from_checkpoint=tmp_path / "alone" / f"checkpoint-{done}")
        assert tiny.same_weights(tiny.weights_of(resumed.model), tiny.weights_of(alone.model))
        assert rates == pytest.approx([rate for rate in expected[done:] for _ in (0, 1)])


def test_another_loss_is_told_when_resuming(tmp_path, caplog):
    make(tmp_path, "asl", save_strategy="steps", save_steps=2).train()
    with caplog.at_level("WARNING"):
        make(tmp_path, "focal", asl_margin=0.2).train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    told = " ".join(record.message for record in caplog.records)
    assert "`loss` was 'asl', is now 'focal'" in told
    assert "`asl_margin` was 0.1, is now 0.2" in told


# ---- evaluation ----


@pytest.mark.parametrize("method", BASELINES)
def test_evaluation_is_bce_and_map(tmp_path, method):
    """One scale for all methods; a loss that depends on the epoch or the batch could not be compared."""
    trainer = make(tmp_path, method, eval_strategy="epoch")
    trainer.train()
    logits = torch.from_numpy(trainer.predict(EVAL).predictions)
    expected = F.binary_cross_entropy_with_logits(logits, multi_hot(EVAL)) * K
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert 0 <= metrics["eval_map"] <= 100
    assert [entry["epoch"] for entry in trainer.state.log_history if "eval_map" in entry] == [1, 2, 2]


def test_class_reduction_scales_the_losses(tmp_path):
    for method in ("bce", "asl"):
        whole, mean = (
            recorded(make(tmp_path, method, class_reduction=reduction, max_steps=1))[0]["batches"][0]["loss"]
            for reduction in ("sum", "mean")
        )
        assert whole == pytest.approx(K * mean, rel=1e-6)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"loss": "als"}, ("`loss`", "'als'", "asl")),
        ({"second_sampler": "batches"}, ("`second_sampler`", "'batches'", "batch")),
        ({"focal_gamma": -1.0}, ("`focal_gamma` at least 0", "found -1.0")),
        ({"focal_alpha": 25.0}, ("`focal_alpha` between 0.0 and 1.0", "found 25.0")),
        ({"asl_margin": -0.05}, ("`asl_margin`", "found -0.05")),
        ({"asl_gamma_negative": math.nan}, ("`asl_gamma_negative`", "found nan")),
        ({"large_loss_rate": -0.1}, ("`large_loss_rate`", "found -0.1", "percent")),
    ],
)
def test_wrong_options(tmp_path, changes, parts):
    tiny.refused(ValueError, parts, tiny.arguments, tmp_path, **changes)


def test_the_table_of_methods():
    assert METHODS["bce"].options["second_sampler"] == "none"
    for method in BASELINES:
        assert METHODS[method].trainer is MultiLabelTrainer
        assert METHODS[method].options == {"loss": method, "second_sampler": "batch"}
