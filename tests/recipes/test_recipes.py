"""The recipes for real data, each on a tiny set in its official layout: train, kill, resume, evaluate, predict."""

import csv
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from hf_balancemix.recipe import main
from recipes import coco, deepfashion, folder, voc
from tests.distributed.launch import ROOT, environment, kill_family, launcher
from tests.layouts.coco import write_coco
from tests.layouts.deepfashion import FOLDER, write_deepfashion
from tests.layouts.folder import labels_of_row, write_folder
from tests.layouts.voc import write_voc

QUICK = ["--backbone=small_resnet", "--image_size=32", "--use_cpu", "--num_train_epochs=4", "--warmup_epochs=1"]
QUICK += ["--total_batch_size=8", "--save_strategy=steps", "--save_steps=2"]


def coco_files(root):
    """The recipe, its folder, and by image file the classes present and those that do not count."""
    truth = write_coco(root, train=40, val=16)["test"]
    images = json.loads((root / "annotations" / "instances_val2017.json").read_text(encoding="utf-8"))["images"]
    names = {image["id"]: str(root / "val2017" / image["file_name"]) for image in images}
    return coco.RECIPE, root, {names[i]: (present, set()) for i, present in truth.items() if present}


def voc_files(root):
    truth = write_voc(root)[2007]["test"]
    files = {}
    for image, objects in truth.items():
        easy = {name for name, difficult in objects if not difficult}
        path = root / "VOCdevkit" / "VOC2007" / "JPEGImages" / f"{image}.jpg"
        files[str(path)] = (easy, {name for name, _ in objects} - easy)
    return voc.RECIPE, root, files


def deepfashion_files(root):
    truth = write_deepfashion(root)["test"]
    return deepfashion.RECIPE, root, {str(root / FOLDER / "Img" / f): (set(c), set()) for f, c in truth.items()}


def folder_files(root):
    splits = {"train": 24, "test": 12}
    write_folder(root, splits=splits, size=32)
    files = {str(root / "test" / f"{row}.png"): (set(labels_of_row(row)), set()) for row in range(splits["test"])}
    return folder.RECIPE, root, files


def map_of_scores(path, files):
    """MAP of a file of scores by scikit-learn, from what the layout's writer says about its pictures."""
    with Path(path).open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert {row["file"] for row in rows} == set(files)
    values = []
    for name in (name for name in rows[0] if name != "file"):
        counted = [row for row in rows if name not in files[row["file"]][1]]
        labels = [name in files[row["file"]][0] for row in counted]
        if any(labels):
            values.append(average_precision_score(labels, [float(row[name]) for row in counted]))
    return 100 * float(np.mean(values))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "processes"), [(coco_files, 2), (voc_files, 1), (deepfashion_files, 1), (folder_files, 2)]
)
def test_train_kill_resume_evaluate_predict(layout, processes, tmp_path, capsys):
    recipe, data, files = layout(tmp_path / "data")
    out = tmp_path / "out"
    options = [f"--data_dir={data}", f"--output_dir={out}", "--noise=mislabel", "--noise_rate=0.2", *QUICK]
    script = ROOT / "recipes" / f"{recipe.name.lower()}.py"
    command = [*launcher(processes), str(script), *options]
    started = {"cwd": ROOT, "env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, **started)
    run = out / "balancemix-seed0"
    while not list(run.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.stdout.read()[-6000:]
        time.sleep(0.005)
    kill_family(process)
    process.stdout.close()
    assert not (out / "results.json").exists()

    done = subprocess.run([*command, "--resume", "--do_train", "--do_predict"], check=False, **started)
    assert done.returncode == 0, done.stdout[-6000:]
    (entry,) = json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"]
    assert entry["resumed"]
    assert entry["settings"]["images_per_step"] == 8
    assert [epoch["epoch"] for epoch in entry["epochs"]] == [1, 2, 3, 4]
    assert "label_precision" in entry["epochs"][-1]
    assert entry["map"] == pytest.approx(entry["epochs"][-1]["map"], abs=1e-6)
    assert map_of_scores(run / "predictions.csv", files) == pytest.approx(entry["map"], abs=1e-6)

    (run / "predictions.csv").unlink()
    main(recipe, [*options, "--do_eval", "--do_predict"])
    evaluated = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluated["map"] == pytest.approx(entry["map"], abs=1e-6)
    assert evaluated["images"] == len(files)
    assert map_of_scores(run / "predictions.csv", files) == pytest.approx(entry["map"], abs=1e-6)
    printed = capsys.readouterr().out
    assert f"test mAP {entry['map']:.1f}" in printed
    # Any other checkpoint too: here one of the run's own.
    (checkpoint,) = run.glob("checkpoint-*")
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == state["max_steps"]  # the last one stays, not the best
    main(recipe, [*options, "--do_eval", f"--checkpoint={checkpoint}"])
    assert json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["checkpoint"] == str(checkpoint)
