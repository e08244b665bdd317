"""Machines that do not share the output folder are told so, and do not resume from different steps."""

import subprocess

import pytest

from tests.distributed.launch import ROOT, command, environment


def start(job):
    done = subprocess.run(
        command(job), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_own_output_folders(tmp_path):
    options = {"num_train_epochs": 1, "save_strategy": "epoch"}
    job = {"output_dir": str(tmp_path), "model": "vit", "world_size": 2, "options": options, "own_folders": True}
    code, text = start(job)
    assert code == 0, text[-4000:]
    assert text.count("Expected one `output_dir` for all processes, found that 1 of 2 do not see") == 1
    assert [*(tmp_path / "0").glob("checkpoint-*")]
    assert not [path for rank in (0, 1) for path in (tmp_path / str(rank)).glob(".shared-*")]

    code, text = start(job | {"resume": True})
    assert code != 0
    assert text.count("ValueError: Expected the same checkpoint on all processes, found on process 0") == 2
    assert "Put `output_dir` on a file system that all machines share" in text
