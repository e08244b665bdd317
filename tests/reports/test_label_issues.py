"""Label issues: what is ranked where, by hand and by scikit-learn; what the files hold."""

import csv
import time

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

from hf_balancemix.label_state import LabelState
from hf_balancemix.reports.label_issues import (
    MISSING_POSITIVE,
    WRONG_POSITIVE,
    find_label_issues,
    label_statuses,
    plain_name,
    write_issues,
)
from tests.tiny import refused


def state(labels, mean, confidence, posterior=None, names=("cat", "dog")):
    labels, mean, confidence = (torch.tensor(table) for table in (labels, mean, confidence))
    return LabelState(
        labels=labels.to(torch.uint8),
        class_names=names,
        prepared_epoch=4,
        probs=torch.full(labels.shape, 0.25),
        posterior=mean if posterior is None else torch.tensor(posterior),
        posterior_mean=mean,
        posterior_count=torch.tensor([3]),
        confidence=confidence,
    )


def small():
    """Issues by hand: (2, cat) with 0.9; (1, dog), (1, cat), (0, dog) with 0.75, confidence 0.9, 0.7 and 0.2 off."""
    return state(
        labels=[[1, 0], [1, 0], [0, 1]],
        mean=[[0.5, 0.25], [0.25, 0.25], [0.1, 1.0]],
        confidence=[[0.0, 0.2], [0.3, 0.9], [0.5, 0.5]],
        posterior=[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]],
    )


def test_ranking_by_hand():
    issues = find_label_issues(small(), ["a.png", "b.png", "c.png"])
    table = issues.to_pandas()
    assert list(table.columns) == [
        *("index", "image", "class", "given", "suggested", "score", "posterior", "confidence", "kind"),
    ]
    ranked = table[["index", "image", "class", "given", "suggested", "kind"]].values.tolist()
    assert ranked == [
        [2, "c.png", "cat", 0, 1, MISSING_POSITIVE],
        [1, "b.png", "dog", 0, 1, MISSING_POSITIVE],
        [1, "b.png", "cat", 1, 0, WRONG_POSITIVE],
        [0, "a.png", "dog", 0, 1, MISSING_POSITIVE],
    ]
    assert table["score"].tolist() == pytest.approx([0.9, 0.75, 0.75, 0.75], abs=1 / 8190)
    # The last ones, not the means.
    assert table["posterior"].tolist() == pytest.approx([0.5, 0.4, 0.3, 0.2], abs=1 / 510)
    assert table["confidence"].tolist() == pytest.approx([0.5, 0.9, 0.3, 0.2], abs=1 / 510)
    assert issues.kinds().tolist() == table["kind"].tolist()
    assert len(issues) == 4
    assert find_label_issues(small(), above=0.8).to_pandas()["image"].tolist() == ["row 2"]
    assert len(find_label_issues(small(), above=0)) == 5  # (2, dog) has the score 0, which is not above 0


def test_states_of_older_runs_and_other_schedules():
    older = small()
    older.posterior_mean = older.posterior_count = older.confidence = None
    table = find_label_issues(older).to_pandas()
    # By the last posterior; (2, cat) has 0.5, which is not above 0.5.
    assert table[["index", "class"]].values.tolist() == [[0, "cat"], [0, "dog"], [1, "cat"], [1, "dog"]]
    assert table["confidence"].tolist() == [0.25] * 4  # the prediction on the plain image
    assert label_statuses(older, 0.9, "full").tolist() == [[2, 2], [2, 2], [2, 0]]
    # With ε = 0.85: confidence 0.0 and 0.9 re-label, 0.3, 0.2 and 0.5 do not; 0.5 is not above ½.
    assert label_statuses(small(), 0.85, "full").tolist() == [[1, 2], [2, 1], [2, 0]]


def test_average_precision_of_the_ranking_is_that_of_the_score():
    rng = np.random.default_rng(0)
    wrong = rng.random((200, 7)) < 0.2
    mean = np.clip(rng.normal(0.7 - 0.4 * wrong, 0.2), 0, 0.999).astype(np.float32)
    labels = rng.integers(0, 2, wrong.shape)
    built = state(labels.tolist(), mean.tolist(), mean.tolist(), names=tuple("abcdefg"))
    issues = find_label_issues(built, above=0)
    hits = wrong[issues.rows, issues.classes]
    assert len(hits) == wrong.size
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    expected = average_precision_score(wrong.ravel(), 1 - mean.ravel())
    assert precision[hits].mean() == pytest.approx(expected, abs=2e-3)
    assert 0.5 < expected < 0.999
    assert (np.diff(issues.scores) <= 0).all()
    assert (issues.given == labels[issues.rows, issues.classes]).all()


HOSTILE = ('=1+1"\n<b>', "'@x", "-Ωmega, 猫", "'s plain", "＋wide")


def test_names_travel_unharmed_and_are_no_formulas(tmp_path):
    k = len(HOSTILE)
    built = state(np.eye(k, dtype=int).tolist(), [[0.1] * k] * k, [[0.5] * k] * k, names=HOSTILE)
    ids = ["=HYPERLINK(A1)", "+a\r\nb.png", 'c ".png', "ordinary.png", "\tx.png"]
    paths = write_issues(find_label_issues(built, ids), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["label_issues.csv", "label_issues.parquet"]
    assert paths[0].read_bytes().startswith("\ufeff".encode())
    with open(paths[0], encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == k * k
    for column, names in (("class", HOSTILE), ("image", ids)):
        cells = [row[column] for row in rows]
        assert not any(cell[0] in "=+-@\t\r＋" for cell in cells)
        assert {plain_name(cell) for cell in cells} == set(names)
    assert {"'s plain", "''@x", "'＋wide"} < {row["class"] for row in rows}
    exact = pd.read_parquet(paths[1])
    assert set(exact["class"]) == set(HOSTILE)
    assert set(exact["image"]) == set(ids)
    assert [float(row["score"]) for row in rows] == pytest.approx(exact["score"].tolist(), rel=1e-6)


def test_no_issues_are_an_empty_table(tmp_path):
    clean = small()
    clean.posterior_mean = torch.ones(3, 2)
    issues = find_label_issues(clean)
    assert len(issues) == 0
    paths = write_issues(issues, tmp_path)
    assert len(pd.read_csv(paths[0])) == len(pd.read_parquet(paths[1])) == 0
    assert list(pd.read_csv(paths[0]).columns) == list(issues.to_pandas().columns)


def test_mistakes():
    bare = small()
    bare.reset()
    refused(ValueError, ["with posteriors", "found one without", "after `warmup_epochs`"], find_label_issues, bare)
    for above in (-0.1, 1, float("nan")):
        refused(ValueError, ["as `above`", repr(above)], find_label_issues, small(), above=above)
    refused(ValueError, ["Expected 3 image_ids", "found 2"], find_label_issues, small(), ["a", "b"])


def test_a_large_state_takes_seconds(tmp_path):
    generator = torch.Generator().manual_seed(0)
    shape = 20_000, 80
    mean = torch.rand(shape, generator=generator)
    large = LabelState(
        labels=(mean < 0.03).to(torch.uint8),
        class_names=tuple(f"class {k}" for k in range(80)),
        probs=mean,
        posterior=mean,
        posterior_mean=mean,
    )
    start = time.perf_counter()
    issues = find_label_issues(large, above=0.95)
    write_issues(issues, tmp_path)
    assert time.perf_counter() - start < 5  # under a second; loops over the table would take a minute
    assert len(issues) == int((1 - large.posterior_mean > 0.95).sum())
