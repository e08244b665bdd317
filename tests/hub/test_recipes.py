"""Recipes and commands with the Hub: data sets, backbones and checkpoints by name, pushes of runs that go wrong."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from huggingface_hub import ModelCard

from hf_balancemix.recipe import RECIPES
from hf_balancemix.recipe.cards import push_kept
from hf_balancemix.recipe.command import read_command, shown_line
from tests.distributed.launch import ROOT, environment, launcher
from tests.hub.server import Fault
from tests.hub.test_push import MODEL, paths, trainer_for
from tests.tiny import refused, tiny_dataset

QUICK = [
    "--use_cpu",
    "--num_train_epochs",
    "2",
    "--warmup_epochs",
    "1",
    "--image_size",
    "16",
    "--total_batch_size",
    "16",
]
QUICK += ["--augmentation", "none", "--backbone", "tester/start"]


def command(folder, *options, processes=1):
    words = [str(ROOT / "recipes" / "folder.py"), *QUICK, "--dataset", "tester/pictures", "--output_dir", str(folder)]
    return [*launcher(processes), *words, *options]


def run(words, check=True):
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.fixture
def stocked(hub, tmp_path):
    """The stand-in with a data set of two Parquet files and a model to start from."""
    for split, seed in (("train", 0), ("test", 1)):
        file = tmp_path / f"{split}.parquet"
        tiny_dataset(seed=seed).remove_columns("clean_labels").to_parquet(file)
        hub.create("dataset", "tester/pictures", {f"data/{split}-00000-of-00001.parquet": file.read_bytes()})
    trainer_for(tmp_path / "start", hub_strategy="end", eval_strategy="no").push_to_hub()
    assert paths(hub.model("tester/start").files) == MODEL
    return hub


@pytest.mark.slow
def test_data_set_backbone_and_checkpoint_by_name(stocked, tmp_path):
    out = tmp_path / "out"
    done = run(command(out, "--push_to_hub", "--hub_model_id", "pictures", "--license", "mit"))
    assert "balancemix, seed 0: pushed to http" in done.stderr + done.stdout
    files = stocked.model("tester/pictures").files
    assert paths(files) == MODEL | {"results.json"}
    assert str(tmp_path).encode() not in b"".join(files.values())
    [entry] = json.loads(files["results.json"])["runs"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.datasets == ["tester/pictures"]
    assert card.data.base_model == "tester/start"
    assert card.data.license == "mit"
    assert {result.dataset_type for result in card.data.eval_results} == {"tester/pictures"}
    assert card.data.eval_results[0].metric_value == round(entry["map"], 2)
    assert 'model="tester/pictures"' in card.text
    assert "--output_dir path/to/out" in card.text
    picture = tmp_path / "picture.png"
    tiny_dataset()[0]["image"].save(picture)
    scores = tmp_path / "scores.csv"
    run([sys.executable, "-m", "hf_balancemix", "predict", "tester/pictures", str(picture), "--output", str(scores)])
    assert len(scores.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_recipe_ends_well_when_pushes_fail(stocked, tmp_path, processes):
    stocked.faults = [Fault("POST", "/api/repos/create", 500, math.inf)]
    out = tmp_path / "out"
    done = run(command(out, "--push_to_hub", "--hub_model_id", "tester/m", processes=processes))
    assert done.stderr.count("The training goes on") == 1
    *_, reason, last = done.stderr.rstrip().splitlines()
    folder = out / "balancemix-seed0"
    assert reason.startswith(f"The model is in {folder}, but not on the Hub: the Hub answered 500")
    assert last.split() == ["hf-balancemix", "push", str(folder), "tester/m"]
    assert (folder / "model.safetensors").is_file()
    assert (out / "results.json").is_file()
    # A later run of the same command pushes what is finished.
    stocked.faults = []
    if processes == 1:
        done = run(command(out, "--push_to_hub", "--hub_model_id", "tester/m", "--resume"))
        assert "finished earlier, kept" in done.stdout + done.stderr
        assert paths(stocked.model("tester/m").files) == MODEL | {"results.json"}


@pytest.mark.slow
def test_killed_during_a_push_and_resumed(stocked, tmp_path):
    stocked.faults = [Fault("PUT", "^/lfs/", "hang", math.inf)]
    out = tmp_path / "out"
    options = ["--push_to_hub", "--hub_model_id", "tester/m", "--hub_strategy", "checkpoint", "--save_steps", "1"]
    options += ["--save_strategy", "steps", "--num_train_epochs", "20"]  # long enough to be killed in the middle
    process = subprocess.Popen(
        command(out, *options), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seen = len(stocked.requests)
    while not any(path.startswith("/lfs/") for _, path in stocked.requests[seen:]):
        assert process.poll() is None
        time.sleep(0.02)
    uploads = psutil.Process(process.pid).children(recursive=True)
    assert uploads
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not psutil.wait_procs(uploads, timeout=10)[1]  # the upload ends with the training
    assert not (out / "results.json").exists(), "the run ended before it was killed"
    assert paths(stocked.model("tester/m").files) == set()  # nothing, and no half of it
    stocked.faults = []
    run(command(out, *options, "--resume"))
    files = stocked.model("tester/m").files
    assert MODEL | {"results.json", "last-checkpoint/label_state.safetensors"} <= paths(files)
    [entry] = json.loads(files["results.json"])["runs"]
    assert entry["resumed"]
    assert files["model.safetensors"] == (out / "balancemix-seed0" / "model.safetensors").read_bytes()
    assert not list((out / "balancemix-seed0").glob("_push-*"))


def test_several_runs_get_repositories_of_their_own():
    def names(*words):
        options = ["--output_dir", "runs/mine", "--push_to_hub", *words]
        return [plan.args.hub_model_id for plan in read_command(RECIPES["digits"], options).plans("digits")]

    assert names("--method", "bce") == ["mine-bce-seed0"]
    assert names("--method", "bce", "--hub_model_id", "me/it") == ["me/it"]
    assert names("--methods", "bce", "mixup", "--hub_model_id", "me/it") == ["me/it-bce-seed0", "me/it-mixup-seed0"]
    refused(ValueError, ["Expected a name on the Hub", "'not a name"], names, "--hub_model_id", "not a name")
    refused(ValueError, ["Expected --push_to_hub with training"], names, "--do_eval")
    refused(ValueError, ["'Apache-2'", "did you mean 'apache-2.0'"], names, "--license", "Apache-2")
    refused(ValueError, ["Expected one of", "sometimes"], names, "--hub_strategy", "sometimes")


def test_a_kept_run_whose_folder_is_gone_stops_no_other(tmp_path):
    options = ["--method", "bce", "--push_to_hub", "--output_dir", str(tmp_path)]
    [plan] = read_command(RECIPES["digits"], options).plans("digits")
    assert "found no folder" in push_kept(plan)


def test_the_command_on_a_card_names_neither_token_nor_folders():
    words = ["--data_dir", "/home/jane/my coco", "--hub_token", "hf_x", "--hub-token=hf_y", "--output_dir=/tmp/out"]
    assert shown_line("COCO", [*words, "--seed", "1"], 2) == (
        "torchrun --nproc_per_node 2 recipes/coco.py --data_dir 'path/to/my coco' --output_dir=path/to/out --seed 1"
    )
