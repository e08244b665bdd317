"""Corrected data sets in every layout, and the decisions of a person."""

import datasets
import numpy as np
import pytest

from hf_balancemix.data.columns import encode_labels
from hf_balancemix.reports.corrections import corrected_dataset
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
