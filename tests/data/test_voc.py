"""Pascal VOC in miniature, against its XML annotations; its conventions, folders and broken files."""

import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from datasets import Image
from PIL import Image as Pictures

from hf_balancemix.data.columns import encode_labels, find_image_column
from hf_balancemix.data.formats import evaluation_labels
from hf_balancemix.data.voc import CLASS_NAMES, load_voc
from hf_balancemix.report import multilabel_report
from tests.layouts.voc import NAMES, write_class_file, write_voc

MAIN = "VOCdevkit/VOC2007/ImageSets/Main"
# The sets of each split, as published.
SETS = {
    "07": ([("VOC2007", "trainval")], ("VOC2007", "test")),
    "12": ([("VOC2012", "train")], ("VOC2012", "val")),
    "07+12": ([("VOC2007", "trainval"), ("VOC2012", "trainval")], ("VOC2007", "test")),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("Ünïcode <'data'> [1]*")
    return folder, write_voc(folder)


@pytest.fixture
def folder(tree, tmp_path):
    """A copy without the pictures, to break."""
    return shutil.copytree(tree[0], tmp_path / "copy", ignore=shutil.ignore_patterns("JPEGImages", "Annotations"))


def from_annotations(folder, sets):
    """{id: {class: 1 or 0}}, read from the XML alone; classes that are absent are left out."""
    found = {}
    for year, subset in sets:
        root = folder / "VOCdevkit" / year
        for image in (root / "ImageSets" / "Main" / f"{subset}.txt").read_text().split():
            row = found[f"{year}/{image}"] = {}
            for item in ElementTree.parse(root / "Annotations" / f"{image}.xml").iter("object"):
                name, easy = item.findtext("name"), item.findtext("difficult") == "0"
                row[name] = max(row.get(name, 0), int(easy))
    return found


def names_of(ids):
    return [[NAMES[k] for k in row] for row in ids]


def with_value(rows, *values):
    return [[name for name in NAMES if row.get(name, -1) in values] for row in rows]


def test_class_names_are_the_twenty_in_alphabetical_order():
    assert CLASS_NAMES == NAMES
    assert len(set(CLASS_NAMES)) == 20
    assert sorted(CLASS_NAMES) == list(CLASS_NAMES)


@pytest.mark.parametrize("difficult_eval", ["ignore", "negative", "positive"])
@pytest.mark.parametrize("difficult_train", ["negative", "positive"])
@pytest.mark.parametrize("year", SETS)
def test_labels_follow_from_the_annotations(tree, year, difficult_train, difficult_eval):
    splits = load_voc(tree[0], year, difficult_train, difficult_eval)
    train, test = from_annotations(tree[0], SETS[year][0]), from_annotations(tree[0], [SETS[year][1]])
    assert splits["train"]["id"][:] == list(train)
    assert splits["test"]["id"][:] == list(test)
    for split, rows, choice in (("train", train, difficult_train), ("test", test, difficult_eval)):
        positive = (0, 1) if choice == "positive" else (1,)
        assert names_of(splits[split]["labels"]) == with_value(rows.values(), *positive)
    if difficult_eval == "ignore":
        assert names_of(splits["test"]["ignored_labels"]) == with_value(test.values(), 0)
        assert any(splits["test"]["ignored_labels"])
    assert ("ignored_labels" in splits["test"].column_names) == (difficult_eval == "ignore")
    assert splits["train"].column_names == ["image", "labels", "id"]


def test_what_the_miniature_was_made_of(tree):
    """The first pictures of each set, one by one: difficult beside easy objects, and nothing but difficult ones."""
    expected = {3: (["dog"], ["cat"]), 4: (["dog"], []), 5: ([], ["cat", "sheep"])}
    rows = list(tree[1][2007]["test"])
    test = load_voc(tree[0], "07")["test"]
    for row, (present, ignored) in expected.items():
        assert test[row]["id"] == f"VOC2007/{rows[row]}"
        assert names_of([test[row]["labels"], test[row]["ignored_labels"]]) == [present, ignored]
    positive = load_voc(tree[0], "07", "positive")["train"]
    assert names_of(positive["labels"][3:6]) == [["cat", "dog"], ["dog"], ["cat", "sheep"]]


def test_the_union_is_one_year_after_the_other(tree):
    both, first = load_voc(tree[0]), load_voc(tree[0], "07")
    assert both["train"]["id"][: len(first["train"])] == first["train"]["id"][:]
    halves = load_voc(tree[0], "12")
    second = both["train"]["id"][len(first["train"]) :]
    assert second == sorted([*halves["train"]["id"], *halves["test"]["id"]])
    assert len(second) == 46
    assert both["test"]["id"][:] == first["test"]["id"][:]
    assert not set(both["train"]["id"]) & set(both["test"]["id"])


def test_columns_and_pictures(tree):
    splits = load_voc(tree[0])
    for split in splits.values():
        assert find_image_column(split) == "image"
        table = encode_labels(split)
        assert (table.column, table.class_names) == ("labels", NAMES)
        assert table.labels.any(axis=0).all()
        stored = split.cast_column("image", Image(decode=False))[:]
        for cell, key in zip(stored["image"], stored["id"], strict=True):
            year, name = key.split("/")
            assert cell == {"path": str(tree[0] / "VOCdevkit" / year / "JPEGImages" / f"{name}.jpg"), "bytes": None}
    train = splits["train"]
    assert [train[row]["image"].mode for row in (0, 1, 3)] == ["L", "CMYK", "RGB"]
    path = train.cast_column("image", Image(decode=False))[2]["image"]["path"]
    assert Pictures.open(path).size == train[2]["image"].size[::-1] == (16, 20)
    # The cell of a class, 4 × 4 pixels in five columns, is bright where the class is.
    pixels = np.asarray(train[10]["image"].convert("RGB")).max(axis=2)
    bright = {NAMES[k] for k in range(20) if pixels[k // 5 * 4 + 2, k % 5 * 4 + 2] > 100}
    assert bright == {name for name, _ in tree[1][2007]["trainval"][train[10]["id"].split("/")[1]]}


def test_ignored_labels_reach_the_evaluation(tree):
    test = load_voc(tree[0])["test"]
    values = evaluation_labels(test, encode_labels(test))
    rows = from_annotations(tree[0], [("VOC2007", "test")]).values()
    expected = [[{1: 1, 0: -1, -1: 0}[row.get(name, -1)] for name in NAMES] for row in rows]
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    ("difficult_eval", "expected"), [("ignore", "ignore"), ("negative", "as_negative"), ("positive", "as_positive")]
)
def test_average_precision_of_each_convention(vectors, tmp_path, difficult_eval, expected):
    vector = vectors["13_voc_difficult"]
    images = [f"{number:06d}" for number in range(1, 6)]
    for subset in ("trainval", "test"):
        for name in NAMES:
            values = vector["inputs"]["voc_labels"] if name == "cat" else [1, -1, -1, -1, -1]
            write_class_file(tmp_path / MAIN / f"{name}_{subset}.txt", dict(zip(images, values, strict=True)))
    test = load_voc(tmp_path, "07", difficult_eval=difficult_eval)["test"]
    ignore = encode_labels(test, "ignored_labels").labels if difficult_eval == "ignore" else None
    logits = np.tile(np.array(vector["inputs"]["scores"])[:, None], 20)
    report = multilabel_report(logits, encode_labels(test).labels, NAMES, ignore=ignore)
    assert report.ap[NAMES.index("cat")] == pytest.approx(vector["expected"][expected], abs=1e-8)


def test_folders_that_are_found(tree, folder, tmp_path, monkeypatch):
    expected = load_voc(tree[0])["train"]["id"][:]
    assert load_voc(str(tree[0] / "VOCdevkit"))["train"]["id"][:] == expected
    monkeypatch.chdir(tree[0])
    train = load_voc("VOCdevkit", "07")["train"].cast_column("image", Image(decode=False))
    assert train[0]["image"]["path"].startswith(str(tree[0]))
    monkeypatch.setenv("HOME", str(tree[0].parent))
    assert len(load_voc(f"~/{tree[0].name}", "12")["test"]) == 23
    # 2007 lies directly in the folder, both years in VOCdevkit: the first place that has all that the year needs.
    shutil.copytree(folder / "VOCdevkit" / "VOC2007", folder / "VOC2007")
    for year, devkit in (("07", folder), ("12", folder / "VOCdevkit"), ("07+12", folder / "VOCdevkit")):
        test = load_voc(folder, year)["test"].cast_column("image", Image(decode=False))
        assert test[0]["image"]["path"].startswith(str(devkit / "VOC2"))


def test_line_ends_of_windows_and_a_missing_last_one(folder):
    expected = load_voc(folder, "07")["test"]["labels"][:]
    for path in (folder / MAIN).glob("*_test.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    (folder / MAIN / "cow_test.txt").write_text((folder / MAIN / "cow_test.txt").read_text().rstrip())
    assert load_voc(folder, "07")["test"]["labels"][:] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"year": "2007"}, "`year` to be '07' or '12' or '07.12', found '2007'"),
        ({"year": 12}, r"found 12 \(did you mean '12'\?\)"),
        ({"difficult_train": "ignore"}, "`difficult_train` to be 'negative' or 'positive', found 'ignore'"),
        ({"difficult_eval": "ignored"}, r"found 'ignored' \(did you mean 'ignore'\?\)"),
    ],
)
def test_unknown_options(tree, options, message):
    with pytest.raises(ValueError, match=message):
        load_voc(tree[0], **options)


