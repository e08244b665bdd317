"""A user's own data in every layout: the same pictures with the same labels, or one clear message."""

import json
import os
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from hf_balancemix.data.columns import find_label_format
from hf_balancemix.data.folder import as_label_lists, load_folder
from hf_balancemix.data.images import check_files, image_names
from tests.layouts.folder import (
    COUNTS,
    KINDS,
    NAMES,
    SPLITS,
    labels_of_picture,
    labels_of_row,
    picture_of_row,
    write_folder,
)

ODD = (
    "q'uote\"s",
    "<b>&amp;",
    "two\nlines",
    "[1]*?",
    " 日本語 ",
    "test-1",
    "été 🦊",
    "a:b::c,d;e",
    "% $HOME ~",
    "x#y",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def files_under(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def labels_of(split):
    names = split.features["labels"].feature.names
    return [[names[k] for k in row] for row in split["labels"]]


def counts_of(split, names=NAMES):
    return [sum(name in row for row in labels_of(split)) for name in names]


@pytest.mark.parametrize("name", ["plain", "odd [1]* '\"<>\n日本"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_the_same_data(tmp_path, kind, name):
    folder = write_folder(tmp_path / name, kind)
    before = files_under(folder)
    data = load_folder(folder)
    assert files_under(folder) == before
    assert isinstance(data, DatasetDict)
    assert list(data) == ["train", "test"]
    for split, rows in SPLITS.items():
        assert data[split].features["labels"] == List(ClassLabel(names=list(NAMES)))
        assert data[split].features["image"] == datasets.Image()
        assert counts_of(data[split]) == COUNTS[split]
        assert labels_of(data[split]) == [labels_of_row(row) for row in range(rows)]
        assert [labels_of_picture(picture) for picture in data[split]["image"]] == labels_of(data[split])
        assert data[split]["id"] == list(range(rows))
        check_files(data[split], "image", split)
        if kind not in ("parquet", "disk"):
            place = folder / "pictures" / split if kind == "parquet_paths" else folder / split
            stored = data[split].cast_column("image", datasets.Image(decode=False))["image"]
            assert stored == [{"bytes": None, "path": str(place / f"{row}.png")} for row in range(rows)]


@pytest.mark.parametrize("kind", KINDS)
def test_any_characters_travel_unharmed(tmp_path, kind):
    files = [f"{name} {row}.png" for row, name in enumerate(ODD)]
    for names in (ODD[:3], ODD[3:6], ODD[6:9]):
        # In one text for several names, blanks around them are no part of them.
        names = tuple(name.strip() for name in names) if kind == "csv" else names
        rows = {"train": len(ODD), "test": 5}
        folder = write_folder(tmp_path / names[0], kind, names, rows, files)
        data = load_folder(folder, class_names=names, label_delimiter="|")
        for split in data:
            assert labels_of(data[split]) == [labels_of_row(row, names) for row in range(rows[split])]
            assert [labels_of_picture(picture, names) for picture in data[split]["image"]] == labels_of(data[split])
            found = [os.path.basename(name) for name in image_names(data[split], "image")]
            embedded = [f"{row}" for row in range(rows[split])]
            assert found == (embedded if kind in ("parquet", "disk") else files[: rows[split]])


@pytest.mark.parametrize(
    ("splits", "arguments", "expected"),
    [
        ({"train": 8, "validation": 6}, {}, (8, 6)),
        ({"train": 8, "validation": 6, "test": 7}, {}, (8, 7)),
        ({"train": 8, "validation": 6, "test": 7}, {"test_split": "validation"}, (8, 6)),
        ({"train": 8, "test": 7, "dev": 6}, {"train_split": "test"}, (7, 6)),
        ({"Training": 8, "VAL": 6}, {}, (8, 6)),
        ({"train_2017": 8, "my.eval": 6}, {}, (8, 6)),
        ({"": 10}, {"test_fraction": 0.5}, (5, 5)),
        ({"pictures": 10}, {"test_fraction": 0.3}, (7, 3)),
        ({"test": 10}, {"test_fraction": 0.4}, (6, 4)),
    ],
)
def test_splits_are_found_by_their_names(tmp_path, splits, arguments, expected):
    data = load_folder(write_folder(tmp_path / "data", "jsonl", splits=splits), **arguments)
    assert (len(data["train"]), len(data["test"])) == expected


def test_without_a_test_split_the_same_rows_are_held_out(tmp_path, caplog):
    write_folder(tmp_path / "a", "jsonl", splits={"": 40})
    data, again = load_folder(tmp_path / "a"), load_folder(tmp_path / "a")
    assert "8 of 40 images are held out, 32 are left to train" in caplog.text
    train, test = (list(data[split]["id"]) for split in ("train", "test"))
    assert sorted(train + test) == list(range(40))
    assert list(again["test"]["id"]) == test != list(range(32, 40))
    for split in data.values():
        assert labels_of(split) == [labels_of_row(row) for row in split["id"]]
        assert [labels_of_picture(picture) for picture in split["image"]] == labels_of(split)
    assert len(load_folder(tmp_path / "a", test_fraction=0.001)["test"]) == 1


def test_parquet_shards_embedded_images_and_relative_paths(tmp_path):
    folder = write_folder(tmp_path / "a", "jsonl", splits={"": 12})
    (folder / "metadata.jsonl").unlink()
    (folder / "data").mkdir()
    for i in range(3):
        rows = range(4 * i, 4 * i + 4)
        table = {"image": [{"path": f"{row}.png", "bytes": None} for row in rows], "id": [f"00{row}" for row in rows]}
        table |= {"tags": [labels_of_row(row) for row in rows]}
        pa.parquet.write_table(pa.table(table), folder / "data" / f"train_all-0000{i}-of-00003.parquet")
    (folder / "validation").mkdir()
    features = Features({"photo": datasets.Image(), "labels": List(ClassLabel(names=list(NAMES)))})
    part = {"photo": [picture_of_row(row) for row in (1, 6)], "labels": [[0], [1, 2]]}
    own = Dataset.from_dict(part, features=features)
    own.add_column("id", ["x", "y"]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    (folder / ".hidden.parquet").write_text("no Parquet")
    with pytest.raises(ValueError, match="the same columns"):
        load_folder(folder)
    (folder / "data" / "test-00000-of-00001.parquet").unlink()
    data = load_folder(folder, train_split="train_all", test_fraction=0.5)
    assert [f"00{row}" for row in range(12)] == sorted([*data["train"]["id"], *data["test"]["id"]], key=int)
    for split in data.values():
        assert [labels_of_picture(picture) for picture in split["image"]] == labels_of(split)
        assert split.column_names == ["id", "image", "labels"]
    own.to_parquet(tmp_path / "own" / "0.parquet")
    data = load_folder(tmp_path / "own", test_fraction=0.5)
    assert sorted(labels_of(data["train"]) + labels_of(data["test"])) == [["cat"], ["dog", "eel"]]


def test_a_saved_split_alone_and_what_it_keeps(tmp_path):
    rows = range(10)
    table = {"img": [picture_of_row(row) for row in rows], "image_id": [f"i{row}" for row in rows]}
    table |= {name: [int(name in labels_of_row(row)) for row in rows] for name in NAMES}
    dataset = Dataset.from_dict(table | {"note": ["?"] * 10}).cast_column("img", datasets.Image())
    dataset.save_to_disk(tmp_path / "saved")
    before = files_under(tmp_path / "saved")
    data = load_folder(tmp_path / "saved", class_names=["eel", "dog", "cat"])
    assert files_under(tmp_path / "saved") == before
    assert data["train"].column_names == ["image", "image_id", "note", "labels"]
    assert data["train"].features["labels"].feature.names == ["eel", "dog", "cat"]
    for split in data.values():
        found = [labels_of_picture(picture) for picture in split["image"]]
        assert [sorted(row) for row in labels_of(split)] == found
        assert [labels_of_row(int(name[1:])) for name in split["image_id"]] == found


def test_classes_are_those_of_both_splits(tmp_path, caplog):
    folder = write_folder(tmp_path / "a", "jsonl", names=("b", "c", "d"))
    line = {"file_name": "0.png", "labels": ["d", "a"], "ignored_labels": ["c"]}
    (folder / "test" / "metadata.jsonl").write_text(json.dumps(line), encoding="utf-8")
    data = load_folder(folder)
    names = ["a", "b", "c", "d"]
    assert data["train"].features["labels"].feature.names == data["test"].features["labels"].feature.names == names
    assert data["test"]["labels"] == [[0, 3]]
    assert data["test"].features["ignored_labels"] == data["test"].features["labels"]
    assert data["test"]["ignored_labels"] == [[2]]
    assert "ignored_labels" not in data["train"].column_names
    assert "Only in the test split, so never learnt: 'a' (1 of 4 classes)." in caplog.text
    assert "Images left out because no metadata file has them: 5, as " in caplog.text
    caplog.clear()
    named = load_folder(folder, class_names=["d", "c", "b", "a", "z"])
    assert named["test"]["labels"] == [[0, 3]]
    assert named["test"]["ignored_labels"] == [[1]]


def test_ids_count_to_the_largest_of_both_splits_and_empty_lists_fit_everything(tmp_path):
    folder = write_folder(tmp_path / "a", "jsonl")
    for split, rows in {"train": [[], [1], None, [0, 1], []], "test": [[11], []]}.items():
        lines = [{"file_name": f"{row}.png", "labels": ids} for row, ids in enumerate(rows)]
        text = "\n\n".join(json.dumps(line) for line in lines)
        (folder / split / "metadata.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    data = load_folder(folder)
    assert data["train"].features["labels"].feature.names == [str(k) for k in range(12)]
    assert data["train"]["labels"] == [[], [1], [], [0, 1], []]
    assert data["test"]["labels"] == [[11], []]


ROWS = [["dog", "cat"], [], ["eel", "eel"]]
WAYS = {
    "names": {"labels": ROWS},
    "ids": {"tags": [[1, 0], [], [2, 2]]},
    "multi-hot": {"targets": [[1, 1, 0], [0, 0, 0], [0, 0, 1]]},
    "text": {"labels": ["dog; cat", "", "eel"]},
    "columns": {"eel": [0, 0, 1], "cat": [1, 0, 0], "dog": [1, 0, 0]},
}


def label_lists(dataset, *column, **found):
    return as_label_lists(dataset, find_label_format(dataset, *column, **found))


@pytest.mark.parametrize("way", WAYS)
def test_labels_become_ascending_lists_of_class_labels(way):
    dataset = Dataset.from_dict(
        {"note": ["x", "y", "z"], **WAYS[way], "ignored_labels": [["eel"], ["dog", "cat"], []]}
    )
    result = label_lists(dataset, class_names=NAMES)
    assert result.column_names == ["note", "labels", "ignored_labels"]
    assert result.features["labels"] == result.features["ignored_labels"] == List(ClassLabel(names=list(NAMES)))
    assert result["labels"] == [[0, 1], [], [2]]
    assert result["ignored_labels"] == [[2], [0, 1], []]
    assert result["note"] == ["x", "y", "z"]
    assert label_lists(result) is result


def test_another_label_column_takes_the_name():
    dataset = Dataset.from_dict({"labels": [0, 1], "tags": [["a"], ["b", "a"]]})
    result = label_lists(dataset, "tags")
    assert result.column_names == ["labels"]
    assert labels_of(result) == [["a"], ["a", "b"]]
    unordered = Dataset.from_dict({"labels": [[1, 0]]}, Features({"labels": List(ClassLabel(names=["a", "b"]))}))
    assert label_lists(unordered)["labels"] == [[0, 1]]
    shuffled = label_lists(dataset.select([1, 0]), "tags")
    assert labels_of(shuffled) == [["a", "b"], ["a"]]


def lines(*labels, name="labels"):
    return "".join(json.dumps({"file_name": f"{row}.png", name: each}) + "\n" for row, each in enumerate(labels))


GOOD = lines(["a"], ["b"])
BAD = {
    "nothing": ({}, {}, "labelled images in `data_dir`, found '.*' with nothing in it.*metadata.jsonl.*cat|dog"),
    "folders of classes": ({"cat/0.txt": "", "dog/1.txt": ""}, {}, "found '.*' with 'cat', 'dog'.*metadata.jsonl"),
    "line": (
        {"metadata.jsonl": GOOD + '{"file_name": "2.png'},
        {},
        r"found '\{\"file_name\": \"2.png' in line 3 \(Unt",
    ),
    "no line": ({"metadata.jsonl": "\n"}, {}, "a column 'file_name' in '.*metadata.jsonl', found no line"),
    "array": ({"metadata.jsonl": f"[{GOOD}]"}, {}, r"one JSON object per line in .*, found '\[\{.*' in line 1"),
    "kinds": ({"metadata.jsonl": lines([], ["a"], None, "a")}, {}, r"found \['a'\] in line 2 and 'a' in line 4\."),
    "items": ({"metadata.jsonl": lines(["a"], [1])}, {}, r"found \['a'\] in line 1 and \[1\] in line 2\."),
    "large": ({"metadata.jsonl": lines([10**30])}, {}, "value as 'labels' in every line of .*, found .*too large"),
    "column": ({"metadata.jsonl": GOOD.replace("_n", "n")}, {}, "'file_name' in .*found the columns 'filename', 'lab"),
    "number": ({"metadata.jsonl": GOOD.replace('"1.png"', "1").replace('"0.png"', "0")}, {}, "in entry 1 .*, found 0"),
    "null": ({"metadata.jsonl": GOOD.replace('"1.png"', "null")}, {}, "name of a file in entry 2 of .*, found None"),
    "twice": ({"metadata.jsonl": GOOD + lines(["c"])}, {}, "each image once .*0.png' several times.*into one entry"),
    "image": (
        {"metadata.jsonl": lines(1, name="image")},
        {},
        "each column once .*, found 'image', beside 'file_name'",
    ),
    "no labels": ({"metadata.jsonl": lines(["a"], name="note")}, {}, r"a label column .*\(In the train split\.\)"),
    "empty labels": ({"metadata.jsonl": lines([], [])}, {}, "at least one, found no class at all"),
    "null in test": (
        {"train/metadata.jsonl": GOOD, "test/metadata.jsonl": lines(["a"], ["b", None])},
        {},
        r"class names in column 'labels', found None or NaN in row 1\. .*\(In the test split\.\)",
    ),
    "kinds of splits": (
        {"train/metadata.jsonl": GOOD, "test/metadata.jsonl": lines([1])},
        {},
        "the same kind of values in all metadata files of .*labels has incompatible types",
    ),
    "test without": (
        {"train/metadata.jsonl": GOOD, "test/metadata.jsonl": lines(1, name="n")},
        {},
        r"Expected a label column .*found the columns 'n', 'image', 'id'.*\(In the test split\.\)",
    ),
    "test empty": (
        {"train/metadata.jsonl": GOOD, "test/metadata.jsonl": lines([])},
        {},
        "in the test split, found none",
    ),
    "unknown class": (
        {"train/metadata.jsonl": GOOD, "test/metadata.jsonl": lines(["c"])},
        {"class_names": ["a", "b"]},
        r"one of 2 class names .*found 'c' in row 0.*\(In the test split\.\)",
    ),
    "ignored": (
        {"train/metadata.jsonl": GOOD, "test/metadata.jsonl": GOOD.replace("}", ', "ignored_labels": ["c"]}')},
        {},
        r"class names in column 'ignored_labels', found 'c' in row 0.*\(In the test split\.\)",
    ),
    "stray": (
        {"train/metadata.jsonl": GOOD, "others/metadata.jsonl": GOOD},
        {},
        "folder called like its split, as '.*train/metadata.jsonl' is, found '.*others/metadata.jsonl'",
    ),
    "both": (
        {"metadata.jsonl": GOOD, "metadata.csv": "x"},
        {},
        "found 'metadata.csv' and 'metadata.jsonl' in .*Remove",
    ),
    "csv empty": ({"metadata.csv": ""}, {}, "a table in '.*metadata.csv', found Empty CSV file"),
    "csv header": ({"metadata.csv": "file_name,labels\n"}, {}, "at least one image in '.*metadata.csv', found none"),
    "csv semicolons": ({"metadata.csv": "file_name;a\n0;1"}, {}, "found the columns 'file_name;a'.*file_name,labels"),
    "csv commas": ({"metadata.csv": "file_name,labels\n0,a\n1,a, b"}, {}, "Row #3: Expected 2 columns, got 3: 1,a, b"),
    "csv twice": ({"metadata.csv": "file_name,a,a\n0,1,1"}, {}, "found 'a' more than once"),
    "csv gap": (
        {"metadata.csv": "file_name,a,b\n0,1,0\n1,,1"},
        {},
        "numbers in column 'a', found None or NaN in row 1",
    ),
    "columns of splits": (
        {"train/metadata.csv": "file_name,a,b,c\n0,1,0,1", "test/metadata.csv": "file_name,a,b\n0,1,1"},
        {},
        "the same columns of 0 and 1 in both splits, found 'c' in one alone",
    ),
    "csv encoding": ({"metadata.csv": b"file_name,labels\n0,\xe9"}, {}, "UTF-8 in .*found byte 0xe9 at position 19"),
    "csv single": ({"metadata.csv": "file_name,labels\n0,a\n1,b"}, {}, "the single-label column 'labels'"),
    "train_split": ({"metadata.jsonl": GOOD}, {"train_split": "trian"}, "`train_split`, found 'trian'.*mean 'train'"),
    "test_split": ({"metadata.jsonl": GOOD}, {"test_split": "dev"}, "as `test_split`, found 'dev', .*none of 'train'"),
    "one split": ({"metadata.jsonl": GOOD}, {"test_split": "train"}, "two splits, found 'train' as both"),
    "one image": ({"metadata.jsonl": lines(["a"])}, {}, "two images or more in '.*', to hold some out .*, found 1"),
    "label_column": ({"metadata.jsonl": GOOD}, {"label_column": "lables"}, "'lables' .did you mean 'labels'"),
    "image_column": ({"metadata.jsonl": GOOD}, {"image_column": "labels"}, "in column 'labels', found List"),
    "no column": ({"metadata.jsonl": GOOD}, {"image_column": "x"}, "column 'x', found the columns 'labels', 'image'"),
    "fraction": ({"metadata.jsonl": GOOD}, {"test_fraction": 20}, "between 0 and 1 as `test_fraction`, found 20"),
    "text fraction": (
        {"metadata.jsonl": GOOD},
        {"test_fraction": "1"},
        "between 0 and 1 as `test_fraction`, found '1'",
    ),
    "parquet": ({"0.parquet": "PAR1"}, {}, "Parquet files .*, found ArrowInvalid: .*Write the files again"),
    "saved": ({"dataset_dict.json": "{"}, {}, "data set of `save_to_disk` in '.*', found JSONDecodeError"),
    "half saved": ({"dataset_dict.json": '{"splits": ["train"]}'}, {}, "of `save_to_disk` in .*, found .*Error"),
    "config": ({"metadata.jsonl": GOOD}, {"dataset_config": "en"}, "`dataset_config` with `dataset`, found 'en' with"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_one_message(tmp_path, case):
    files, arguments, message = BAD[case]
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        load_folder(folder, **arguments)
    assert str(error.value).startswith("Expected ")
    assert "\n" not in str(error.value)


def test_class_lists_of_the_splits_must_agree(tmp_path):
    parts = {}
    for split, names in {"train": ["a", "b"], "test": ["b", "a"]}.items():
        features = Features({"image": Value("string"), "labels": List(ClassLabel(names=names))})
        parts[split] = Dataset.from_dict({"image": ["x.png"], "labels": [[0]]}, features=features)
    DatasetDict(parts).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"the same kind of labels .*\['a', 'b'\].* in 'train' and .*\['b', 'a'\]"):
        load_folder(tmp_path / "data")


def test_missing_pictures_are_for_check_files(tmp_path):
    folder = write_folder(tmp_path / "a", "csv")
    (folder / "train" / "3.png").unlink()
    data = load_folder(str(folder))
    with pytest.raises(
        ValueError, match=f"12 images of the train split to be there, found 1 missing: '{folder}/train/3"
    ):
        check_files(data["train"], "image", "train")


def test_a_long_csv_with_line_breaks_in_names(tmp_path):
    names = [f"{row:06}\n{'x' * 90}.png" for row in range(15_000)]  # more than is parsed at a time
    rows = "".join(f'"{name}",{row % 2},{row // 2 % 2}\r\n' for row, name in enumerate(names))
    (tmp_path / "metadata.csv").write_text("file_name,b,a\r\n" + rows, encoding="utf-8", newline="")
    data = load_folder(tmp_path, test_fraction=0.5)
    assert [len(data[split]) for split in data] == [7500, 7500]
    for split in data.values():
        ids = list(split["id"])
        assert [os.path.basename(name) for name in image_names(split, "image")] == [names[row] for row in ids]
        assert labels_of(split) == [["b"] * (row % 2) + ["a"] * (row // 2 % 2) for row in ids]


def test_folders_that_may_not_be_read(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "a", "jsonl")
    scandir, forbidden = os.scandir, [str(folder / "lost+found")]

    def guarded(path="."):
        if os.fspath(path) in forbidden:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    (folder / "lost+found").mkdir()
    monkeypatch.setattr(os, "scandir", guarded)
    assert len(load_folder(folder)["test"]) == 6
    read_bytes = Path.read_bytes

    def locked(path):
        if path.name == "metadata.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", locked)
    with pytest.raises(
        ValueError, match=r"files that can be read, found '.*/test/metadata.jsonl' \(Permission denied\)"
    ):
        load_folder(folder)


def test_folders_may_be_links(tmp_path):
    folder = write_folder(tmp_path / "a", "jsonl")
    (tmp_path / "linked").mkdir()
    for split in SPLITS:
        (tmp_path / "linked" / split).symlink_to(folder / split)
    data = load_folder(tmp_path / "linked")
    assert [labels_of_picture(picture) for picture in data["test"]["image"]] == labels_of(data["test"])


def test_one_source(tmp_path, monkeypatch):
    example = (
        r'metadata.jsonl with lines such as \{"file_name": "0001.jpg", "labels": \["cat", "dog"\]\}.*0001.jpg,cat\|dog'
    )
    for arguments, found in (({}, "neither"), ({"data_dir": "", "dataset": None}, "neither")):
        with pytest.raises(ValueError, match=f"either `data_dir`.* or `dataset`.*, found {found}.*{example}"):
            load_folder(**arguments)
    with pytest.raises(ValueError, match="found both"):
        load_folder("a", "b")
    with pytest.raises(ValueError, match=f"found nothing at '{tmp_path}/nix'. Correct the path.*{example}"):
        load_folder(tmp_path / "nix")
    (tmp_path / "metadata.jsonl").write_text(GOOD)
    with pytest.raises(ValueError, match="found a file at '.*metadata.jsonl'"):
        load_folder(tmp_path / "metadata.jsonl")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    with pytest.raises(ValueError, match="found the path 'own'. Pass it as `data_dir`"):
        load_folder(dataset="own")
    for arguments in ({"data_dir": 3}, {"dataset": 3}):
        with pytest.raises(TypeError, match="Expected a text as `data.*`, found 3"):
            load_folder(**arguments)


def test_a_data_set_of_the_hub_takes_the_same_road(tmp_path, monkeypatch):
    write_folder(tmp_path / "a", "disk")
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a: asked.append(a) or datasets.load_from_disk(tmp_path / "a")
    )
    data = load_folder(dataset="someone/animals", dataset_config="small")
    assert asked == [("someone/animals", "small")]
    assert [counts_of(data[split]) for split in data] == [COUNTS["train"], COUNTS["test"]]
    building = DatasetGenerationError("An error occurred while generating the dataset")
    building.__cause__ = pa.ArrowInvalid("bad\nfile.")
    for problem, found in (
        (
            DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub or cannot be accessed."),
            "DatasetNotFoundError: Da",
        ),
        (ConnectionError("Couldn't reach it"), "ConnectionError: Couldn't reach it. Check the name .*connection"),
        (ValueError("BuilderConfig 'small' not found"), "ValueError: BuilderConfig 'small' not found"),
        (RuntimeError("Dataset scripts are no longer supported"), "RuntimeError: Dataset scripts"),
        (building, r"ArrowInvalid: bad file\. Check"),
    ):

        def fail(*_, problem=problem):
            raise problem

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(ValueError, match=rf"the data set 'someone/animals' of the Hub .*'small', found {found}"):
            load_folder(dataset="someone/animals", dataset_config="small")


def test_an_unreachable_hub_is_one_message(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="the data set 'no/such-set' of the Hub, found .*Error: .*or pass a local copy"
    ):
        load_folder(dataset="no/such-set")


def test_a_split_whose_metadata_is_missing_does_not_vanish(tmp_path):
    folder = write_folder(tmp_path / "data")
    (folder / "train" / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=r"found 12 images in '.*train' and none of them in a metadata file"):
        load_folder(folder)


def test_one_metadata_file_for_the_folders_of_several_splits(tmp_path):
    folder = write_folder(tmp_path / "data")
    rows = []
    for split in ("train", "test"):
        metadata = folder / split / "metadata.jsonl"
        rows += [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            row["file_name"] = row["file_name"] if "/" in row["file_name"] else f"{split}/{row['file_name']}"
        metadata.unlink()
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    splits = load_folder(folder)
    assert {name: len(split) for name, split in splits.items()} == SPLITS
    assert all("/test/" in name for name in image_names(splits["test"], "image"))
    assert splits["test"]["labels"] == [[k for k in range(3) if row >> k & 1] for row in range(SPLITS["test"])]
    rows[3]["file_name"] = "elsewhere.png"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ValueError, match="entry 4 of .* in none, and others in 'train'"):
        load_folder(folder)


def test_ignored_labels_belong_to_the_test_split(tmp_path):
    folder = write_folder(tmp_path / "data")
    for split, ignored in (("train", []), ("test", ["eel"])):
        metadata = folder / split / "metadata.jsonl"
        rows = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            row["ignored_labels"] = [name for name in ignored if name not in row["labels"]]
        metadata.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    splits = load_folder(folder)
    assert "ignored_labels" not in splits["train"].column_names
    assert splits["test"]["ignored_labels"][0] == [2]
    (folder / "train" / "metadata.jsonl").write_text(
        (folder / "test" / "metadata.jsonl").read_text(encoding="utf-8"), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"no 'ignored_labels' in training, found some in 4 rows.*train split"):
        load_folder(folder)


def test_clean_labels_are_written_as_the_labels_are(tmp_path):
    folder = write_folder(tmp_path / "data", splits={"": 8})
    (folder / "metadata.csv").write_text(
        "file_name,labels,clean_labels\n" + "".join(f"{row}.png,cat/dog,dog/eel\n" for row in range(8)),
        encoding="utf-8",
    )
    (folder / "metadata.jsonl").unlink()
    train = load_folder(folder, label_delimiter="/", class_names=NAMES)["train"]
    assert train["clean_labels"][0] == [1, 2]
    assert train.features["clean_labels"] == train.features["labels"]
