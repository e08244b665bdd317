"""Averaged weights, one cycle and cutout with several processes: one model, one schedule, exact resume."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForImageClassification

from hf_balancemix.training.ema import FINAL_MODEL
from tests.distributed import launch
from tests.distributed.run_training import digest

STEPS = 10


def run(folder, method, world, accumulation=1, resume=None):
    """The results of all ranks, in order; ten optimiser steps of eight images, six to an epoch."""
    options = {
        "per_device_train_batch_size": 8 // world // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": STEPS,
        "one_cycle": True,
        "learning_rate": 1e-4,
        "optim": "adamw_torch",
        "ema_decay": 0.8,
        "cutout": 0.5,
        "relabel_threshold": 0.55,
        "save_strategy": "steps",
        "save_steps": 4,
        "eval_strategy": "epoch",
    }
    job = {"output_dir": str(folder), "method": method, "world_size": world, "options": options, "resume": resume}
    return launch.run(job, module="run_extras")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "accumulation"), [("bce", 2), ("balancemix", 1)])
def test_two_processes(tmp_path, vectors, method, accumulation):
    first, second = run(tmp_path / "two", method, 2, accumulation)
    assert first == second
    assert first["rates"] == pytest.approx(vectors["18_schedules"]["expected"]["onecycle"], abs=1e-12)
    assert first["raw"] == first["raw_again"] != first["average"]
    assert set(first["metrics"]) == {"eval_map", "eval_ema_map"}
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "two" / FINAL_MODEL)
    assert digest(saved) == first["average"]

    shutil.copytree(tmp_path / "two" / "checkpoint-4", tmp_path / "again" / "checkpoint-4")
    resumed = run(tmp_path / "again", method, 2, accumulation, str(Path(tmp_path, "again", "checkpoint-4")))
    assert resumed[0]["rates"] == first["rates"][4:]
    for rank in range(2):
        assert {**resumed[rank], "rates": []} == {**first, "rates": []}
