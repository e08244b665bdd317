"""Co-teaching in several processes, and killed: a step is the same however it is batched, a resumed run is the run."""

import random
from pathlib import Path

import pytest

from hf_balancemix.label_state import LabelState
from hf_balancemix.training.checkpoints import FINAL_STATE
from tests.distributed.launch import SETTINGS, all_close, kill_and_resume, norms_of, run

OPTIONS = {"second_sampler": "batch", "loss": "bce"}


@pytest.mark.slow
def test_one_step_is_the_same_however_it_is_batched(tmp_path):
    """Orders, partners among the selected, mixing and weights all follow from the optimiser step."""
    norms = {}
    for name, (batch, accumulation, world) in SETTINGS.items():
        output = tmp_path / name
        options = {
            **OPTIONS,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 4,  # two epochs
            "warmup_epochs": 0,
        }
        job = {"output_dir": str(output), "rows": 32, "model": "vit", "method": "co_teaching", "world_size": world}
        results = run({**job, "options": options})
        assert all(result["state"] == results[0]["state"] for result in results)
        assert all(result["weights"] == results[0]["weights"] for result in results)
        norms[name] = norms_of(job)
        state, _ = LabelState.load(Path(output) / FINAL_STATE)
        assert all(0 < int(column.sum()) < 32 for column in (state.instance_posterior > 0.5).T)
    all_close(norms, steps=4)


ROWS, BATCH, EPOCHS, WARMUP = 96, 4, 4, 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "where", "world", "workers", "accumulation", "model"),
    [
        ("warm-up", "mid-epoch", 1, 2, 2, "vit"),
        ("after", "mid-epoch", 2, 0, 2, "resnet"),
        ("after", "boundary", 2, 2, 1, "vit"),
        ("after", "mid-epoch", 1, 0, 1, "resnet"),
    ],
)
def test_killed_and_resumed_is_the_same_run(tmp_path, phase, where, world, workers, accumulation, model):
    steps = ROWS // (BATCH * world * accumulation)
    epoch = 0 if phase == "warm-up" else WARMUP
    kill = random.SystemRandom().randrange(epoch * steps + steps, epoch * steps + 2 * steps)
    options = {
        **OPTIONS,
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": EPOCHS,
        "warmup_epochs": WARMUP,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "epoch",
        "save_strategy": "steps",
        "save_steps": steps if where == "boundary" else steps - 1,
    }
    job = {"rows": ROWS, "options": options, "world_size": world, "model": model, "dropout": 0.1}
    job["method"] = "co_teaching"
    kill_and_resume(job, tmp_path, kill, EPOCHS * steps)  # weights of both networks
