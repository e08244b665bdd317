"""The command `hf-balancemix thresholds`: which images it reads, what it saves, and `predict` afterwards."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoConfig
from transformers.utils import logging

from hf_balancemix.build import build_model
from hf_balancemix.cli.main import main
from hf_balancemix.data.digits import CLASS_NAMES
from tests.cli.test_predict import fail
from tests.layouts.folder import KINDS, NAMES, labels_of_row, write_folder

ROWS = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint whose scores differ from image to image, and a data set with three splits."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    model, processor = build_model("small_resnet", NAMES, 16, pretrained=False)
    with torch.no_grad():
        model.classifier[-1].weight.mul_(20)
    for part in (model, processor):
        part.save_pretrained(folder / "model")
    write_folder(folder / "data", splits={"train": 12, "validation": ROWS, "test": 6})
    return folder


@pytest.fixture
def here(made, monkeypatch, tmp_path):
    """A working folder with a checkpoint of its own and the data."""
    shutil.copytree(made / "model", tmp_path / "model")
    (tmp_path / "data").symlink_to(made / "data")
    monkeypatch.chdir(tmp_path)
    verbosity = logging.get_verbosity()
    yield tmp_path
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def saved(folder="model"):
    return getattr(AutoConfig.from_pretrained(folder), "decision_thresholds", None)


def test_tuned_on_validation_and_used_by_predict(here, capsys):
    main(["predict", "model", "data/validation", "--output", "plain.csv"])
    capsys.readouterr()
    main(["thresholds", "model", "--data_dir", "data", "--batch_size", "5"])
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "tuned on the validation split, 24 images; saved in model/config.json"
    assert "24/24" in said.err
    main(["predict", "model", "data/validation", "--output", "a.csv"])
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == "24 images scored, 0 skipped: a.csv"
    assert said[-1].startswith("labels: classes that reach their decision threshold in the checkpoint's config.json, ")
    main(["predict", "model", "data/validation", "--output", "a.jsonl"])
    with open("a.csv", encoding="utf-8", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    with open("plain.csv", encoding="utf-8", newline="") as file:
        plain = list(csv.DictReader(file))
    assert [{k: v for k, v in row.items() if k != "labels"} for row in rows.values()] == plain
    ordered = [rows[f"data/validation/{row}.png"] for row in range(ROWS)]
    labels = np.array([[name in labels_of_row(row) for name in NAMES] for row in range(ROWS)])
    predicted = np.array([[name in row["labels"].split("|") for name in NAMES] for row in ordered])
    scores = np.array([[row[name] for name in NAMES] for row in ordered]).astype(np.float32)
    thresholds = saved()
    assert (predicted == (scores >= [thresholds[name] for name in NAMES])).all()
    for k in range(len(NAMES)):  # no other threshold is better
        best = max(f1_score(labels[:, k], scores[:, k] >= cut) for cut in scores[:, k])
        assert f1_score(labels[:, k], predicted[:, k]) == pytest.approx(best)
    assert not (predicted == (scores >= 0.5)).all()  # or nothing would be shown
    with open("a.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    assert {line["file"]: "|".join(line["labels"]) for line in lines} == {f: row["labels"] for f, row in rows.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout(here, kind):
    write_folder(here / "other", kind, splits={"train": 12, "val": ROWS, "test": 6})
    main(["thresholds", "model", "--data_dir", "other", "--batch_size", "24"])
    found = saved()
    main(["thresholds", "model", "--data_dir", "data", "--batch_size", "24"])
    assert found == pytest.approx(saved(), abs=1e-6)


def test_a_folder_of_validation_images_alone(here, capsys):
    write_folder(here / "mine", splits={"": ROWS})
    main(["thresholds", "model", "--data_dir", "mine"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("tuned on all images of 'mine', 24 images")
    alone = saved()
    main(["thresholds", "model", "--data_dir", "data"])
    assert alone == saved()


def test_few_positives_keep_the_default_and_bad_images_are_left_out(here, capsys):
    write_folder(here / "small", splits={"validation": 12})  # 6, 6 and 4 positives
    main(["thresholds", "model", "--data_dir", "small"])
    out = capsys.readouterr().out
    assert "kept at 0.5, with fewer than 5 positive images: 'eel'" in out
    assert saved()["eel"] == 0.5
    assert 0.5 not in (saved()["cat"], saved()["dog"])
    (here / "small" / "validation" / "8.png").write_bytes(b"no picture")
    before = saved()
    assert "8.png" in fail(capsys, "thresholds", "model", "--data_dir", "small")
    assert saved() == before
    main(["thresholds", "model", "--data_dir", "small", "--on_bad_image", "skip"])
    said = capsys.readouterr()
    assert "11 images" in said.out
    assert "skipped 1 that cannot be read: " in said.err


MISTAKES = {
    "nothing --data_dir data": "no folder 'nothing'. Check the path; fetch a model",
    "user/name --data_dir data": "no folder 'user/name'",
    "model": "either `data_dir`, a folder, or `dataset`, a name on the Hub, found neither",
    "model --data_dir data --split test": "that is not the test split, found 'test'. What is chosen on",
    "model --data_dir data --split Testing": "found 'Testing'. What is",
    "model --data_dir data --split validatoin": "found 'validatoin' (did you mean 'validation'?)",
    "model --data_dir two": ". Hold out some of the training images as a split of that name, or name another one",
    "model --data_dir two --split test": "that is not the test split, found 'test'.",
    "model --data_dir train_only": "found 'train'. Hold out",
    "model --data_dir test_only": "found 'test'. Hold out",
    "model --data_dir two/test": "two/test' that is not the test split, found 'test'.",
    "model --data_dir dta": "found nothing at",
    "model --data_dir foreign": "found 'fox' in row 1",
    "model --data_dir data --recipe digits": "Expected no --data_dir with the data of the recipe digits",
    "model --recipe digist": "found 'digist' (did you mean 'digits'?)",
    "model --recipe digits": "Expected a validation split in the recipe digits",
    "model --recipe digits --split test": "found 'test'",
    "model --recipe digits --split train": "class names",
    "model --recipe voc --data_dir data --split train": "VOCdevkit",
    "model --data_dir data --splt x": "Unknown option --splt (did you mean '--split'?)",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(here, capsys, words):
    for name, splits in (("two", ("train", "test")), ("train_only", ("train",)), ("test_only", ("test",))):
        write_folder(here / name, splits=dict.fromkeys(splits, 8))
    write_folder(here / "foreign", names=("fox", "dog", "eel"), splits={"validation": 8})
    assert MISTAKES[words] in fail(capsys, "thresholds", *words.split(" "))
    assert saved() is None


def test_the_training_split_only_when_asked_for(here, capsys):
    write_folder(here / "two")
    main(["thresholds", "model", "--data_dir", "two", "--split", "train"])
    said = capsys.readouterr()
    assert "tuned on the train split, 12 images" in said.out
    assert "note: the scores of images that the model was trained on" in said.err


def test_data_of_a_recipe(here, capsys):
    model, processor = build_model("small_resnet", CLASS_NAMES, 16, pretrained=False)
    for part in (model, processor):
        part.save_pretrained("digits")
    main(["thresholds", "digits", "--recipe", "digits", "--split", "train", "--batch_size", "256"])
    assert "tuned on the train split, 627 images" in capsys.readouterr().out
    assert set(saved("digits")) == set(CLASS_NAMES)
