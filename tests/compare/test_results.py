"""What stands in the file of results, what counts as finished, and what a mistake or a failing run does."""

import json
import re

import pytest
from filelock import FileLock

from hf_balancemix.compare import main
from hf_balancemix.compare import run as running
from hf_balancemix.compare.results import Results, _thinned
from tests.compare.test_running import QUICK
from tests.layouts.folder import write_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "pictures", splits={"train": 16, "test": 8}, size=16)


@pytest.fixture
def compare(pictures, tmp_path):
    """Run a comparison in this process; the lines of its results."""

    def call(*words, status=None):
        started = ["folder", f"--data_dir={pictures}", f"--output_dir={tmp_path}", *QUICK, *words]
        if status is None:
            main(started)
        else:
            with pytest.raises(SystemExit) as stopped:
                main(started)
            assert stopped.value.code == status
        path = tmp_path / "results.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    return call


def test_a_line(compare, tmp_path):
    (line,) = compare("--methods", "balancemix", "--noises", "mislabel:0.25", "--num_train_epochs=3")
    assert (line["method"], line["noise"], line["noise_rate"], line["seed"]) == ("balancemix", "mislabel", 0.25, 0)
    assert line["map"] == pytest.approx(sum(line["per_class_ap"].values()) / 3, abs=1e-5)
    assert [epoch["epoch"] for epoch in line["epochs"]] == [1, 2, 3]
    assert line["epochs"][-1]["map"] == line["map"]
    assert 0 <= line["epochs"][-1]["label_precision"] <= 1
    assert line["images"] == {"train": 16, "test": 8}
    assert line["settings"]["mix_alpha"] == 4
    assert {"torch", "hf-balancemix"} <= line["versions"].keys()
    assert "seconds" not in json.dumps(line)
    (times,) = Results(tmp_path).read_times()
    assert times["cell"] == line["cell"]
    assert times["seconds"] > 0
    assert times["steps"] == 12


def test_a_resumed_run_has_its_numbers_in_the_same_order():
    """Those from before the resume come from a checkpoint's file, which sorts them."""
    plain = [{"epoch": 1.0, "map": 50.0, "sampling_max": 2.0, "effective_sample_share": 0.5, "refresh_seconds": 3.0}]
    resumed = [dict(sorted(plain[0].items()))]
    assert json.dumps(_thinned(plain)) == json.dumps(_thinned(resumed))
    assert set(_thinned(plain)[0]) == {"epoch", "map", "sampling_max", "effective_sample_share"}


def test_finished_runs_are_kept_and_a_changed_setting_is_a_new_run(compare, capsys):
    grid = ["--methods", "bce", "--noises", "none"]
    (first,) = compare(*grid)
    for same in ([], ["--num_train_epochs=2.0"], ["--focal_gamma=3"]):  # BCE never reads the last
        assert compare(*grid, *same) == [first]
        assert "1 runs, 1 of them finished earlier" in capsys.readouterr().err
    lines = compare(*grid, "--learning_rate=0.01")
    assert first in lines
    assert len(lines) == 2
    assert len({line["cell"] for line in lines}) == 2
    assert len(compare(*grid, "--learning_rate=0.01", "--seeds=2")) == 3


def test_a_run_that_ended_without_its_result_is_gone_on_with(compare, tmp_path, monkeypatch):
    grid = ["--methods", "balancemix", "--noises", "mislabel:0.4"]
    expected = compare(*grid)
    (tmp_path / "results.jsonl").unlink()

    def broken_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", broken_off)
        assert compare(*grid, status=130) == []
    (folder,) = (tmp_path / "cells").iterdir()
    assert (folder / "model.safetensors").exists()
    assert compare(*grid) == expected
    assert Results(tmp_path).read_times()[-1]["resumed"]
    assert not list((tmp_path / "cells").iterdir())


