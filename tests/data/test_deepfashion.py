"""DeepFashion in miniature: labels, splits, both places of the pictures, and files that do not fit together."""

import shutil

import numpy as np
import pytest
from datasets import Image

from hf_balancemix.data.columns import encode_labels, find_image_column
from hf_balancemix.data.deepfashion import load_deepfashion
from tests.layouts.deepfashion import ATTRIBUTES, FOLDER, write_deepfashion

NAMES = tuple(ATTRIBUTES)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("Ünïcode <'data'> [1]*")
    return folder, write_deepfashion(folder)


@pytest.fixture
def copy(tree, tmp_path):
    """A copy to break: the folder Anno_fine."""
    return shutil.copytree(tree[0] / FOLDER, tmp_path / FOLDER) / "Anno_fine"


def names_of(ids, names=NAMES):
    return [[names[k] for k in row] for row in ids]


def paths_of(split):
    return [cell["path"] for cell in split.cast_column("image", Image(decode=False))["image"]]


def change(path, old, new, count=1):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, count), encoding="utf-8")


def test_splits_and_labels_are_what_was_written(tree):
    splits = load_deepfashion(tree[0])
    train = tree[1]["train"] | tree[1]["val"]
    assert {name: len(split) for name, split in splits.items()} == {"train": 38, "test": 30}
    for name, rows in (("train", train), ("test", tree[1]["test"])):
        assert splits[name].column_names == ["image", "labels", "id"]
        assert splits[name]["id"][:] == list(rows)
        assert names_of(splits[name]["labels"]) == list(rows.values())
        assert encode_labels(splits[name]).class_names == NAMES
        assert find_image_column(splits[name]) == "image"
    assert splits["train"]["labels"][3] == []


def test_labels_equal_the_columns_of_the_files(tree):
    """The lists and tables read by NumPy alone, transposed: which pictures each attribute has."""
    folder = tree[0] / FOLDER / "Anno_fine"
    tables = {part: np.loadtxt(folder / f"{part}_attr.txt", dtype=int) for part in ("train", "val", "test")}
    splits = load_deepfashion(tree[0])
    np.testing.assert_array_equal(encode_labels(splits["train"]).labels, np.vstack([tables["train"], tables["val"]]))
    np.testing.assert_array_equal(encode_labels(splits["test"]).labels, tables["test"])
    assert tables["test"].any(axis=0).all()


def test_pictures(tree):
    train = load_deepfashion(tree[0])["train"]
    assert paths_of(train) == [str(tree[0] / FOLDER / "Img" / path) for path in train["id"]]
    assert [train[row]["image"].mode for row in (0, 1, 3)] == ["L", "CMYK", "RGB"]
    assert [train[row]["image"].size for row in (0, 2)] == [(24, 20), (24, 20)]
    strange = train[5]
    assert strange["id"].startswith("img/Chemise_'d'été' [a] & <b>/")
    # The cell of an attribute, 4 × 4 pixels in six columns, is bright where the attribute is.
    pixels = np.asarray(strange["image"]).max(axis=2)
    assert [k for k in range(26) if pixels[k // 6 * 4 + 2, k % 6 * 4 + 2] > 100] == strange["labels"]


def test_pictures_in_either_place(tmp_path):
    write_deepfashion(tmp_path, sizes=(4, 4, 4), pictures="img")
    test = load_deepfashion(tmp_path / FOLDER)["test"]
    assert paths_of(test) == [str(tmp_path / FOLDER / path) for path in test["id"]]
    assert test[3]["image"].size == (24, 20)


def test_folders_that_are_found(tree, tmp_path, monkeypatch):
    expected = load_deepfashion(tree[0])["train"]["id"][:]
    assert load_deepfashion(str(tree[0] / FOLDER))["train"]["id"][:] == expected
    renamed = shutil.copytree(tree[0] / FOLDER, tmp_path / "Attr_Predict")
    monkeypatch.chdir(tmp_path)
    train = load_deepfashion("Attr_Predict")["train"]
    assert train["id"][:] == expected
    assert paths_of(train)[0] == str(renamed / "Img" / expected[0])


def test_other_attributes_with_blanks_in_their_names(tmp_path):
    names = {"a-line  dress": 3, "à fleurs": 12, "v": 1}
    truth = write_deepfashion(tmp_path, sizes=(6, 4, 6), attributes=names)
    splits = load_deepfashion(tmp_path)
    assert splits["test"].features["labels"].feature.names == list(names)
    assert names_of(splits["test"]["labels"], list(names)) == list(truth["test"].values())


def test_line_ends_of_windows_and_blanks_at_the_end(copy):
    expected = load_deepfashion(copy.parent)["test"]
    for path in copy.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b" \r\n") + b"\r\n")
    again = load_deepfashion(copy.parent)["test"]
    assert again["id"][:] == expected["id"][:]
    assert again["labels"][:] == expected["labels"][:]


