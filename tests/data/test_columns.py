"""Label columns: every way of writing labels gives the same table, and every mistake one clear error."""

import re

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, LargeList, List, Value

from hf_balancemix.data import columns
from hf_balancemix.data.columns import (
    encode_labels,
    find_image_column,
    has_label_column,
)

NAMES = ["cat", "dog", "eel"]
IDS = [[0, 2], [], [1], [2, 2], [0, 1, 2]]
MULTI_HOT = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
TEXTS = [[NAMES[i] for i in row] for row in IDS]


def make(feature=None, **columns):
    features = None if feature is None else Features({next(iter(columns)): feature})
    return Dataset.from_dict(columns, features=features)


def as_type(kind):
    return [[kind(x) for x in row] for row in MULTI_HOT]


NAMED = {
    "class labels": make(List(ClassLabel(names=NAMES)), labels=IDS),
    "class labels, large list": make(LargeList(ClassLabel(names=NAMES)), labels=IDS),
    "names": make(labels=TEXTS),
    "other column": make(attributes=TEXTS),
    "comma": make(tags=[", ".join(row) for row in TEXTS]),
    "pipe": make(tags=["|".join(row) for row in TEXTS]),
    "semicolon": make(tags=["; ".join(row) or None for row in TEXTS]),
    "columns": make(**{name: [row[i] for row in MULTI_HOT] for i, name in enumerate(NAMES)}),
    "boolean columns": make(**{name: [bool(row[i]) for row in MULTI_HOT] for i, name in enumerate(NAMES)}),
    "none for empty": make(labels=[row or None for row in TEXTS]),
}
UNNAMED = {
    "ids": make(labels=IDS),
    "ids and none": make(labels=[row or None for row in IDS]),
    "multi-hot": make(labels=MULTI_HOT),
    "multi-hot, fixed length": make(List(Value("uint8"), length=3), labels=MULTI_HOT),
    "multi-hot, booleans": make(labels=as_type(bool)),
    "multi-hot, floats": make(labels=as_type(float)),
    "multi-hot and none": make(labels=[row if any(row) else None for row in MULTI_HOT]),
    "multi-hot, fixed length and none": make(
        List(Value("float32"), length=3), labels=[row if any(row) else None for row in MULTI_HOT]
    ),
}


@pytest.mark.parametrize("name", [*NAMED, *UNNAMED])
def test_all_formats_give_the_same_table(name):
    table = encode_labels((NAMED | UNNAMED)[name], class_names=NAMES)
    assert table.labels.dtype == np.uint8
    np.testing.assert_array_equal(table.labels, MULTI_HOT)
    assert table.class_names == tuple(NAMES)


@pytest.mark.parametrize("name", [*NAMED, *UNNAMED])
def test_class_names_are_found(name):
    table = encode_labels((NAMED | UNNAMED)[name])
    np.testing.assert_array_equal(table.labels, MULTI_HOT)
    assert table.class_names == (("0", "1", "2") if name in UNNAMED else tuple(NAMES))


def test_names_are_sorted_unless_given():
    dataset = make(labels=[["b"], ["a", "c"]])
    assert encode_labels(dataset).class_names == ("a", "b", "c")
    np.testing.assert_array_equal(
        encode_labels(dataset, class_names=["c", "b", "a", "z"]).labels, [[0, 1, 0, 0], [1, 0, 1, 0]]
    )


def test_source_column_is_reported():
    assert encode_labels(NAMED["comma"]).column == "tags"
    assert encode_labels(NAMED["columns"]).column == tuple(NAMES)


def test_class_names_give_the_order_of_columns():
    table = encode_labels(NAMED["columns"], class_names=NAMES[::-1])
    np.testing.assert_array_equal(table.labels, np.array(MULTI_HOT)[:, ::-1])
    assert table.column == table.class_names == tuple(NAMES[::-1])


def test_one_column_can_be_the_only_class():
    table = encode_labels(make(cat=[0, 1]), label_column=["cat"])
    np.testing.assert_array_equal(table.labels, [[0], [1]])
    assert table.class_names == table.column == ("cat",)


