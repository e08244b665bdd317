"""Checkpoints: what is refused, what is warned of, and what survives a failed save, a NaN or Ctrl-C."""

import errno
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Trainer, TrainerCallback

from hf_balancemix import BalanceMixTrainer, MultiLabelTrainer
from hf_balancemix.data.noise import NoiseSpec, inject_noise
from hf_balancemix.label_files import FILE_NAME
from hf_balancemix.label_state import LabelState
from hf_balancemix.training import balancemix, multilabel, resumable, statistics
from hf_balancemix.training.checkpoints import (
    FINAL_STATE,
    complete_checkpoints,
    last_complete_checkpoint,
    missing_parts,
)
from tests import tiny

ROWS, STEPS = 24, 3  # three steps of eight per epoch
TRAIN = tiny.tiny_dataset(ROWS)


def make(folder, cls=BalanceMixTrainer, train=TRAIN, model=None, callbacks=(), **changes):
    values = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01, **changes}
    return cls(
        model if model is not None else tiny.tiny_vit(),
        tiny.arguments(folder, **values),
        train_dataset=train,
        processing_class=tiny.processor(),
        callbacks=list(callbacks),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs (warm-up, then refinement) with checkpoints 2, 4 and 6; copied by every test that writes."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = make(folder)
    trainer.train()
    return folder, tiny.weights_of(trainer.model)


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.fixture
def warnings(monkeypatch):
    """Every warning of the trainers, in order."""
    lines = []
    for module in (multilabel, resumable, balancemix):
        monkeypatch.setattr(module.logger, "warning", lines.append)
    monkeypatch.setattr("hf_balancemix.training.checkpoints.logger.warning", lines.append)
    return lines


def resumes_exactly(folder, finished, checkpoint=True):
    trainer = make(folder)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert tiny.same_weights(tiny.weights_of(trainer.model), finished[1])


def edit_run(checkpoint, **facts):
    """Rewrite facts in the metadata of a saved label state."""
    path = checkpoint / FILE_NAME
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    run = {**json.loads(metadata["run"]), **facts}
    save_file(load_file(path), path, {**metadata, "run": json.dumps(run)})


class At(TrainerCallback):
    """Does something at one moment of the run."""

    def __init__(self, event, step, action):
        self.step, self.action = step, action
        setattr(self, event, self._act)

    def _act(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action(**kwargs)


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


# ---- what a checkpoint holds ----


def test_resume_is_exact_from_every_checkpoint(folder, finished):
    assert [p.name for p in complete_checkpoints(folder)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    shutil.rmtree(folder / "checkpoint-6")
    resumes_exactly(folder, finished)
    resumes_exactly(folder, finished, str(folder / "checkpoint-2"))


def test_the_mean_posterior_is_that_of_all_refreshes(tmp_path, monkeypatch):
    seen, original = [], statistics.posteriors
    monkeypatch.setattr(statistics, "posteriors", lambda *args: seen.append(original(*args)) or seen[-1])
    trainer = make(tmp_path / "whole", num_train_epochs=4)
    trainer.train()
    trainer.prepare_epoch(4, final=True)  # changes nothing
    whole = LabelState.load(tmp_path / "whole" / FINAL_STATE)[0]
    assert len(seen) == 4  # before epochs 1, 2 and 3, and after the last one
    assert whole.posterior_count.tolist() == [4]
    torch.testing.assert_close(whole.posterior_mean, torch.stack(seen).mean(dim=0), atol=2 / 8190, rtol=0)
    assert not torch.equal(whole.posterior_mean, whole.posterior)
    # Killed in the middle of epoch 2, at the end of epoch 1 and in the warm-up.
    for step in (8, 6, 2):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / f"resumed{step}")
        make(folder, num_train_epochs=4).train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        assert LabelState.load(folder / FINAL_STATE)[0].digest() == whole.digest()


def test_a_checkpoint_of_format_1_without_mean_posterior_resumes(folder, finished):
    path = folder / "checkpoint-4" / FILE_NAME
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state, _ = LabelState.load(path.parent)
    tensors = state.statistics() | {"labels": torch.from_numpy(np.packbits(state.labels.numpy(), axis=1))}
    assert tensors.pop("posterior_count").tolist() == [1]
    del tensors["posterior_mean"]
    save_file(tensors, path, {**metadata, "format": "1"})
    resumes_exactly(folder, finished, str(folder / "checkpoint-4"))
    state = LabelState.load(folder / FINAL_STATE)[0]
    assert state.posterior_count.tolist() == [1]
    torch.testing.assert_close(state.posterior_mean, state.posterior, atol=1 / 510, rtol=0)


def test_a_path_object_is_checked_like_a_text(folder, finished):
    resumes_exactly(folder, finished, folder / "checkpoint-4")
    tiny.refused(ValueError, ("found nothing at", "Check the path"), make(folder).train, folder / "checkpoint-5")


# ---- refused ----


def other_classes(names):
    return tiny.tiny_dataset(ROWS, names=names)


OTHER_RUNS = {
    "another size": ({"train": TRAIN.select(range(16))}, ("has 16 images, the checkpoint's had 24",)),
    "other labels": (
        {"train": tiny.tiny_dataset(ROWS, seed=5)},
        ("of 120 given labels differ", "order or noise setting"),
    ),
    "another order": ({"train": TRAIN.select(range(ROWS)[::-1])}, ("of 120 given labels differ", "order")),
    "noise": (
        {"train": inject_noise(TRAIN.remove_columns("clean_labels"), NoiseSpec("flip", 0.3))},
        ("of 120 given labels differ", "noise of the checkpoint [], now [{", "'flip'"),
    ),
    "other classes": (
        {"train": other_classes(("ant", "bee", "cat", "dog", "emu"))},
        ("class names differ", "missing now ['eel'], new ['emu']"),
    ),
    "classes in another order": (
        {"train": other_classes(("bee", "ant", "cat", "dog", "eel"))},
        ("class names differ", "the order differs"),
    ),
    "fewer classes": (
        {"train": other_classes(tiny.NAMES[:4]), "model": lambda: tiny.tiny_vit(num_labels=4)},
        ("class names differ: 5 in the checkpoint, 4 now", "missing now ['eel']"),
    ),
    "batch size": ({"per_device_train_batch_size": 4}, ("takes 4 images", "took 8", "position within the epoch")),
    "accumulation": ({"gradient_accumulation_steps": 2}, ("takes 16 images", "took 8", "position within the epoch")),
    "steps per epoch": (
        {"per_device_train_batch_size": 16, "dataloader_drop_last": False},
        ("takes 16 images", "took 8"),
    ),
}


@pytest.mark.parametrize("case", OTHER_RUNS)
def test_another_run_is_refused(folder, case):
    changes, parts = OTHER_RUNS[case]
    if callable(changes.get("model")):
        changes = {**changes, "model": changes["model"]()}
    trainer = make(folder, callbacks=[At("on_step_begin", 4, lambda **_: pytest.fail("a step began"))], **changes)
    parts = ("Cannot resume from", "checkpoint-4", *parts, "Use the settings of the interrupted run")
    tiny.refused(ValueError, parts, trainer.train, str(folder / "checkpoint-4"))


def test_other_steps_per_epoch_are_refused(tmp_path):
    """28 rows: three steps of eight with `drop_last`, four without it or with two accumulated fours."""
    train = tiny.tiny_dataset(28)
    first = make(tmp_path, train=train)
    first.train()
    parts = ("Cannot resume from", "4 optimiser steps per epoch", "3")
    for changes in (
        {"dataloader_drop_last": False},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    ):
        tiny.refused(ValueError, parts, make(tmp_path, train=train, **changes).train, str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize("rows", [23, 24, 25])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (4, 2), (4, 3), (1, 30)])
def test_steps_per_epoch_are_those_of_the_trainer(tmp_path, rows, drop_last, batch, accumulation):
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    trainer = make(tmp_path, train=TRAIN.select([*range(23), 0, 1][:rows]), dataloader_drop_last=drop_last, **options)
    _, steps, *_ = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert trainer.run_facts()["steps_per_epoch"] == steps


# ---- warned ----


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 7}, "`seed` was 42, is now 7"),
        ({"warmup_epochs": 0}, "`warmup_epochs` was 1, is now 0"),
        ({"warmup_epochs": 2}, "`warmup_epochs` was 1, is now 2"),
        ({"relabel_views": "step"}, "`relabel_views` was 'reuse', is now 'step'"),
        ({"refinement": "none"}, "`refinement` was 'full', is now 'none'"),
        ({"mix_alpha": 1.0}, "`mix_alpha` was 4.0, is now 1.0"),
    ],
)
@pytest.mark.parametrize("step", [2, 4])
def test_other_settings_are_named(folder, warnings, changes, sentence, step):
    """In warm-up and after it: the resumed run goes on to the end with its own settings."""
    trainer = make(folder, **changes)
    trainer.train(str(folder / f"checkpoint-{step}"))
    (named,) = [line for line in warnings if "as another run" in line]
    assert sentence in named
    assert trainer.state.global_step == 2 * STEPS


