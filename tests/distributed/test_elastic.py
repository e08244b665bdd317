"""One of two ranks dies: torchrun ends the other and starts both again, and the run goes on as if nothing had been."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
from safetensors.torch import load_file

from tests.distributed.launch import ROOT, environment, kill_family

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max_restarts=3"]
TORCHRUN += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
# Else the new processes find the addresses of the dead ones in the launcher's store, and gloo fails to connect.
FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
OPTIONS = ["--methods", "balancemix", "--num_train_epochs", "4", "--warmup_epochs", "1", "--use_cpu", "--resume"]
OPTIONS += ["--save_strategy", "steps", "--save_steps", "5"]  # in the midst of epochs


def start(folder, log):
    """torchrun of `recipes/digits.py` with two ranks."""
    command = [*TORCHRUN, "recipes/digits.py", *OPTIONS, "--output_dir", str(folder)]
    env = environment() | FRESH_STORE
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)


def kill_rank(agent, rank, checkpoint, deadline=400):
    """SIGKILL to one rank as soon as a checkpoint is there, in the midst of an epoch."""
    end = time.monotonic() + deadline
    while not (checkpoint / "trainer_state.json").is_file():
        assert agent.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < end, "the run did not reach its checkpoint"
        time.sleep(0.005)
    ranks = {child.environ().get("RANK"): child for child in psutil.Process(agent.pid).children()}
    ranks[str(rank)].send_signal(signal.SIGKILL)


def outcome(folder):
    """All that a run leaves which does not tell the time."""
    run = json.loads((folder / "results.json").read_text(encoding="utf-8"))["runs"][0]
    epochs = [{k: v for k, v in epoch.items() if k != "refresh_seconds"} for epoch in run["epochs"]]
    model = folder / "balancemix-seed0"
    weights = load_file(model / "model.safetensors")
    state = load_file(model / "_label_state" / "label_state.safetensors")
    return run["map"], epochs, {k: v.tolist() for k, v in weights.items()}, {k: v.tolist() for k, v in state.items()}


@pytest.mark.slow
def test_one_of_two_ranks_dies_and_the_run_is_the_same(tmp_path):
    alone = start(tmp_path / "alone", tmp_path / "alone.log")
    try:
        assert alone.wait(timeout=400) == 0, (tmp_path / "alone.log").read_text(encoding="utf-8")[-6000:]
    finally:
        if alone.poll() is None:
            kill_family(alone)
    agent = start(tmp_path / "killed", tmp_path / "killed.log")
    try:
        kill_rank(agent, 1, tmp_path / "killed" / "balancemix-seed0" / "checkpoint-15")
        assert agent.wait(timeout=400) == 0, (tmp_path / "killed.log").read_text(encoding="utf-8")[-6000:]
    finally:
        if agent.poll() is None:
            kill_family(agent)
    log = (tmp_path / "killed.log").read_text(encoding="utf-8")
    # Killed once, begun twice: the first epoch was not done again.
    assert (log.count("exitcode: -9"), log.count("627 training"), log.count("epoch 1, mAP")) == (1, 2, 1)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "alone")
