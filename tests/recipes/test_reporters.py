"""`--report_to`: an entry for each run, with the diagnostics of the method in it."""

import json
import sqlite3

import pytest

from hf_balancemix.recipe import main
from recipes.digits import RECIPE

DIAGNOSTICS = {"sampling_max", "effective_sample_share", "mean_posterior", "clean", "relabelled", "ambiguous"}
EXPECTED = {f"train/{name}" for name in DIAGNOSTICS | {"label_precision", "loss"}} | {"eval/map"}


def train(folder, kind, *words):
    """Two methods in one process."""
    short = ["--num_train_epochs", "2", "--warmup_epochs", "1", "--cache_images", "False", "--use_cpu"]
    methods = ["--methods", "bce", "balancemix"]
    main(RECIPE, [*methods, *short, "--output_dir", str(folder / "out"), "--report_to", kind, *words])


def check(entries, prefix):
    """One entry for each run, named after it; only BalanceMix manages labels."""
    first, second = sorted(entries, reverse=True)
    assert first.startswith(f"{prefix}-bce-seed0")
    assert second.startswith(f"{prefix}-balancemix-seed0")
    assert entries[second] >= EXPECTED
    assert {"train/loss", "eval/map"} <= entries[first]
    assert "train/clean" not in entries[first]


def test_tensorboard(tmp_path, monkeypatch):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    train(tmp_path, "tensorboard")
    entries = {}
    for file in (tmp_path / "out").rglob("*tfevents*"):
        events = reader.EventAccumulator(str(file))
        events.Reload()
        run = f"out-{file.relative_to(tmp_path / 'out').parts[0]}"
        assert run not in entries
        entries[run] = set(events.Tags()["scalars"])
    check(entries, "out")


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    pytest.importorskip("trackio")
    train(tmp_path, "trackio")
    (file,) = (tmp_path / "trackio").glob("*.db")
    entries = {}
    with sqlite3.connect(file) as database:
        for run, logged in database.execute("SELECT run_name, metrics FROM metrics"):
            entries.setdefault(run, set()).update(json.loads(logged))
    check(entries, "out")


def test_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    wandb = pytest.importorskip("wandb")
    entries, log = {}, wandb.Run.log

    def recorded(self, data, *rest, **more):
        entries.setdefault(self.name, set()).update(data)
        return log(self, data, *rest, **more)

    monkeypatch.setattr(wandb.Run, "log", recorded)
    train(tmp_path, "wandb", "--run_name", "mine")
    check(entries, "mine")
    assert len(list(tmp_path.rglob("*.wandb"))) == 2
    assert wandb.run is None