@pytest.mark.parametrize(("before", "after"), [("none", "full"), ("clean", "full")])
@pytest.mark.parametrize("views", ["step", "epoch", "reuse"])
def test_refinement_may_be_switched_on_in_mid_epoch(tmp_path, warnings, before, after, views):
    """The checkpoint lacks posteriors or predictions on the views; they are made before the next step."""
    make(tmp_path, refinement=before).train()
    trainer = make(tmp_path, refinement=after, relabel_views=views)
    trainer.train(str(tmp_path / "checkpoint-4"))
    assert f"`refinement` was '{before}', is now '{after}'" in "".join(warnings)
    assert trainer.state.global_step == 2 * STEPS


def test_another_world_size_and_trainer_are_named(folder, warnings):
    checkpoint = folder / "checkpoint-4"
    shutil.copy(checkpoint / "rng_state.pth", checkpoint / "rng_state_0.pth")
    shutil.copy(checkpoint / "rng_state.pth", checkpoint / "rng_state_1.pth")
    edit_run(checkpoint, world_size=2)
    make(folder).train(str(checkpoint))
    assert "`world_size` was 2, is now 1" in warnings[0]
    warnings.clear()
    make(folder, cls=MultiLabelTrainer).train(str(folder / "checkpoint-2"))
    assert "`trainer` was 'BalanceMixTrainer', is now 'MultiLabelTrainer'" in warnings[0]