def test_ids_and_truth_are_never_found_as_labels():
    dataset = make(a=[0, 1], b=[1, 1], id=[0, 1], image_id=[1, 0], count=[0, 7], size=[0.5, 1.0])
    assert encode_labels(dataset).class_names == ("a", "b")
    hidden = make(clean_labels=TEXTS, noise_mask=MULTI_HOT)
    with pytest.raises(ValueError, match="found the columns 'clean_labels', 'noise_mask'"):
        encode_labels(hidden)
    np.testing.assert_array_equal(encode_labels(hidden, "clean_labels").labels, MULTI_HOT)


def test_lists_win_over_single_labels():
    dataset = make(label=[0, 1], attributes=[["a"], ["a", "b"]])
    assert encode_labels(dataset).column == "attributes"


def test_selections_are_respected_and_transforms_are_not_run():
    dataset = NAMED["names"].select([4, 2, 2]).with_transform(lambda batch: 1 / 0)
    np.testing.assert_array_equal(encode_labels(dataset, class_names=NAMES).labels, np.array(MULTI_HOT)[[4, 2, 2]])
    shuffled = NAMED["class labels"].shuffle(seed=1)
    np.testing.assert_array_equal(encode_labels(shuffled).labels.sum(1), [len(set(row)) for row in shuffled["labels"]])


@pytest.mark.parametrize("name", ["日本", "l'été", 'say "hi"', "<b>&amp;</b>", "two\nlines", " padded ", "a, b", "🦊"])
def test_any_characters_survive_in_names(name):
    for dataset in (make(labels=[[name], ["x"]]), make(List(ClassLabel(names=[name, "x"])), labels=[[0], [1]])):
        table = encode_labels(dataset)
        column = table.class_names.index(name)
        np.testing.assert_array_equal(table.labels[:, column], [1, 0])


def test_given_delimiter():
    np.testing.assert_array_equal(encode_labels(make(labels=["a b", "b"]), delimiter=" ").labels, [[1, 1], [0, 1]])
    assert encode_labels(make(labels=["a, x|b", "b"]), delimiter="|").class_names == ("a, x", "b")
    assert encode_labels(make(labels=["a", "b"]), delimiter=",").class_names == ("a", "b")
    assert encode_labels(NAMED["names"], delimiter=",").class_names == tuple(NAMES)  # not text: nothing to split


@pytest.mark.parametrize(
    ("rows", "names", "expected"),
    [
        ([[0, 1], [1, 0]], ["a", "b"], [[0, 1], [1, 0]]),  # multi-hot: one value per name
        ([[0, 1], [1, 0]], ["a", "b", "c"], [[1, 1, 0], [1, 1, 0]]),  # ids: two of three classes
        ([[0, 0], [0, 1]], None, [[0, 0], [0, 1]]),  # ids would repeat
        ([[0, 1, 0]], None, [[0, 1, 0]]),
        ([[0], [1], [0]], None, [[1, 0], [0, 1], [1, 0]]),
        ([[0, 1], [1]], None, [[1, 1], [0, 1]]),
        ([[0, 0, 1], [1], []], ["a", "b"], [[1, 1], [0, 1], [0, 0]]),  # repeated ids count once
        ([[], []], ["a", "b"], [[0, 0], [0, 0]]),
    ],
)
def test_multi_hot_or_ids(rows, names, expected):
    np.testing.assert_array_equal(encode_labels(make(labels=rows), class_names=names).labels, expected)


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([[0, 1], [1, 0]], None),
        ([[0, 1, 1], [1, 0]], None),
        ([[0, 1, 1], [1, 0, 0]], ["a", "b", "c", "d"]),
        ([[0], [0]], ["a"]),
    ],
)
def test_what_could_be_either_is_refused_and_a_cast_settles_it(rows, names):
    dataset = make(labels=rows)
    with pytest.raises(ValueError, match=r"ids, or multi-hot rows of one length.*only 0 and 1.*cast_column"):
        encode_labels(dataset, class_names=names)
    as_ids = dataset.cast_column("labels", List(ClassLabel(names=names or ["a", "b"])))
    np.testing.assert_array_equal(encode_labels(as_ids).labels[0].nonzero()[0], sorted(set(rows[0])))
    if len(rows[0]) == len(rows[1]):
        as_hot = dataset.cast_column("labels", List(Value("uint8"), length=len(rows[0])))
        np.testing.assert_array_equal(encode_labels(as_hot).labels, rows)


