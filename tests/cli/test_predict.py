"""The command `hf-balancemix predict`: from files to a file of scores, and one line for every mistake."""

import configparser
import csv
import importlib
import json
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline
from transformers.utils import logging

from hf_balancemix.cli.main import main
from hf_balancemix.version import __version__
from tests import tiny
from tests.distributed.launch import ROOT, environment

FILES = ("b.png", "a,b.png", 'say "hi" <b>.png', "two\nlines.png", "猫 😀.png", "[1] *.png", "a::b.png")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A trained model and pictures, as a user has them."""
    folder = tmp_path_factory.mktemp("workspace")
    model = tiny.tiny_vit()
    model.config.problem_type = "multi_label_classification"
    model.config.id2label = dict(enumerate(tiny.NAMES))
    with torch.no_grad():
        model.classifier.weight.mul_(100)
    run = folder / "runs" / "mine" / "balancemix-seed0"
    model.save_pretrained(run)
    tiny.processor().save_pretrained(run)
    (folder / "photos").mkdir()
    for picture, name in zip(tiny.tiny_dataset(len(FILES))["image"], FILES, strict=True):
        picture.save(folder / "photos" / name)
    (folder / "bad").mkdir()
    for name in ("1.png", "3.png"):
        Image.new("RGB", (20, 20)).save(folder / "bad" / name)
    for name in ("2.png", "4.png"):
        (folder / "bad" / name).write_bytes(b"no picture")
    return folder


@pytest.fixture(autouse=True)
def here(workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


MODEL = "runs/mine/balancemix-seed0"


def predict(*words, output):
    main(["predict", MODEL, *words, "--output", str(output), "--device", "cpu"])


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fail(capsys, *words):
    """Run a command that must fail; the line on stderr."""
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_a_real_run_scores_as_the_pipeline_does(workspace, tmp_path):
    words = [sys.executable, "-m", "hf_balancemix", "predict", MODEL, "photos", "--output", str(tmp_path / "a.csv")]
    done = subprocess.run(words, cwd=workspace, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"7 images scored, 0 skipped: {tmp_path / 'a.csv'}"
    assert "7/7" in done.stderr
    rows = read(tmp_path / "a.csv")
    assert [row["file"] for row in rows] == sorted(f"photos/{name}" for name in FILES)
    classify = pipeline("image-classification", model=MODEL, device="cpu")
    seen = set()
    for row in rows:
        stock = {e["label"]: e["score"] for e in classify(Image.open(row["file"]), top_k=None)}
        assert {name: float(row[name]) for name in tiny.NAMES} == pytest.approx(stock, abs=2e-3)
        seen.add(round(float(row["ant"]), 2))
    assert len(seen) >= 4  # rows that could not change places unseen


def test_names_travel_unharmed_in_the_order_given(tmp_path, capsys):
    names = [f"photos/{name}" for name in FILES]
    predict(*names, names[2], output=tmp_path / "a.csv")
    predict(*names, "--batch_size", "2", "--num_workers", "1", output=tmp_path / "new" / "a.jsonl")
    rows = read(tmp_path / "a.csv")
    with open(tmp_path / "new" / "a.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    assert [row.pop("file") for row in rows] == names == [line["file"] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        assert {name: float(p) for name, p in row.items()} == pytest.approx(line["scores"], abs=1e-5)
    assert capsys.readouterr().out.count("7 images scored, 0 skipped") == 2


def test_a_name_that_looks_like_an_address(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(workspace / "photos")
    main(["predict", f"../{MODEL}", "a::b.png", "--output", str(tmp_path / "a.csv")])
    assert [row["file"] for row in read(tmp_path / "a.csv")] == ["a::b.png"]


def test_options_may_stand_anywhere(tmp_path, capsys):
    names = ["photos/b.png", "photos/a,b.png"]
    output = str(tmp_path / "a.csv")
    main(["predict", "--batch_size=1", MODEL, names[0], "--output", output, names[1], "--device", "cpu"])
    main(["predict", MODEL, "--overwrite", "--output", output, "--", *names])
    assert [row["file"] for row in read(output)] == names
    main(["predict", MODEL, names[0], "--output", output, "--overwrite"])
    assert capsys.readouterr().out.endswith(f"1 image scored, 0 skipped: {output}\n")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_bad_image_ends_the_run_and_rows_stay(tmp_path, capsys, workers):
    output = str(tmp_path / "a.csv")
    words = ["predict", MODEL, "bad", "--output", output, "--batch_size", "1", "--num_workers", workers]
    line = fail(capsys, *words)
    assert "found '" in line
    assert "bad/2.png'" in line
    assert "--on_bad_image skip" in line
    assert line.endswith(f"The first 1 rows are in {output}.")
    assert [row["file"] for row in read(output)] == ["bad/1.png"]
    line = fail(capsys, "predict", MODEL, "bad/2.png", "--output", str(tmp_path / "none.csv"))
    assert line.endswith("No row was written.")
    assert not (tmp_path / "none.csv").exists()


def test_bad_images_can_be_skipped(tmp_path, capsys):
    predict("bad", "photos/b.png", "--on_bad_image", "skip", output=tmp_path / "a.csv")
    assert [row["file"] for row in read(tmp_path / "a.csv")] == ["bad/1.png", "bad/3.png", "photos/b.png"]
    said = capsys.readouterr()
    assert said.out == f"3 images scored, 2 skipped: {tmp_path / 'a.csv'}\n"
    last = said.err.splitlines()[-1]
    assert last.startswith("skipped 2 that cannot be read: '")
    assert "bad/2.png', '" in last
    assert last.endswith("bad/4.png'")
    line = fail(capsys, "predict", MODEL, "bad/2.png", "--on_bad_image", "skip", "--output", str(tmp_path / "b.csv"))
    assert "at least one readable image" in line
    assert not (tmp_path / "b.csv").exists()


def interrupted(error, batches=2):
    def predict_probs(model, processor, dataset, batch_size, num_workers, device):
        for start in range(0, batches * batch_size, batch_size):
            yield start, np.full((batch_size, len(tiny.NAMES)), 0.5, dtype=np.float32)
        raise error

    return predict_probs


def test_ctrl_c_keeps_the_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_balancemix.cli.predict.predict_probs", interrupted(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as stopped:
        predict("photos", "--batch_size", "3", output=tmp_path / "a.csv")
    assert stopped.value.code == 130
    assert [row["file"] for row in read(tmp_path / "a.csv")] == sorted(f"photos/{name}" for name in FILES)[:6]
    assert "Interrupted. What was written so far is kept." in capsys.readouterr().err


def test_a_full_device_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_balancemix.cli.predict.predict_probs", interrupted(torch.OutOfMemoryError("CUDA"), 0))
    line = fail(capsys, "predict", MODEL, "photos", "--batch_size", "512", "--output", str(tmp_path / "a.csv"))
    assert "Expected 512 images at once to fit into the memory of" in line
    assert line.endswith("Lower --batch_size.")


ONE = "photos/b.png"
MISTAKES = {
    "predikt x": "Expected a command, found 'predikt' (did you mean 'predict'?). hf-balancemix --help",
    "zzz": "Expected a command, found 'zzz'. hf-balancemix --help",
    "--verison": "Unknown option --verison (did you mean '--version'?). hf-balancemix --help",
    "predict": "required: CHECKPOINT, IMAGE. hf-balancemix predict --help",
    f"predict {MODEL}": "required: IMAGE. hf-balancemix predict --help",
    f"predict {MODEL} {ONE} --outptu x.csv": "Unknown option --outptu (did you mean '--output'?). hf-balanc",
    f"predict {MODEL} {ONE} --batch-size 4": "Unknown option --batch-size (did you mean '--batch_size'?)",
    f"predict {MODEL} {ONE} --over": "Unknown option --over",
    f"predict {MODEL} {ONE} -o x.csv": "Unknown option -o.",
    f"predict {MODEL} {ONE} --batch_size 0": "--batch_size: expected a whole number of at least 1, found '0'.",
    f"predict {MODEL} {ONE} --batch_size -4": "--batch_size: expected a whole number of at least 1, found '-4'.",
    f"predict {MODEL} {ONE} --num_workers two": "--num_workers: expected a whole number of at least 0, found 'two'.",
    f"predict {MODEL} {ONE} --batch_size": "--batch_size: expected one argument. hf-balancemix predict --help",
    f"predict {MODEL} {ONE} --on_bad_image skipp": "--on_bad_image: invalid choice: 'skipp'",
    f"predict {MODEL} {ONE} --output x.csv --device cudda": "--device auto or a device of this machine (cpu",
    f"predict {MODEL} {ONE} --output x.csv --device meta": "found 'meta'. Leave it out",
    f"predict {MODEL} {ONE} --output x.txt": "ends in .csv or .jsonl, found 'x.txt'.",
    f"predict {MODEL} {ONE} --output {ONE}/x.csv": "can be written, found 'photos/b.png/x.csv'",
    f"predict {MODEL} photos/c.png": "called 'photos/c.png' or fits it as a pattern (did you mean",
    f"predict {MODEL} runs": "Expected images in 'runs', found no file that ends in",
    f"predict runs/mine {ONE} --output x.csv": f"no config.json in 'runs/mine'. Did you mean '{MODEL}'?",
    f"predict ./runs/mime {ONE} --output x.csv": "no folder './runs/mime' (did you mean 'mine'?)",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(words, workspace, capsys):
    assert MISTAKES[words] in fail(capsys, *words.split(" "))
    assert {path.name for path in workspace.iterdir()} == {"runs", "photos", "bad"}  # nothing was written


def test_a_device_that_is_not_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    line = fail(capsys, "predict", MODEL, ONE, "--output", str(tmp_path / "a.csv"), "--device", "cuda:2")
    assert "one of the 2 devices of this machine, counted from 0, found 'cuda:2'" in line
    line = fail(capsys, "predict", MODEL, ONE, "--output", str(tmp_path / "a.csv"), "--device", "mps")
    assert "(cpu, cuda), found 'mps'" in line


def test_an_existing_file_needs_overwrite(tmp_path, capsys):
    output = tmp_path / "a.csv"
    output.write_text("mine")
    line = fail(capsys, "predict", MODEL, ONE, "--output", str(output))
    assert "found one." in line
    assert "--overwrite" in line
    assert output.read_text() == "mine"
    predict(ONE, "--overwrite", output=output)
    assert len(read(output)) == 1


def test_help_and_version(capsys):
    main([])
    assert "predict " in capsys.readouterr().out
    for words, shown in (
        (["--help"], "predict "),
        (["predict", "--help"], "example:\n  hf-balancemix predict "),
        (["--version"], f"hf-balancemix {__version__}\n"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 0
        assert shown in capsys.readouterr().out


def test_the_installed_command_is_this_function():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    name, target = setup["options.entry_points"]["console_scripts"].strip().split(" = ")
    module, function = target.split(":")
    assert name == "hf-balancemix"
    assert getattr(importlib.import_module(module), function) is main