def test_the_same_settings_raise_no_warning(folder, warnings):
    make(folder).train(str(folder / "checkpoint-4"))
    assert warnings == []


# ---- damaged and missing ----


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "missing": (lambda path: path.unlink(), "found none"),
    "truncated": (truncate, "is damaged"),
    "garbage": (lambda path: path.write_bytes(b"\x00garbage" * 64), "is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "another format": (lambda path: save_file({"x": torch.zeros(1)}, path, {"format": "9"}), "is damaged"),
    "no metadata": (lambda path: save_file({"x": torch.zeros(1)}, path), "is damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_label_state(folder, finished, warnings, case):
    damage, found = DAMAGE[case]
    shutil.rmtree(folder / "checkpoint-6")
    damage(folder / "checkpoint-4" / FILE_NAME)
    parts = (
        "Expected a complete checkpoint",
        f"lacks a readable {FILE_NAME}",
        f"Resume from {folder / 'checkpoint-2'}",
    )
    tiny.refused(ValueError, parts, make(folder).train, str(folder / "checkpoint-4"))
    tiny.refused(ValueError, (found, "Resume from another checkpoint"), LabelState.load, folder / "checkpoint-4")
    resumes_exactly(folder, finished)
    assert f"Passing over an incomplete checkpoint: checkpoint-4 lacks a readable {FILE_NAME}" in warnings[0]


@pytest.mark.parametrize("name", ["trainer_state.json", "rng_state.pth"])
def test_incomplete_newest_checkpoint_is_passed_over(folder, finished, warnings, name):
    (folder / "checkpoint-6" / name).unlink()
    truncate(folder / "checkpoint-4" / name)
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-2")
    assert len(warnings) == 2
    assert all(name in line for line in warnings)
    resumes_exactly(folder, finished)


def test_no_checkpoint_to_resume_from(tmp_path):
    parts = ("Expected a complete checkpoint", "found none", "Start the run without resuming")
    tiny.refused(ValueError, parts, make(tmp_path).train, True)
    (tmp_path / "checkpoint-3").mkdir()
    parts = ("only incomplete ones", "checkpoint-3 lacks trainer_state.json", "Start the run without resuming")
    tiny.refused(ValueError, parts, make(tmp_path).train, True)
    parts = ("Expected a checkpoint folder", "found nothing", "Check the path")
    tiny.refused(ValueError, parts, make(tmp_path).train, str(tmp_path / "checkpoint-9"))


# ---- stops in mid-run ----


def poison(model, **kwargs):
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))