ERRORS = {
    "no label column": (make(x=["a"]), {}, "label column .*found the columns 'x'.*label_column"),
    "one 0/1 column is no guess": (
        make(flag=[0, 1], x=["a", "b"]),
        {},
        "one 0/1 column per class, found the columns 'flag', 'x'",
    ),
    "columns with other names": (make(a=[0, 1], b=[1, 1]), {"class_names": ["x", "y"]}, "found the columns 'a', 'b'"),
    "misspelt": (make(tags=TEXTS), {"label_column": "tagz"}, r"'tagz' \(did you mean 'tags'\?\).*found the columns"),
    "no columns named": (make(tags=TEXTS), {"label_column": []}, "label column none, found the columns 'tags'"),
    "twice": (make(a=[0], b=[1]), {"label_column": ["a", "a"]}, "label column 'a', 'a'.*each once"),
    "wrong names for columns": (
        make(a=[0], b=[1]),
        {"label_column": ["a", "b"], "class_names": ["a", "c"]},
        "one column per class name, found 'c' missing and 'b' extra",
    ),
    "text in a column": (make(a=["yes"]), {"label_column": ["a"]}, "0/1 in column 'a', found Value.*map"),
    "gap in a column": (make(a=[0, 1], b=[1, None]), {}, "numbers in column 'b', found None or NaN in row 1"),
    "two in a column": (make(a=[0, 1, 2]), {"label_column": ["a"]}, "0 or 1 in column 'a', found 2 in row 2"),
    "none inside": (make(labels=[[0], [1, None]]), {}, "numbers in column 'labels', found None or NaN in row 1"),
    "nan inside": (make(labels=[[0.0, 1.0], [1.0, float("nan")]]), {}, "found None or NaN in row 1. Fill"),
    "none among names": (make(labels=[["a"], ["b", None]]), {}, "class names in column 'labels', found None.*row 1"),
    "id too large": (make(labels=[[0], [], [1, 7]]), {"class_names": NAMES}, "ids from 0 to 2.*found 7 in row 2"),
    "negative id": (make(labels=[[0], [-1]]), {}, "ids from 0 to 0.*found -1 in row 1"),
    "class label -1": (make(List(ClassLabel(names=NAMES)), labels=[[0], [-1]]), {}, "found -1 in row 1"),
    "no class id": (make(labels=[[1], [10**12]]), {}, "ids below 100000.*found 1000000000000 in row 1"),
    "soft labels": (make(labels=[[1.0, 0.0], [0.3, 1.0]]), {}, "0 or 1.*found 0.3 in row 1.*Round soft labels"),
    "ragged": (make(labels=[[True, False], [True]]), {}, "multi-hot rows of length 2.*found 1 in row 1"),
    "wrong width": (make(labels=[[1.0, 0.0]]), {"class_names": NAMES}, "rows of length 3.*found length 2.*Pass 2"),
    "unknown name": (
        make(labels=[["cat"], ["dgo"]]),
        {"class_names": NAMES},
        r"one of 3 class names.*found 'dgo' in row 1 \(did you mean 'dog'\?\)",
    ),
    "unknown name in text": (make(labels=["", "cat|fox"]), {"class_names": NAMES}, "found 'fox' in row 1"),
    "names twice": (make(labels=TEXTS), {"class_names": ["a", "b", "a"]}, "different class names.*found 'a' more"),
    "no class": (make(labels=[[], []]), {}, "different class names, at least one, found no class"),
    "no names": (make(labels=TEXTS), {"class_names": []}, "at least one, found no class"),
    "other class labels": (
        make(List(ClassLabel(names=NAMES)), labels=IDS),
        {"class_names": ["cat", "dog", "fox"]},
        "class_names in column 'labels', found 'fox' missing and 'eel' extra",
    ),
    "other order": (
        make(List(ClassLabel(names=NAMES)), labels=IDS),
        {"class_names": ["dog", "cat", "eel"]},
        "found 'cat' in place of 'dog'.*same order",
    ),
    "single id": (make(label=[0, 1]), {}, "list of labels per row, found the single-label column 'label'"),
    "single text": (make(label=["a", "b"]), {}, "single-label column 'label' .text without a delimiter"),
    "two delimiters": (make(labels=["a,b", "c|d"]), {}, "one delimiter.*found ',', '|'.*delimiter"),
    "lists as text": (make(labels=["['a', 'b']", "['c']"]), {}, "found lists written as text.*literal_eval"),
    "nested": (make(labels=[[[1]]]), {}, "lists of names, ids or 0/1.*found List.*map"),
    "no rows": (make(labels=TEXTS).select([]), {}, "found none"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_mistake_has_one_clear_error(name):
    dataset, arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=r"(?s)^Expected .*" + message) as error:
        encode_labels(dataset, **arguments)
    assert re.search(r"found .*\. .+\.$", str(error.value), re.DOTALL), "found ..., then what to do"


def test_wrong_types():
    with pytest.raises(TypeError, match=r"DatasetDict.*dataset\['train'\]"):
        encode_labels(DatasetDict(train=NAMED["names"]))
    with pytest.raises(TypeError, match="class_names as a list of texts, found 'cat'"):
        encode_labels(NAMED["names"], class_names="cat")
    with pytest.raises(TypeError, match="list of texts, found \\[0, 1\\]"):
        encode_labels(NAMED["names"], class_names=[0, 1])


@pytest.mark.parametrize(
    ("feature", "classes"),
    [(ClassLabel(names=["u", "v"]), ("u", "v")), (Value("int64"), ("0", "1")), (None, ("p", "q"))],
)
def test_the_remedy_for_single_labels_works(feature, classes):
    dataset = make(feature, label=[0, 1, 0]) if feature else make(label=["p", "q", "p"])
    with pytest.raises(ValueError, match="single-label") as error:
        encode_labels(dataset)
    remedy = re.search(r"dataset\.map\(.*?\}\)", str(error.value))[0]
    table = encode_labels(eval(remedy, {"dataset": dataset}))
    np.testing.assert_array_equal(table.labels, [[1, 0], [0, 1], [1, 0]])
    assert table.class_names == classes


def test_has_label_column():
    assert has_label_column(NAMED["comma"])
    assert has_label_column(NAMED["columns"])
    assert has_label_column(NAMED["columns"], ["cat"])
    assert not has_label_column(make(image=["a.png"], id=[1]))
    assert not has_label_column(NAMED["names"], "tags")


def test_image_column():
    pixels = [np.zeros((4, 4), np.uint8)]
    one = Dataset.from_dict({"label": [0], "scan": pixels}, Features({"label": Value("int64"), "scan": Image()}))
    assert find_image_column(one) == "scan"
    two = Dataset.from_dict({"scan": pixels, "image": pixels}, Features({"scan": Image(), "image": Image()}))
    assert find_image_column(two) == "image"
    assert find_image_column(Dataset.from_dict({"pixel_values": [[[0.0, 1.0]]]})) == "pixel_values"
    with pytest.raises(ValueError, match=r"feature Image, found 2 of feature Image among 'scan', 'other'.*rename"):
        find_image_column(two.rename_column("image", "other"))
    paths = Dataset.from_dict({"image": ["a.png"]})
    with pytest.raises(ValueError, match=r"found 0 of feature Image among 'image'.*cast_column\("):
        find_image_column(paths)
    assert find_image_column(paths.cast_column("image", datasets.Image())) == "image"


def test_shuffled_rows_are_read_as_the_others(monkeypatch):
    monkeypatch.setattr(columns, "_ROWS_TOGETHER", 3)
    rows = [[k for k in range(4) if (i >> k) & 1] for i in range(16)]
    dataset = datasets.Dataset.from_dict({"labels": rows})
    order = [3, 9, 9, 0, 15, 7, 1, 2]
    found = encode_labels(dataset.select(order), class_names=list("abcd")).labels
    assert found.tolist() == encode_labels(dataset, class_names=list("abcd")).labels[order].tolist()
    assert columns.arrow_columns(dataset.select([]), ["labels"]).num_rows == 0
