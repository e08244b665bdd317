"""`recipes/compare.py`, `hf-balancemix compare` and what they need of an installed package."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from hf_balancemix.cli.main import main as hf_balancemix
from hf_balancemix.compare import main
from hf_balancemix.compare.command import DESCRIPTION
from hf_balancemix.compare.grid import presets
from hf_balancemix.reports.paper import paper_results
from tests.distributed.launch import ROOT, environment

PAPER = "hf_balancemix/data_files/paper_results.csv"


def test_both_doors_lead_to_the_same(capsys):
    printed = []
    for door in (main, lambda words: hf_balancemix(["compare", *words])):
        with pytest.raises(SystemExit) as stopped:
            door(["digits", "--help"])
        assert stopped.value.code == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    for option in ("--noises", "--parallel", "--dry_run", "--show", "--format", "--keep_models", "--learning_rate"):
        assert option in printed[0]
    assert "1,797 handwritten digits" in printed[0]
    for refused in ("--method ", "--noise ", "--noise_rate", "--resume", "--do_train", "--checkpoint"):
        assert refused not in printed[0]
    assert printed[0].count("--seeds") == 2  # an example, and its line
    assert "[runs/compare/digits]" in printed[0]
    assert "--deepspeed" not in printed[0]
    with pytest.raises(SystemExit):
        main(["digits", "--help-all"])
    assert "--deepspeed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        hf_balancemix(["--help"])
    assert DESCRIPTION[:25] in capsys.readouterr().out


@pytest.mark.parametrize("words", [["compar"], ["compare", "digit"], ["compare", "digits", "--nois=none"]])
def test_a_mistake_is_one_line(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        hf_balancemix(words)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert "did you mean" in printed


def test_data_that_are_not_there(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["voc", "--config=table10", "--dry_run", f"--output_dir={tmp_path / 'out'}", "--backbone=small_resnet"])
    assert "VOCdevkit" in capsys.readouterr().err


def test_dry_run(capsys, tmp_path):
    words = ["digits", "--methods", "bce", "--noises", "none", "flip:0.2", "--seeds", "3", "--num_train_epochs=7"]
    main([*words, f"--output_dir={tmp_path}", "--dry_run", "--use_cpu", "--parallel=2"])
    printed, beside = capsys.readouterr()
    assert "627 training and 597 test images" in beside  # standard output is for what is asked for
    assert "627" not in printed
    row = next(line.split() for line in printed.splitlines() if line.startswith("bce "))
    assert row[1:4] == ["6", "0", "378"]  # 9 steps an epoch
    assert row[5] == "s"
    assert "a few steps" in printed
    assert "to go: 6 runs, 378 optimiser steps" in printed
    assert re.search(r"Disk: about \d+ MB .* \d+ MB of models", printed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_papers_numbers_and_grids_are_in_wheel_and_sdist(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "hf_balancemix", source / "hf_balancemix", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta as b; b.build_sdist('../out'); b.build_wheel('../out')"
    (tmp_path / "out").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (sdist,), (wheel,) = (tmp_path / "out").glob("*.tar.gz"), (tmp_path / "out").glob("*.whl")
    with tarfile.open(sdist) as archive:
        assert any(name.endswith(PAPER) for name in archive.getnames())
        assert any(name.endswith("data_files/tables/table1.yaml") for name in archive.getnames())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    read = (
        "from hf_balancemix.reports import paper\n"
        "from hf_balancemix.compare.grid import presets, find_grid, read_grid\n"
        "print(paper.__file__, len(paper.paper_results()), len([read_grid(find_grid(name)) for name in presets()]))"
    )
    own = {**environment(), "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", read], cwd=tmp_path, env=own, capture_output=True, text=True, check=True
    )
    place, count, grids = done.stdout.split()
    assert int(grids) == len(presets())
    assert place.startswith(str(tmp_path / "installed"))
    assert int(count) == len(paper_results()) > 500
