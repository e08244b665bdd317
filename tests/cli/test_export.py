"""The command `hf-balancemix export`: one file, what it says of it, and one line for every mistake."""

import re
import subprocess
import sys

import onnxruntime
import pytest
import torch
from PIL import Image
from transformers.utils import logging

from hf_balancemix import export
from hf_balancemix.cli.main import main
from tests import tiny
from tests.distributed.launch import environment

RUN = "runs/mine/balancemix-seed0"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A trained model as a recipe leaves it, and photos; the working directory."""
    model = tiny.tiny_vit()
    model.config.problem_type = "multi_label_classification"
    model.config.id2label = dict(enumerate(tiny.NAMES))
    for folder in (RUN, f"{RUN}/checkpoint-90"):
        model.save_pretrained(tmp_path / folder)
        tiny.processor().save_pretrained(tmp_path / folder)
    (tmp_path / "photos 猫").mkdir()
    for number, picture in enumerate(tiny.tiny_dataset(10)["image"]):
        picture.save(tmp_path / "photos 猫" / f"a::[{number}] *.png")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    verbosity = logging.get_verbosity()
    yield tmp_path
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def test_a_real_run(workspace):
    words = [sys.executable, "-m", "hf_balancemix", "export", RUN, "--images", "photos 猫", "--out", "out/é 1.onnx"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path = workspace / "out" / "é 1.onnx"
    lines = done.stdout.splitlines()
    assert lines[0] == f"file:    out/é 1.onnx, {path.stat().st_size / 1e6:.1f} MB"
    assert lines[1] == "input:   pixel_values (batch, 3, 16, 16); output: logits (batch, 5)"
    assert re.fullmatch(
        r"check:   logits differ by at most \d\.\de-\d\d \(allowed: 1e-04; relative beyond ±1\)", lines[2]
    )
    assert lines[3] == "         in batches of 1 and 8, 8 of 10 from photos 猫"
    assert re.fullmatch(r"latency: PyTorch \d+\.\d ms, ONNX Runtime \d+\.\d ms", lines[4])
    assert "one image on the CPU, " in lines[5]
    assert "median of 11 runs" in lines[5]
    assert "Warning" not in done.stderr
    assert "Traceback" not in done.stderr
    assert [found.name for found in path.parent.iterdir()] == ["é 1.onnx"]
    pixels = torch.zeros(7, 3, 16, 16).numpy()
    assert onnxruntime.InferenceSession(path).run(None, {"pixel_values": pixels})[0].shape == (7, 5)


def test_the_example_image_of_the_run_else_drawn_pictures(workspace, capsys):
    main(["export", RUN, "--to", "torch_export"])
    said = capsys.readouterr().out
    assert said.startswith("file:    model.pt2, ")
    assert "in batches of 1 and 4, drawn pictures" in said
    assert "torch.export " in said
    Image.new("RGB", (20, 30), "red").save("runs/mine/example.png")
    main(["export", "--to", "torch_export", "--overwrite", f"{RUN}/checkpoint-90"])
    place = workspace.resolve() / "runs" / "mine" / "example.png"
    assert f"in batches of 1 and 2, 1 of 1 from {place}\n" in capsys.readouterr().out
    assert torch.export.load("model.pt2")


def fail(capsys, *words):
    """Run a command that must fail; the line on stderr."""
    with pytest.raises(SystemExit) as stopped:
        main(["export", *words])
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


MISTAKES = {
    "": "required: CHECKPOINT. hf-balancemix export --help",
    f"{RUN} --too onnx": "Unknown option --too (did you mean '--to'?).",
    f"{RUN} --to onx": "--to: invalid choice: 'onx'",
    f"{RUN} --out x.pt2": "ends in .onnx for the format onnx, found 'x.pt2'. Give it that ending, or choose",
    f"{RUN} --out old.onnx": "Expected no file at 'old.onnx', where the model goes, found one.",
    f"{RUN} --out photos": "ends in .onnx for the format onnx, found 'photos'.",
    f"{RUN} --out old.onnx/x.onnx": "can be written, found 'old.onnx/x.onnx' (",
    f"{RUN} --out /proc/x.onnx": "can be written, found '/proc/x.onnx' (",
    f"{RUN} --images phots": "found no file or folder that is called 'phots'",
    f"{RUN} --images runs": "Expected images in 'runs', found no file that ends in",
    f"{RUN} --images bad": "bad/1.png'",
    "runs/mine": "found no config.json in 'runs/mine'. Did you mean 'runs/mine/balancemix-seed0'",
    "runs/mien/x": "found no folder 'runs/mien/x' (did you mean 'mine'?). Check the path.",
    "old.onnx": "Expected the folder of a checkpoint, found the file 'old.onnx'.",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line(words, workspace, capsys):
    (workspace / "old.onnx").write_bytes(b"old")
    assert MISTAKES[words] in fail(capsys, *words.split())
    assert (workspace / "old.onnx").read_bytes() == b"old"
    assert not list(workspace.rglob(".export-*"))


def test_a_file_that_fails_the_check_and_ctrl_c_leave_nothing(workspace, capsys, monkeypatch):
    load = export.load
    monkeypatch.setattr(export, "load", lambda path, to: lambda pixels: load(path, to)(pixels) + 1)
    line = fail(capsys, RUN, "--to", "torch_export")
    assert re.search(r"found a difference of [01]\S* in a batch of 1\. No file was kept\.", line)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "load", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["export", RUN, "--to", "torch_export"])
    assert stopped.value.code == 130
    assert "Interrupted. No file was written." in capsys.readouterr().err
    assert sorted(path.name for path in workspace.iterdir()) == ["bad", "photos 猫", "runs"]


def test_the_help_says_what_the_file_holds(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["export", "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for part in ("--to {onnx,torch_export}", "model.onnx or model.pt2", "pixel_values (batch, 3, height, width)"):
        assert part in said