def test_wrong_folders(folder):
    archives = (
        r"VOCtrainval_06-Nov-2007\.tar, VOCtrainval_11-May-2012\.tar, VOCtest_06-Nov-2007\.tar.* into VOCdevkit.*"
    )
    with pytest.raises(ValueError, match="--data_dir.*found none.*" + archives):
        load_voc()
    with pytest.raises(TypeError, match="a path as `data_dir`, found 7"):
        load_voc(7)
    with pytest.raises(ValueError, match=archives + "nothing at '.*nowhere'"):
        load_voc(folder / "nowhere")
    with pytest.raises(ValueError, match=archives + "VOC2007' with 'ImageSets', without VOC2007/Im.* and VOC2012/Im"):
        load_voc(folder / "VOCdevkit" / "VOC2007")
    with pytest.raises(ValueError, match="found a file at '.*test_voc.py'"):
        load_voc(__file__)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="empty' with nothing in it"):
        load_voc(folder / "empty")
    shutil.rmtree(folder / "VOCdevkit" / "VOC2012")
    with pytest.raises(ValueError, match=r"VOCdevkit' with 'VOC2007', without VOC2012/ImageSets/Main\."):
        load_voc(folder)
    assert len(load_voc(folder, "07")["train"]) == 46


def test_missing_class_files(folder):
    (folder / MAIN / "cow_trainval.txt").unlink()
    with pytest.raises(
        ValueError, match=r"found 19 called \*_trainval.txt, without 'cow_trainval.txt'.*VOCtrainval_06"
    ):
        load_voc(folder, "07")
    for path in (folder / "VOCdevkit/VOC2012/ImageSets/Main").glob("*_val.txt"):
        path.unlink()
    with pytest.raises(ValueError, match=r"found 0 called \*_val.txt.*VOCtrainval_11-May-2012"):
        load_voc(folder, "12")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("1\n", "2\n", 1),
            r"1, 0 or -1, .* found '\d{6} .?2' in line \d+ of '.*cow_test.txt'",
        ),
        (lambda text: "\n" + text, "found '' in line 1 of '.*cow_test.txt'"),
        (lambda text: text[:6] + text[9:], r"found '\d{6}' in line 1 of '.*cow_test.txt'"),
        (lambda text: text[:10] + "a b " + text[10:], r"found 'a b .*' in line 2 of '.*cow_test.txt'"),
        (lambda text: text[:10] + text, r"found '\d{6}' a second time in line 2 of '.*cow_test.txt'"),
        (
            lambda text: text[10:] + text[:10],
            r"in the same order.*found '.*' in line 1 of '.*cow_test.txt' and '\d+' in",
        ),
        (lambda text: text[:-10], "the end in line 46 of '.*cow_test.txt' and '.*' in that of 'aeroplane_test.txt'"),
        (lambda text: text + "999999 -1\n", "'999999' in line 47 of '.*cow_test.txt' and the end in that of 'aer"),
        (lambda text: "\n \n", "one line or more in '.*cow_test.txt', found none"),
    ],
    ids=["value", "blank", "no value", "three fields", "twice", "order", "shorter", "longer", "empty"],
)
def test_broken_class_files(folder, change, message):
    path = folder / MAIN / "cow_test.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        load_voc(folder, "07")


def test_a_class_file_that_is_no_text(folder):
    (folder / MAIN / "cow_test.txt").write_bytes("000001  1\n".encode("utf-16"))
    with pytest.raises(ValueError, match="UTF-8 in '.*cow_test.txt', found byte 0xff at position 0"):
        load_voc(folder, "07")