@pytest.mark.parametrize("cls", [MultiLabelTrainer, BalanceMixTrainer])
def test_a_non_finite_loss_stops_the_run(tmp_path, finished, cls):
    seen = []
    trainer = make(tmp_path, cls, callbacks=[At("on_step_begin", 2, poison)])
    loss = trainer._training_loss
    trainer._training_loss = lambda *args: (seen.append(args[1].flatten().tolist()), loss(*args))[1]
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "found nan after 2 optimiser steps" in message
    assert str(seen[-1]) in message  # the rows of the batch, both halves
    assert "kept" in message
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2"]
    if cls is BalanceMixTrainer:
        resumes_exactly(tmp_path, finished)


@pytest.mark.parametrize("save_only_model", [False, True])
def test_a_non_finite_loss_is_not_taken_for_a_failed_save(tmp_path, save_only_model):
    """A half-written folder of another run, or one without label state, bears the number of the last step."""
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "half").touch()
    for step in (1, 2):
        trainer = make(tmp_path, callbacks=[At("on_step_begin", step, poison)], save_only_model=save_only_model)
        with pytest.raises(FloatingPointError):
            trainer.train()
    assert (tmp_path / "checkpoint-1" / "half").is_file()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()


def test_a_diverging_run_stops(tmp_path):
    tiny.refused(
        FloatingPointError,
        ("Expected a finite loss", "optimiser steps", "rows", "start anew with a lower one"),
        make(tmp_path, learning_rate=1e30).train,
    )


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


FAILING = {
    "label state": (LabelState, "save"),
    "optimizer": (Trainer, "_save_optimizer_and_scheduler"),
    "random state": (Trainer, "_save_rng_state"),
    "model": (PreTrainedModel, "save_pretrained"),
}


