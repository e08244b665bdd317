"""The measurement of how label errors are found: its numbers by hand, and the whole of it with next to no training."""

import json
import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from hf_balancemix.reports.label_issues import LabelIssues
from tests.distributed.launch import ROOT

NAMES = ("ant", "bee")
CLEAN = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.uint8)
GIVEN = np.array([[0, 0], [0, 0], [1, 1], [0, 0]], np.uint8)  # (0, ant) and (1, bee) are wrong
SCORES = np.array([[0.9, 0.1], [0.2, 0.5], [0.6, 0.05], [0.1, 0.0]])


@pytest.fixture
def script():
    return SimpleNamespace(**runpy.run_path(str(ROOT / "recipes" / "label_errors.py")))


def test_measures(script):
    trained = []
    rows, classes = np.array([0, 2]), np.array([0, 1])
    empty = np.zeros(2, np.float32)
    issues = LabelIssues(rows, classes, GIVEN[rows, classes], empty, empty, empty, NAMES, ["a", "b", "c", "d"])

    def train(method, cost, name, rows):
        trained.append((method, rows["labels"]))

    lists = [[NAMES[k] for k in np.flatnonzero(row)] for row in GIVEN]
    cell = SimpleNamespace(
        labels=GIVEN, clean=CLEAN, rows=Dataset.from_dict({"labels": lists}), train=train, map_of=lambda trainer: 55.5
    )
    script.RANKINGS["fake"] = lambda cell, cost: script.Found(SCORES, issues)
    measured = script.measure(cell, "fake")
    # Ranks of the two errors are 1 and 3, so (1/1 + 2/3) / 2; one of the first two is an error.
    assert measured["average precision"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert (measured["precision at errors"], measured["errors"], measured["labels"]) == (50, 2, 8)
    assert (measured["suggested"], measured["suggested, right"], measured["errors, found"]) == (2, 50, 50)
    assert measured["map of bce on corrected"] == 55.5
    assert trained == [("bce", [["ant"], [], ["ant"], []])]


@pytest.mark.slow
def test_all_of_it(script, tmp_path, monkeypatch, capsys):
    main = script.main
    quick = (*script.OPTIONS, "--num_train_epochs", "2", "--warmup_epochs", "1")
    monkeypatch.setitem(main.__globals__, "OPTIONS", quick)
    monkeypatch.setitem(main.__globals__, "FOLDS", 2)
    words = ["--output_dir", str(tmp_path), "--noises", "flip:0.1", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["label_errors.py", *words])
    main()
    path = tmp_path / "results.jsonl"
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [run["ranking"] for run in runs] == list(script.RANKINGS)
    by_name = {run["ranking"]: run for run in runs}
    n = by_name["bce loss"]["labels"] / 17  # images
    assert n == 627
    # A step counts 3: two epochs of whole batches of 64, then all images once.
    assert by_name["bce loss"]["passes"] == 3 * 2 * 9 * 64 + n
    assert all(run["errors"] == runs[0]["errors"] > 0 for run in runs)
    assert "map of bce on corrected" in by_name["balancemix"]
    assert "map of bce on corrected" in by_name["cleanlab, bce"]
    before = path.read_bytes()
    capsys.readouterr()
    main()  # nothing is left to do
    assert path.read_bytes() == before
    said = capsys.readouterr().out
    assert "| flip:0.1 |" in said
    assert "bce loss: 1.00\n" in said
