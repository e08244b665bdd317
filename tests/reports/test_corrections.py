"""Corrected data sets in every layout, and the decisions of a person."""

import csv

import datasets
import numpy as np
import pytest

from hf_balancemix.data.columns import encode_labels
from hf_balancemix.reports.corrections import corrected_dataset, read_decisions
from hf_balancemix.reports.label_issues import LabelIssues
from tests.tiny import refused

NAMES = ("ant", "bee", "cat")
IDS = ("a.png", "b.png", "c.png", "d.png")
# Row 0 loses ant and gets cat, row 2 gets ant, row 3 loses bee, row 1 stays.
CHANGES = {(0, 0): 1, (0, 2): 0, (2, 0): 0, (3, 1): 1}
CORRECTED = [["bee", "cat"], ["cat"], ["ant"], []]
LISTS = datasets.List


def make_issues(changes=CHANGES, ids=IDS, names=NAMES):
    rows, classes = np.array(list(changes), dtype=np.int64).reshape(-1, 2).T
    given = np.array(list(changes.values()), dtype=np.uint8)
    unknown = np.full(len(given), np.nan, dtype=np.float32)
    return LabelIssues(rows, classes, given, unknown, unknown, unknown, names, ids)


class_ids = LISTS(datasets.ClassLabel(names=list(NAMES)))
LAYOUTS = {
    # feature, values, values after the correction
    "ids": (class_ids, [[1, 0], [2], [], [1]], [[1, 2], [2], [0], []]),
    "small ids": (LISTS(datasets.Value("int16")), [[1, 0], [2], [], [1]], [[1, 2], [2], [0], []]),
    "names": (
        LISTS(datasets.Value("string")),
        [["bee", "ant"], ["cat"], None, ["bee"]],
        [["bee", "cat"], ["cat"], ["ant"], []],
    ),
    "text": (datasets.Value("string"), ["bee| ant", " cat ", "", "bee"], ["bee|cat", " cat ", "ant", ""]),
    "multi-hot": (
        LISTS(datasets.Value("uint8"), length=3),
        [[1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]],
        [[0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]],
    ),
    "multi-hot floats": (
        LISTS(datasets.Value("float32")),
        [[1, 1, 0], [0, 0, 1], None, [0, 1, 0]],
        [[0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout):
    feature, before, after = LAYOUTS[layout]
    features = datasets.Features({"n": datasets.Value("int64"), "labels": feature})
    dataset = datasets.Dataset.from_dict({"n": [5, 6, 7, 8], "labels": before}, features=features)
    changed = corrected_dataset(dataset, make_issues())
    assert changed.features["labels"] == changed.features["given_labels"] == feature
    assert list(changed["labels"]) == after
    assert list(changed["given_labels"]) == list(dataset["labels"])
    assert list(changed["n"]) == [5, 6, 7, 8]
    assert sorted(changed.column_names) == ["given_labels", "labels", "n"]
    table = encode_labels(changed, "labels", NAMES).labels
    assert [[NAMES[k] for k in np.flatnonzero(row)] for row in table] == CORRECTED


@pytest.mark.parametrize("kind", ["int8", "bool", "float64"])
def test_one_column_per_class(kind):
    before = {"bee": [1, 0, 0, 1], "ant": [1, 0, 0, 0], "cat": [0, 1, 0, 0]}
    features = datasets.Features({name: datasets.Value(kind) for name in before})
    dataset = datasets.Dataset.from_dict(before, features=features)
    changed = corrected_dataset(dataset, make_issues())
    assert {name: list(changed[name]) for name in NAMES} == {
        "ant": [0, 0, 1, 0],
        "bee": [1, 0, 0, 0],
        "cat": [1, 1, 0, 0],
    }
    assert {name: changed.features[name] for name in before} == features
    assert list(changed["given_labels"]) == [["ant", "bee"], ["cat"], [], ["bee"]]


def test_statuses_selections_and_a_second_round():
    features = datasets.Features({"labels": class_ids})
    dataset = datasets.Dataset.from_dict({"labels": [[2], [1], [], [2], [0, 1]]}, features=features)
    dataset = dataset.select([4, 3, 2, 1]).with_format("torch")  # the rows of CHANGES
    statuses = np.array([[0, 1, 2], [0, 0, 0], [2, 2, 2], [1, 1, 1]], dtype=np.uint8)
    changed = corrected_dataset(dataset, make_issues(), "labels", statuses=statuses)
    named = changed.features["label_status"].feature.names
    assert [named[v] for v in changed[0]["label_status"]] == ["clean", "relabelled", "ambiguous"]
    assert list(changed["label_status"]) == statuses.tolist()
    again = corrected_dataset(changed, make_issues({(1, 2): 1}), statuses=statuses)
    assert list(again["given_labels"]) == [[1, 2], [2], [0], []]
    assert list(again["labels"]) == [[1, 2], [], [0], []]


def test_other_data_are_refused():
    dataset = datasets.Dataset.from_dict(
        {"labels": [[1, 0], [2], [], [1]]}, features=datasets.Features({"labels": class_ids})
    )
    wrong = make_issues({(0, 0): 1, (1, 1): 1})
    refused(ValueError, ["given label 1 of 'bee' in row 1 ('b.png')", "found 0 in"], corrected_dataset, dataset, wrong)
    refused(ValueError, ["Expected 3 rows", "found 4"], corrected_dataset, dataset, make_issues(ids=IDS[:3]))
    refused(ValueError, ["'dog'"], corrected_dataset, dataset, make_issues(names=("ant", "bee", "dog")))
    taken = dataset.rename_column("labels", "given_labels")
    refused(
        ValueError, ["another column than 'given_labels'"], corrected_dataset, taken, make_issues(), "given_labels"
    )
    refused(TypeError, ["DatasetDict"], corrected_dataset, datasets.DatasetDict(train=dataset), make_issues())


# ---- decisions ----

ODD = ('=1+1"\n<b>', "'@x", "cat")
HEADER = ["index", "image", "class", "given", "suggested", "decision"]


def write(path, *lines, header=HEADER, encoding="utf-8", delimiter=","):
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *lines])
    return path


@pytest.mark.parametrize(("encoding", "delimiter"), [("utf-8", ","), ("utf-8-sig", ";"), ("utf-8", "\t")])
def test_decisions(tmp_path, encoding, delimiter):
    lines = [
        ["2", "c.png", ODD[0], "0", "1", "accept"],
        ["0", "elsewhere/a.png", f"'{ODD[0]}", "1", "0", "Accept"],
        ["0", "row 0", ODD[1], "1", "0", "reject"],
        ["1", "'=b.png", "cat", "0", "1", ""],
        ["1", "=b.png", "cat", "0", "1", "accept"],
    ]
    path = write(tmp_path / "d.csv", *lines, encoding=encoding, delimiter=delimiter)
    issues, rejected = read_decisions(path, ODD, ["folder/a.png", "=b.png", "c.png"])
    assert (issues.rows.tolist(), issues.classes.tolist(), issues.given.tolist()) == ([2, 0, 1], [0, 0, 2], [0, 1, 0])
    assert rejected == 1
    assert issues.class_names == ODD


GOOD = ["1", "b.png", "bee", "0", "1", "accept"]
WRONG = {
    "index 4": (0, "4", "an index from 0 to 3, for 4 images, found '4' in line 3"),
    "index -1": (0, "-1", "found '-1' in line 3"),
    "no index": (0, "1.5", "found '1.5' in line 3"),
    "image": (1, "a.png", "the image 'b.png' in row 1, found 'a.png' in line 3"),
    "class": (2, "bea", "found 'bea' (did you mean 'bee'?) in line 3"),
    "given": (3, "2", "found '2' and '1' in line 3"),
    "suggested": (4, "0", "found '0' and '0' in line 3"),
    "decision": (5, "acept", "found 'acept' (did you mean 'accept'?) in line 3"),
    "twice": (5, "reject", "one decision about a label, found another about 'bee' in line 4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_line_is_named(tmp_path, case):
    place, value, message = WRONG[case]
    line = [*GOOD[:place], value, *GOOD[place + 1 :]]
    lines = [["0", "a.png", "ant", "1", "0", "reject"], line, *([GOOD] if case == "twice" else [])]
    path = write(tmp_path / "my decisions.csv", *lines)
    refused(ValueError, [message, "my decisions.csv"], read_decisions, path, NAMES, IDS)


def test_no_decisions_file(tmp_path):
    remedy = "Pass the file that the page of the audit exports"
    empty = tmp_path / "empty.csv"
    empty.write_bytes(b"")
    latin = write(tmp_path / "latin.csv", ["0", "ä.png", "ant", "1", "0", "accept"], encoding="latin-1")
    other = write(tmp_path / "other.csv", ["0"], header=["index"])
    cut = tmp_path / "cut.csv"
    cut.write_text(",".join(HEADER) + '\n0,"a.png', encoding="utf-8")
    for path, found in (
        (tmp_path / "none.csv", "No such file"),
        (tmp_path, "directory"),
        (empty, "without 'index'"),
        (latin, "utf-8"),
        (other, "without 'image'"),
        (cut, "cut.csv"),
    ):
        refused(ValueError, [found, remedy], read_decisions, path, NAMES, IDS)