def test_an_interruption_is_said_once(compare, capsys, caplog, monkeypatch):
    """The trainer would say how a script goes on; here it is the same command."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(running.Report, "on_step_end", interrupted)
    compare("--methods", "bce", "--noises", "none", status=130)
    assert "Interrupted" not in caplog.text
    assert capsys.readouterr().err.count("Interrupted. To go on: the same command") == 1


def test_runs_of_one_process_may_differ_in_precision(compare, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "grid:\n"
        "  - {methods: [bce], noises: [none], bf16: true, num_train_epochs: 1}\n"
        "  - {methods: [bce], noises: [none], num_train_epochs: 1}\n",
        encoding="utf-8",
    )
    lines = compare(f"--config={path}", "--num_train_epochs=1")
    assert {line["settings"]["bf16"] for line in lines} == {"True", "False"}


def test_models_are_kept_if_asked_for(compare, tmp_path):
    compare("--methods", "bce", "--noises", "none", "--keep_models")
    (folder,) = (tmp_path / "cells").iterdir()
    assert re.fullmatch("bce-none-seed0-[0-9a-f]{12}", folder.name)
    assert (folder / "model.safetensors").exists()
    assert not list(folder.glob("checkpoint-*"))


def test_a_failing_run_keeps_no_other_from_running(compare, capsys, tmp_path, monkeypatch):
    grid = ["--methods", "bce", "mixup", "--noises", "none"]
    train = running.train

    def failing(job, plan, progress):
        if plan.settings["method"] == "bce":
            raise FloatingPointError("the loss is nan\nafter step 3")
        return train(job, plan, progress)

    with monkeypatch.context() as patch:
        patch.setattr(running, "train", failing)
        assert [line["method"] for line in compare(*grid, status=1)] == ["mixup"]
        assert compare("--methods", "bce", "--noises", "flip:0.1", status=1)
    printed = capsys.readouterr()
    assert "mixup" in printed.out
    log = re.search(
        r"1 runs failed.*bce, clean, seed 0: FloatingPointError: the loss is nan after step 3\s+(\S+\.log)",
        printed.err,
        re.S,
    )
    assert "Traceback" in (tmp_path / "logs" / log[1].rpartition("/")[2]).read_text("utf-8")
    assert sorted(line["method"] for line in compare(*grid)) == ["bce", "mixup"]
    assert "2 runs, 1 of them finished earlier" in capsys.readouterr().err


def test_a_torn_last_line_is_dropped_and_its_run_repeated(compare, capsys, tmp_path):
    grid = ["--methods", "bce", "mixup", "--noises", "none"]
    compare(*grid)
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    compare(*grid)
    assert "the last line is not complete" in capsys.readouterr().err
    assert path.read_bytes() == whole
    path.write_bytes(whole[:50] + b"\n" + whole)
    with pytest.raises(ValueError, match="one JSON object a line in .*results.jsonl, found none in line 1"):
        Results(tmp_path).read()
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(ValueError, match="settings, with those of the data, in line 1"):
        Results(tmp_path).read()


OWN = {"method": "bce", "noise": "none", "noise_rate": None, "seed": 0}
LINE = {**OWN, "map": 50.0, "groups": {}, "epochs": [], "settings": {**OWN, "data": {"recipe": "digits"}}}


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        *[({name: None}, "a method and a known noise") for name in ("method", "noise")],
        ({"noise": "snow"}, "a method and a known noise"),
        ({"seed": None}, "a seed and a noise rate"),
        ({"noise_rate": "0.2"}, "a seed and a noise rate"),
        *[({name: None}, "mAP, and that of the class groups,") for name in ("map", "groups")],
        ({"epochs": [1.0]}, "a list of epochs"),
        ({"settings": {**OWN}}, "settings, with those of the data,"),
        ({"settings": {"data": {}, "method": "bce"}}, "a method and a known noise"),
    ],
)
def test_a_line_that_lacks_something_is_named(tmp_path, change, lacks):
    broken = {name: value for name, value in (LINE | change).items() if value is not None or name == "noise_rate"}
    path = tmp_path / "results.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{json.dumps(broken)}\n", "utf-8")
    with pytest.raises(ValueError, match=f"Expected {lacks} in line 2 of .*results.jsonl.*its run is repeated"):
        Results(tmp_path).read()


@pytest.mark.parametrize("text", ['{"cell": "a"}\n', "[]\n{}\n", '{"cell": "a", "method": "bce", "work": "w"}\n'])
def test_damaged_times_say_what_they_are_for(tmp_path, text):
    (tmp_path / "times.jsonl").write_text(text, "utf-8")
    with pytest.raises(ValueError, match="line 1 of|line 1. .*only serves to tell the time left"):
        Results(tmp_path).read_times()


def test_what_a_kill_left_behind_a_result_is_removed(compare, tmp_path):
    grid = ["--methods", "bce", "--noises", "none"]
    compare(*grid, "--keep_models")
    (folder,) = (tmp_path / "cells").iterdir()
    compare(*grid)
    assert folder.is_dir()  # a model that was kept stays
    (folder / "checkpoint-3").mkdir()
    compare(*grid, "--keep_models")
    assert [path.name for path in folder.glob("checkpoint-*")] == []
    (folder / "checkpoint-3").mkdir()
    folder.with_name("half.done").mkdir()
    compare(*grid)
    assert list((tmp_path / "cells").iterdir()) == []


def test_only_one_comparison_at_a_time(compare, capsys, tmp_path):
    with FileLock(tmp_path / ".lock"):
        compare("--methods", "bce", "--noises", "none", status=2)
    assert "no other comparison at work" in capsys.readouterr().err
