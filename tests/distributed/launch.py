"""Starting `run_training` with one process or several, and killing it from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
# Images of a batch, accumulated batches and processes: always 16 images in an optimiser step.
SETTINGS = {"1 x 16": (16, 1, 1), "4 x 4 accumulated": (4, 4, 1), "2 processes x 8": (8, 1, 2)}


def launcher(processes):
    """The words that start a script, or ``-m module``, in one process or with torchrun in several."""
    if processes == 1:
        return [sys.executable]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]


def command(job, module="run_training"):
    return [*launcher(job.get("world_size", 1)), "-m", f"tests.distributed.{module}", json.dumps(job)]


def environment():
    # One thread each: two processes with two threads each crawl on two cores. No device: the tests compare CPU bits.
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def run(job, timeout=300, module="run_training"):
    """Run to the end; the results of all ranks, in order."""
    words, env = command(job, module), environment()
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{job}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    folder = Path(job["output_dir"])
    return [
        json.loads((folder / f"result-{rank}.json").read_text(encoding="utf-8"))
        for rank in range(job.get("world_size", 1))
    ]


def records(job, rank=0):
    path = Path(job["output_dir"]) / f"record-{rank}.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def norms_of(job):
    """Gradient norms, step by step."""
    return [entry["norm"] for entry in records(job) if "norm" in entry]


def all_close(norms, steps):
    """The norms by setting are those of one process and one batch, over so many steps."""
    print(f"gradient norms: {norms}")
    reference = norms["1 x 16"]
    assert len(reference) == steps
    assert min(reference) > 0
    for name, values in norms.items():
        assert values == pytest.approx(reference, rel=1e-5), name


def kill_and_resume(job, folder, kill, steps):
    """Run once alone, and once killed after step ``kill`` of ``steps`` and resumed: weights and state are the same.

    Returns the results of both, and which steps the resumed run made.
    """
    alone = run({**job, "output_dir": str(folder / "alone")})
    killed = {**job, "output_dir": str(folder / "killed"), "pause": 0.1}
    print(f"killing after step {kill} of {steps}: {job}")
    assert run_and_kill(killed, kill) != 0
    assert not (folder / "killed" / "result-0.json").exists(), "the run ended before it was killed"
    lines_before = len(records(killed))
    resumed = run({**killed, "pause": 0, "resume": True})
    for result in resumed:
        assert result["weights"] == alone[0]["weights"]
        assert result["state"] == alone[0]["state"]
    again = [entry["step"] for entry in records(killed)[lines_before:] if "step" in entry]
    # It really went on in the middle: some steps were not done again.
    assert 0 < again[0] <= kill + 1
    assert again == list(range(again[0], steps))
    return alone, resumed, again


def run_and_kill(job, step, timeout=300):
    """Start, wait until optimiser step ``step`` has begun, then SIGKILL the launcher and all its processes."""
    process = subprocess.Popen(
        command(job),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout
    while not any(entry.get("step", -1) >= step for entry in records(job)):
        assert process.poll() is None, process.stdout.read().decode()[-8000:]
        assert time.monotonic() < deadline, "the run did not reach its step"
        time.sleep(0.005)
    kill_family(process)
    process.stdout.close()
    return process.returncode


def kill_family(process):
    """SIGKILL to a process and all that it started, until none is left."""
    # torchrun gives each worker a session of its own: killing its group alone would leave the workers training on.
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, alive