def test_wrong_folders(copy):
    layout = "list_attr_cloth.txt, train.txt, train_attr.txt, val.txt, .* in Anno_fine, .*Img/img or img.*"
    with pytest.raises(ValueError, match="--data_dir.*found none.*" + layout):
        load_deepfashion()
    with pytest.raises(TypeError, match="a path as `data_dir`, found 7"):
        load_deepfashion(7)
    with pytest.raises(ValueError, match=layout + "found nothing at '.*nowhere'"):
        load_deepfashion(copy / "nowhere")
    with pytest.raises(ValueError, match=layout + "Anno_fine' with 'list_attr_cloth.txt', 'test.txt', .* without Img"):
        load_deepfashion(copy)
    (copy / "val_attr.txt").unlink()
    with pytest.raises(ValueError, match=r"with 'Anno_fine', 'Img', without Anno_fine/val_attr.txt\."):
        load_deepfashion(copy.parent.parent)
    shutil.rmtree(copy.parent / "Img")
    with pytest.raises(ValueError, match="with 'Anno_fine', without Img/img, Anno_fine/val_attr.txt"):
        load_deepfashion(copy.parent)


def test_lists_that_do_not_fit_together(copy):
    path = copy / "val_attr.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="each of the 8 pictures of '.*val.txt', found 7 lines in '.*val_attr.txt'"):
        load_deepfashion(copy.parent)
    path.write_text("".join([lines[0], "1 " + lines[1], *lines[2:]]))
    with pytest.raises(ValueError, match="26 values, .* found 27 values in line 2 of '.*val_attr.txt'"):
        load_deepfashion(copy.parent)
    path.write_text("".join([lines[0], "\n", *lines[2:]]))
    with pytest.raises(ValueError, match="26 values, .* found 0 values in line 2 of '.*val_attr.txt'"):
        load_deepfashion(copy.parent)


@pytest.mark.parametrize("value", ["-1", "2", "0.5", "yes"])
def test_other_values(copy, value):
    path = copy / "test_attr.txt"
    lines = path.read_text().splitlines()
    lines[4] = f"{value} {lines[4][2:]}"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"26 values, 0 or 1, .* found '{value}' in line 5 of '.*test_attr.txt'"):
        load_deepfashion(copy.parent)


@pytest.mark.parametrize(("part", "other"), [("train", "train"), ("val", "train"), ("test", "train"), ("test", "val")])
def test_pictures_listed_twice(tree, copy, part, other):
    """Also between training and test, where it would leak."""
    repeated, victim = next(iter(tree[1][other])), list(tree[1][part])[3]
    change(copy / f"{part}.txt", victim, repeated)
    message = f"once .* found '{repeated}' in line 1 of {other}.txt and in line 4 of {part}.txt"
    with pytest.raises(ValueError, match=message):
        load_deepfashion(copy.parent)


def test_empty_lists_and_lines(tree, copy):
    change(copy / "val.txt", list(tree[1]["val"])[1], " ")
    with pytest.raises(ValueError, match="found nothing in line 2 of '.*val.txt'"):
        load_deepfashion(copy.parent)
    (copy / "val.txt").write_text("\n")
    with pytest.raises(ValueError, match="one line or more in '.*val.txt', found none"):
        load_deepfashion(copy.parent)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("26\n", "27\n", "found '27' and 26 different names in 26 lines in '.*list_attr_cloth.txt'"),
        ("26\n", "", "found 'attribute_name  attribute_type' and 25 different names in 25 lines"),
        ("graphic", "floral ", "found '26' and 25 different names in 26 lines"),
        ("graphic ", "", "the number of its type, found ' *1' in line 4 of '.*list_attr_cloth.txt'"),
        ("1\n", "texture\n", "the number of its type, found 'floral +texture' in line 3"),
    ],
)
def test_broken_attribute_names(copy, old, new, message):
    change(copy / "list_attr_cloth.txt", old, new)
    with pytest.raises(ValueError, match=message):
        load_deepfashion(copy.parent)
