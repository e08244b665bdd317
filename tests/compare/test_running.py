"""A whole comparison as a user starts it: killed and started again, several at a time, with failing runs."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hf_balancemix.training.checkpoints import complete_checkpoints
from tests.distributed.launch import ROOT, environment, kill_family, launcher
from tests.layouts.folder import write_folder

QUICK = ["--backbone=small_resnet", "--pretrained=False", "--image_size=16", "--use_cpu", "--num_train_epochs=2"]
QUICK += [
    "--warmup_epochs=1",
    "--total_batch_size=4",
    "--save_strategy=steps",
    "--save_steps=3",
    "--augmentation=affine",
]
# Refreshed after each of its epochs, so that diagnostics of several are there before the last.
GRID = ["--methods", "bce", "balancemix", "--noises", "none", "mislabel:0.4", "--seeds", "2", "--num_train_epochs=4"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "pictures", splits={"train": 24, "test": 12}, size=16)


def words(pictures, out, *more):
    return ["folder", f"--data_dir={pictures}", f"--output_dir={out}", *QUICK, *GRID, *more]


def start(command, **kwargs):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment(), **streams, **kwargs)


def run(command, status=0):
    process = start(command)
    printed = process.communicate(timeout=500)[0]
    assert process.returncode == status, printed[-6000:]
    return printed


def wait_for(process, happened):
    while not happened():
        assert process.poll() is None, process.stdout.read()[-6000:]
        time.sleep(0.002)


SCRIPT = [sys.executable, str(ROOT / "recipes" / "compare.py")]


@pytest.fixture(scope="module")
def alone(pictures, tmp_path_factory):
    """The results of the undisturbed comparison."""
    out = tmp_path_factory.mktemp("alone")
    printed = run([*SCRIPT, *words(pictures, out)])
    assert "balancemix" in printed
    assert "mislabel" in printed
    assert not list((out / "cells").iterdir())  # no model is kept unless asked for
    return (out / "results.jsonl").read_bytes()


@pytest.mark.slow
def test_killed_in_the_middle_of_a_run_and_started_again(pictures, alone, tmp_path):
    results, cells = tmp_path / "results.jsonl", tmp_path / "cells"
    process = start([*SCRIPT, *words(pictures, tmp_path)])
    # Of 24 steps, in the fourth epoch.
    wait_for(process, lambda: results.exists() and list(cells.glob("balancemix-*/checkpoint-21/trainer_state.json")))
    kill_family(process)
    process.stdout.close()
    before = results.read_bytes()
    done = [json.loads(line)["cell"] for line in before.splitlines()]
    assert 0 < len(done) < 8
    (broken,) = [folder for folder in cells.iterdir() if folder.name.rpartition("-")[2] not in done]
    state = json.loads((complete_checkpoints(broken)[-1] / "trainer_state.json").read_text("utf-8"))
    assert len([entry for entry in state["log_history"] if "refresh_seconds" in entry]) >= 2
    printed = run([*SCRIPT, *words(pictures, tmp_path)])
    assert f"8 runs, {len(done)} of them finished earlier" in printed
    assert results.read_bytes() == alone
    times = {t["cell"]: t for t in map(json.loads, (tmp_path / "times.jsonl").read_text("utf-8").splitlines())}
    assert [cell for cell, line in times.items() if line["resumed"]] == [broken.name.rpartition("-")[2]]
    assert len(times) == 8


@pytest.mark.slow
def test_several_at_a_time_interrupted_with_a_dying_process_give_the_same_file(pictures, alone, tmp_path):
    command = [*SCRIPT, *words(pictures, tmp_path, "--parallel=2")]
    # A shell that runs the tests in the background has SIGINT ignored, and children inherit that.
    process = start(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_for(process, lambda: list((tmp_path / "cells").glob("*/checkpoint-*/trainer_state.json")))
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "Interrupted. To go on: the same command" in printed
    assert "Traceback" not in printed
    assert not psutil.wait_procs(workers, timeout=10)[1]
    begun = set((tmp_path / "cells").iterdir())

    process = start(command)

    def new():
        return {
            path.parent for path in (tmp_path / "cells").glob("*/checkpoint-*") if path.parent.suffix != ".done"
        } - begun

    wait_for(process, new)
    log = tmp_path / "logs" / f"{new().pop().name}.log"
    for worker in psutil.Process(process.pid).children():
        if any(Path(file.path) == log for file in worker.open_files()):
            worker.kill()
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    ended = re.search(r"1 runs failed.*the process was ended by signal 9.*\n\s+(\S+\.log)", printed, re.S)
    assert Path(ended[1]) == log
    assert log.is_file()
    assert len((tmp_path / "results.jsonl").read_bytes().splitlines()) == 7  # the others were not kept from running

    run(command)
    assert (tmp_path / "results.jsonl").read_bytes() == alone


@pytest.mark.slow
def test_two_processes_run_each_cell_together(pictures, alone, tmp_path):
    run([*launcher(2), *SCRIPT[1:], *words(pictures, tmp_path, "--methods", "balancemix", "--seeds", "1")])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_bytes().splitlines()]
    assert len(lines) == 2
    assert {line["cell"] for line in lines} < {json.loads(line)["cell"] for line in alone.splitlines()}
    times = [json.loads(line) for line in (tmp_path / "times.jsonl").read_bytes().splitlines()]
    assert [line["processes"] for line in times] == [2, 2]
