"""Killed by SIGKILL from outside and resumed: the same weights and label state, bit for bit."""

import random

import pytest

from tests.distributed.launch import kill_and_resume

ROWS, BATCH, EPOCHS, WARMUP = 96, 4, 4, 2
# Pairwise covering: phase × boundary × processes × workers × accumulation, with schedules and models spread over them.
CASES = [
    # phase, resume at, processes, workers, accumulation, schedule, model, method
    ("warm-up", "mid-epoch", 1, 0, 1, "epoch", "resnet", "balancemix"),
    ("warm-up", "boundary", 1, 2, 2, "reuse", "vit", "balancemix"),
    ("after", "mid-epoch", 1, 2, 1, "step", "resnet", "balancemix"),
    ("after", "boundary", 1, 0, 2, "epoch", "resnet", "balancemix"),
    ("warm-up", "mid-epoch", 2, 2, 2, "step", "vit", "balancemix"),
    ("warm-up", "boundary", 2, 0, 1, "epoch", "resnet", "balancemix"),
    ("after", "mid-epoch", 2, 0, 2, "reuse", "resnet", "balancemix"),
    ("after", "boundary", 2, 2, 1, "step", "resnet", "balancemix"),
    ("after", "mid-epoch", 2, 2, 1, "epoch", "resnet", "balancemix"),
    ("after", "mid-epoch", 2, 0, 1, "stream", "resnet", "balancemix"),
    ("after", "mid-epoch", 2, 0, 1, "carry", "resnet", "balancemix"),
    ("after", "mid-epoch", 1, 0, 1, "epoch", "vit", "bce"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "where", "world", "workers", "accumulation", "schedule", "model", "method"), CASES)
def test_killed_and_resumed_is_the_same_run(
    tmp_path, phase, where, world, workers, accumulation, schedule, model, method
):
    steps = ROWS // (BATCH * world * accumulation)  # per epoch
    epoch = 0 if phase == "warm-up" else WARMUP
    kill = random.SystemRandom().randrange(epoch * steps + steps, epoch * steps + 2 * steps)
    options = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": EPOCHS,
        "warmup_epochs": WARMUP,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
        "relabel_views": schedule,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "relabel_threshold": 0.55,
        # Evaluation draws random numbers too, and comes between the last step of an epoch and the next one.
        "eval_strategy": "epoch",
        # A period that does not divide an epoch gives checkpoints inside epochs, the epoch's length at its end.
        "save_strategy": "steps",
        "save_steps": steps if where == "boundary" else steps - 1,
    }
    job = {
        "rows": ROWS,
        "options": options,
        "world_size": world,
        "model": model,
        "method": method,
        "dropout": 0.1,
    }
    alone, resumed, _ = kill_and_resume(job, tmp_path, kill, EPOCHS * steps)
    assert resumed[0]["steps"] == EPOCHS * steps == alone[0]["steps"]
    assert len(resumed[0]["seen"]) < len(alone[0]["seen"])