@pytest.mark.parametrize("what", FAILING)
@pytest.mark.parametrize("stale", [False, True])
def test_disk_full_while_saving(tmp_path, finished, monkeypatch, what, stale):
    """The second save fails; with `stale`, over a complete checkpoint of an older run in the same folder."""
    owner, name = FAILING[what]
    original, calls = getattr(owner, name), []

    def failing(self, *args, **kwargs):
        calls.append(name)
        if len(calls) == 2:
            disk_full()
        return original(self, *args, **kwargs)

    if stale:
        shutil.copytree(finished[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    monkeypatch.setattr(owner, name, failing)
    parts = ("checkpoint-4 failed", "No space left", f"Kept: {tmp_path / 'checkpoint-2'}", "Free some disk space")
    tiny.refused(OSError, (*parts, "resume_from_checkpoint=True"), make(tmp_path).train)
    monkeypatch.undo()
    assert not (tmp_path / "checkpoint-4").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    resumes_exactly(tmp_path, finished)


def test_disk_full_at_the_first_save(tmp_path, monkeypatch):
    monkeypatch.setattr(LabelState, "save", disk_full)
    tiny.refused(
        OSError, ("checkpoint-2 failed", "No earlier checkpoint exists", "Free some disk"), make(tmp_path).train
    )
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("save_only_model", [False, True])
def test_a_failed_push_leaves_the_checkpoint(tmp_path, monkeypatch, save_only_model):
    def push(self, *args):
        raise ConnectionError("the Hub is not there")

    trainer = make(tmp_path, save_only_model=save_only_model)
    trainer.args.push_to_hub = True
    monkeypatch.setattr(resumable.ResumableTrainer, "_push_from_checkpoint", push)
    with pytest.raises(ConnectionError, match="the Hub is not there"):
        trainer.train()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()
    if not save_only_model:
        assert missing_parts(tmp_path / "checkpoint-2") == []


@pytest.mark.parametrize(("strategy", "step"), [("steps", 2), ("epoch", 3)])
@pytest.mark.parametrize("name", ["save_model", "_save_rng_state"])
def test_a_killed_save_over_an_older_checkpoint_is_not_taken_for_complete(
    tmp_path, finished, monkeypatch, strategy, step, name
):
    """Stopped before or between two files: nothing is tidied up, and the old `trainer_state.json` must not vouch."""
    for older in (1, step):
        shutil.copytree(finished[0] / "checkpoint-2", tmp_path / f"checkpoint-{older}")
    monkeypatch.setattr(Trainer, name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, save_strategy=strategy).train()
    assert missing_parts(tmp_path / f"checkpoint-{step}") == ["trainer_state.json"]
    assert missing_parts(tmp_path / "checkpoint-1") == []  # not overwritten, left alone


def test_ctrl_c_says_what_is_kept(tmp_path, finished, warnings):
    trainer = make(tmp_path, callbacks=[At("on_step_begin", 5, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert f"Interrupted after step 5. Kept: {tmp_path / 'checkpoint-4'}" in warnings[-1]
    assert "trainer.train(resume_from_checkpoint=True)" in warnings[-1]
    resumes_exactly(tmp_path, finished)


def test_a_run_that_was_broken_off_leaves_no_older_final_state(folder):
    assert (folder / FINAL_STATE / FILE_NAME).is_file()
    with pytest.raises(KeyboardInterrupt):
        make(folder, callbacks=[At("on_step_begin", 1, interrupt)]).train()
    assert not (folder / FINAL_STATE / FILE_NAME).exists()


def test_ctrl_c_before_the_first_checkpoint(tmp_path, warnings):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, callbacks=[At("on_step_begin", 1, interrupt)]).train()
    assert "Interrupted. No checkpoint was written yet" in warnings[-1]


def test_ctrl_c_in_the_refresh(tmp_path, finished, warnings, monkeypatch):
    monkeypatch.setattr(balancemix, "refresh_statistics", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path).train()
    monkeypatch.undo()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2"]
    resumes_exactly(tmp_path, finished)


def test_resuming_a_finished_run_changes_nothing(folder, finished):
    state = LabelState.load(folder / FINAL_STATE)[0].digest()
    resumes_exactly(folder, finished)
    assert LabelState.load(folder / FINAL_STATE)[0].digest() == state


def test_checkpoints_of_an_earlier_run_are_named(folder, warnings):
    make(folder, max_steps=1).train()
    assert "holds checkpoints of an earlier run up to checkpoint-6" in warnings[0]


def test_looking_at_the_loader_keeps_the_statistics(tmp_path):
    trainer = make(tmp_path, save_strategy="no")
    trainer.train()
    before = trainer.label_state.digest()
    next(iter(trainer.get_train_dataloader()))
    assert trainer.label_state.digest() == before
