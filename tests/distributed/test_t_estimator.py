"""T-estimator in other batches, in two processes, and killed in every stage: the same run."""

import pytest

from tests.distributed.launch import SETTINGS, all_close, kill_and_resume, norms_of, run


@pytest.mark.slow
def test_steps_of_both_stages_are_the_same_however_they_are_batched(tmp_path):
    """One step of BCE, the estimate, two reweighted steps."""
    norms = {}
    for name, (batch, accumulation, world) in SETTINGS.items():
        options = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 3,
            "warmup_epochs": 1,
            "second_sampler": "batch",
        }
        # 18 images, of which two are held out: one step per epoch.
        job = {"output_dir": str(tmp_path / name), "rows": 18, "model": "vit", "method": "t_estimator"}
        results = run({**job, "world_size": world, "options": options})
        assert len({result["weights"] for result in results}) == 1
        assert len({result["state"] for result in results}) == 1
        norms[name] = norms_of(job)
    all_close(norms, steps=3)


# 240 images, 24 held out, nine steps of 24 per epoch; two epochs of the first stage.
ROWS, IMAGES_PER_STEP, STEPS, WARMUP, EPOCHS = 240, 24, 9, 2, 4
CASES = [
    # killed after step, saved every, processes, workers, accumulation, model
    (13, 4, 1, 0, 1, "resnet"),  # in the second epoch: resumes with the first one's statistics and best weights
    (18, 9, 1, 2, 2, "vit"),  # between the stages: the estimate is made after the resume
    (18, 9, 2, 0, 1, "resnet"),
    (22, 4, 2, 2, 1, "vit"),  # in the third stage
]


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "every", "world", "workers", "accumulation", "model"), CASES)
def test_killed_and_resumed_is_the_same_run(tmp_path, kill, every, world, workers, accumulation, model):
    options = {
        "per_device_train_batch_size": IMAGES_PER_STEP // world // accumulation,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": EPOCHS,
        "warmup_epochs": WARMUP,
        "second_sampler": "batch",
        "dataloader_num_workers": workers,
        "optim": "adamw_torch",
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "epoch",
        "save_strategy": "steps",
        "save_steps": every,
    }
    job = {"rows": ROWS, "options": options, "world_size": world, "model": model, "method": "t_estimator"}
    job["dropout"] = 0.1
    _, _, again = kill_and_resume(job, tmp_path, kill, EPOCHS * STEPS)
    assert kill // every * every <= again[0]
