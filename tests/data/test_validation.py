"""The split to choose settings on: validation by name, a whole folder, others by request, the test split never."""

import datasets
import pytest

from hf_balancemix.data.folder import load_validation
from hf_balancemix.data.validation import VALIDATION_SPLITS
from tests.layouts.folder import KINDS, NAMES, labels_of_picture, labels_of_row, write_folder
from tests.tiny import refused


def names_of(dataset):
    feature = dataset.features["labels"].feature
    return [[feature.int2str(k) for k in row] for row in dataset["labels"]]


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_and_labels_of_every_layout(tmp_path, kind):
    folder = write_folder(tmp_path / "data", kind, splits={"train": 12, "validation": 7, "test": 6})
    split, rows = load_validation(folder, class_names=NAMES)
    assert split == "validation"
    assert len(rows) == 7
    assert rows.features["labels"].feature.names == list(NAMES)
    assert sorted(map(sorted, names_of(rows))) == sorted(sorted(labels_of_row(row)) for row in range(7))
    assert names_of(rows) == [labels_of_picture(picture) for picture in rows["image"]]


@pytest.mark.parametrize("name", VALIDATION_SPLITS)
def test_every_name(tmp_path, name):
    data = {
        split: datasets.Dataset.from_dict({"image": ["x.png"] * n, "labels": [["a"]] * n})
        for split, n in ((name, 3), ("test", 2), ("train", 1))
    }
    datasets.DatasetDict(data).save_to_disk(tmp_path / "data")
    split, rows = load_validation(tmp_path / "data")
    assert (split, len(rows)) == (name, 3)
    split, rows = load_validation(tmp_path / "data", split="train")
    assert (split, len(rows)) == ("train", 1)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "metadata_parquet"])
def test_a_whole_folder_only_if_nothing_speaks_of_splits(tmp_path, kind):
    assert load_validation(write_folder(tmp_path / "mine", kind, splits={"": 5}))[0] == ""
    assert len(load_validation(tmp_path / "mine", split="train")[1]) == 5
    for number, split in enumerate(("train", "part/train", "my_training")):
        folder = write_folder(tmp_path / str(number), kind, splits={split: 5})
        refused(ValueError, ["Expected a validation split", "found 'train'"], load_validation, folder)
    for name in ("test", "Testing", "my-test"):
        folder = write_folder(tmp_path / name, kind, splits={"": 5})
        refused(ValueError, [f"{name}' that is not the test split"], load_validation, folder)
    folder = write_folder(tmp_path / "train", kind, splits={"": 5})
    refused(ValueError, ["Expected a validation split", "found 'train'"], load_validation, folder)
    # A folder above that happens to be called so says nothing.
    assert load_validation(write_folder(tmp_path / "test" / "mine", kind, splits={"": 5}))[0] == ""


def test_a_saved_data_set_without_splits(tmp_path):
    data = datasets.Dataset.from_dict({"image": ["x.png"] * 3, "labels": [["a"], [], ["a"]]})
    data.save_to_disk(tmp_path / "one")
    assert load_validation(tmp_path / "one")[0] == ""
    datasets.DatasetDict(train=data).save_to_disk(tmp_path / "dict")
    refused(ValueError, ["found 'train'"], load_validation, tmp_path / "dict")
    refused(
        ValueError, ["(In the train split.)"], load_validation, tmp_path / "dict", split="train", class_names=["b"]
    )
