"""The commands `hf-balancemix audit` and `apply-review`, on label states written by hand and on a real run."""

import csv
import json
import os
import shutil

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from transformers.utils import logging

from hf_balancemix import BalanceMixTrainer
from hf_balancemix.cli.main import main
from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.digits import load_digits_attributes
from hf_balancemix.data.folder import load_folder
from hf_balancemix.data.noise import NoiseSpec, inject_noise
from hf_balancemix.label_state import LabelState
from tests import tiny
from tests.browser import Page
from tests.layouts.folder import KINDS, NAMES, labels_of_row, write_folder

ROWS = 12
# Row and class of what is suspicious, with the mean posterior. Row i has class k if bit k of i % 8 is set.
SUSPICIOUS = {(5, 0): 0.1, (8, 2): 0.2, (6, 1): 0.3}
FACTS = {"noise": [], "relabel_threshold": 0.9, "refinement": "full"}


def corrected_rows(changes=SUSPICIOUS):
    """Labels of each row with the suggestions for some applied, as the layout's own rule gives them."""
    rows = [set(labels_of_row(row)) for row in range(ROWS)]
    for row, k in changes:
        rows[row] ^= {NAMES[k]}
    return rows


def write_state(folder, labels, names, suspicious, facts=FACTS):
    mean = torch.full(labels.shape, 0.9)
    for place, value in suspicious.items():
        mean[place] = value
    state = LabelState(
        torch.from_numpy(labels),
        tuple(names),
        prepared_epoch=7,
        probs=torch.full(labels.shape, 0.5),
        posterior=mean.clone(),
        posterior_mean=mean,
        posterior_count=torch.tensor([5]),
        confidence=torch.full(labels.shape, 0.5),
    )
    folder.mkdir(parents=True)
    state.save(folder, facts)


def table_of_rows(count=ROWS):
    return np.array([[name in labels_of_row(row) for name in NAMES] for row in range(count)]).astype(np.uint8)


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A working folder with a run and its data."""
    write_state(tmp_path / "run" / "_label_state", table_of_rows(), NAMES, SUSPICIOUS)
    write_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    verbosity = logging.get_verbosity()
    yield tmp_path
    logging.set_verbosity(verbosity)


def read_csv(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def fail(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def named_labels(rows, column="labels"):
    table = encode_labels(rows, column, NAMES)
    return [{NAMES[k] for k in np.flatnonzero(row)} for row in table.labels]


# ---- audit ----


WRITTEN = {"index.html", "label_issues.csv", "label_issues.parquet"}


def test_without_data(here, capsys):
    main(["audit", "run"])
    said = capsys.readouterr()
    rows = read_csv("audit/label_issues.csv")
    shown = [[row[name] for name in ("index", "image", "class", "given", "kind")] for row in rows]
    assert shown == [
        ["5", "row 5", "cat", "1", "wrong positive"],
        ["8", "row 8", "eel", "0", "missing positive"],
        ["6", "row 6", "dog", "1", "wrong positive"],
    ]
    assert [float(row["score"]) for row in rows] == pytest.approx([0.9, 0.8, 0.7], abs=2e-4)  # as label states round
    assert "3 label issues, 8.33% of the labels, with a score above 0.5" in said.out
    lines = [line.split() for line in said.out.splitlines()[1:5]]
    assert lines == [["cat", "6", "1", "0"], ["dog", "6", "1", "0"], ["eel", "4", "0", "1"], ["all", "16", "2", "1"]]
    assert "without the training data the page has no pictures, images are named by their rows" in said.err
    assert {path.name for path in (here / "audit").iterdir()} == WRITTEN


@pytest.mark.parametrize("kind", KINDS)
def test_with_data_in_every_layout(here, kind):
    write_folder(here / "mine", kind)
    main(["audit", "run", "--data_dir", "mine", "--out", "found", "--above", "0.75"])
    frame = pd.read_parquet("found/label_issues.parquet")
    assert frame[["index", "class"]].values.tolist() == [[5, "cat"], [8, "eel"]]
    if kind not in ("parquet", "disk"):  # whose images have no names
        assert [image.rpartition("/")[2] for image in frame["image"]] == ["5.png", "8.png"]
    assert not any(os.path.isabs(image) for image in frame["image"])
    saved = datasets.load_from_disk("found/corrected")["train"]
    assert named_labels(saved) == corrected_rows([(5, 0), (8, 2)])
    assert named_labels(saved, "given_labels") == [set(labels_of_row(row)) for row in range(ROWS)]
    assert saved.features["label_status"].feature.names == ["clean", "relabelled", "ambiguous"]
    statuses = np.array(saved["label_status"])
    assert {(row, k) for row, k in np.argwhere(statuses == 2).tolist()} == set(SUSPICIOUS)  # confidence 0.5
    assert (statuses == 2).sum() + (statuses == 0).sum() == 36
    untouched = named_labels(load_folder("mine")["test"])
    (here / "mine").rename(here / "moved")
    again = load_folder("found/corrected")  # holds its images
    assert named_labels(again["test"]) == untouched
    assert len(untouched) > 0
    pictures = {*(p.convert("RGB").getpixel((0, 0)) for p in again["train"]["image"])}
    assert len(pictures) > 4


def test_the_recipe_of_the_run_says_how_its_data_were_read(here):
    # Another split than usual, unreadable images left out, and injected noise.
    write_folder(here / "other", splits={"validation": 12, "train": 5, "test": 6})
    (here / "other" / "validation" / "3.png").write_bytes(b"no picture")
    specs = [{"kind": "flip", "rate": 0.3, "seed": 4, "avoid_present": False, "exact": False}]
    clean = load_folder(here / "other", train_split="validation")["train"].select([0, 1, 2, *range(4, 12)])
    noisy = encode_labels(inject_noise(clean, [NoiseSpec("flip", 0.3, 4)])).labels
    assert not np.array_equal(noisy, encode_labels(clean).labels)
    write_state(here / "b" / "checkpoint-9", noisy, NAMES, {(4, 1): 0.25}, {**FACTS, "noise": specs})
    own = {"recipe": "folder", "train_split": "validation", "test_fraction": 0.2, "dataset": None, "digest": "0"}
    settings = {"data": own, "on_bad_image": "skip"}
    (here / "b" / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    main(["audit", "b", "--data_dir", "other"])
    assert [row["image"].rpartition("/")[2] for row in read_csv("audit/label_issues.csv")] == ["5.png"]
    saved = datasets.load_from_disk("audit/corrected")["train"]
    noisy[4, 1] ^= 1
    assert np.array_equal(encode_labels(saved, "labels").labels, noisy)
    main(["audit", "b", "--out", "bare"])  # the folder of the data is nowhere written down
    assert not (here / "bare" / "corrected").exists()


def test_the_newest_checkpoint_of_a_run_that_has_not_ended(here, capsys):
    for step, issues in ((9, {(0, 0): 0.1}), (10, SUSPICIOUS), (8, {(1, 1): 0.1})):
        write_state(here / "going" / f"checkpoint-{step}", table_of_rows(), NAMES, issues)
    main(["audit", "going"])
    assert "label state: going/checkpoint-10, after" in capsys.readouterr().out
    assert {int(row["index"]) for row in read_csv("audit/label_issues.csv")} == {row for row, _ in SUSPICIOUS}


def test_a_folder_takes_the_place_of_the_hub_and_classes_keep_the_order_of_the_run(here):
    order = [2, 0, 1]
    names = [NAMES[k] for k in order]
    places = {(row, order.index(k)): value for (row, k), value in SUSPICIOUS.items()}
    write_state(here / "hub" / "_label_state", table_of_rows()[:, order], names, places)
    own = {"recipe": "folder", "dataset": "user/gone", "dataset_config": "large"}
    (here / "hub" / "settings.json").write_text(json.dumps({"data": own}), encoding="utf-8")
    main(["audit", "hub", "--data_dir", "data"])
    saved = datasets.load_from_disk("audit/corrected")["train"]
    assert saved.features["labels"].feature.names == names
    assert [{names[k] for k in row} for row in saved["labels"]] == corrected_rows()


def test_digits_are_there_without_being_told(here):
    noisy = inject_noise(load_digits_attributes()["train"], [NoiseSpec("mislabel", 0.4, 1)])
    labels, names = encode_labels(noisy).labels, encode_labels(noisy).class_names
    facts = {**FACTS, "noise": [{"kind": "mislabel", "rate": 0.4, "seed": 1, "avoid_present": False, "exact": False}]}
    write_state(here / "d" / "_label_state", labels, names, {(3, 4): 0.0}, facts)
    (here / "d" / "settings.json").write_text(json.dumps({"data": {"recipe": "digits"}}), encoding="utf-8")
    main(["audit", "d"])
    assert read_csv("audit/label_issues.csv")[0]["image"] == str(noisy[3]["id"])
    main(["audit", "d", "--recipe", "digits", "--overwrite"])
    assert datasets.load_from_disk("audit/corrected")["train"].num_rows == 627


def test_of_a_real_run(here, capsys):
    train = tiny.tiny_dataset(24)
    arguments = tiny.arguments(here / "real", save_strategy="steps", save_steps=2)
    trainer = BalanceMixTrainer(tiny.tiny_vit(), arguments, train_dataset=train, processing_class=tiny.processor())
    trainer.train()
    main(["audit", "real", "--above", "0"])
    frame = pd.read_parquet("audit/label_issues.parquet")
    mean = trainer.label_state.posterior_mean.numpy()
    assert len(frame) == (1 - mean > 0).sum()
    assert frame["score"].to_numpy() == pytest.approx(1 - mean[frame["index"], frame["class"].map(tiny.NAMES.index)])
    assert "label state: real/_label_state, after 2 epochs" in capsys.readouterr().out
    main(["audit", "real/checkpoint-4", "--out", "older"])
    assert "label state: real/checkpoint-4, after 1 epochs" in capsys.readouterr().out
    assert "found one without, of another method or of the warm-up" in fail(
        capsys, "audit", "real/checkpoint-2", "--out", "oldest"
    )
    assert not (here / "oldest").exists()


MISTAKES = {
    "audit": "The following arguments are required: RUN",
    "audit rnu": "no folder 'rnu'. Check the path; fetch a repository of the Hub",
    "audit user/name": "no folder 'user/name'",
    "audit data": "no label_state.safetensors in 'data' or its checkpoints. Name the output folder of a run",
    "audit .": "in '.' or its checkpoints (did you mean 'run'?). Name the output folder",
    "audit run --above 2": "expected a number from 0 to below 1, found '2'",
    "audit run --above x": "found 'x'",
    "audit run --out data": "found 'data' with files. Choose another --out",
    "audit run --out data/train/0.png": "found the file 'data/train/0.png'",
    "audit run --data_dir dta": "found nothing at",
    "audit run --data_dir smaller": "Expected the 12 training images of the run, found 8 in these data",
    "audit run --data_dir changed": "found others in 1 of 12 rows, first in row 1",
    "audit run --data_dir foreign": "'fox'",
    "audit run --data_dir holes": "3.png",
    "audit run --label_column labels": "Say where they are",
    "audit run --recipe digist": "found 'digist' (did you mean 'digits'?)",
    "audit run --recipe digits": "Expected the 3 classes of the run, found 17",
    "audit run --recipe digits --data_dir data": "Expected no --data_dir with the data of the recipe digits",
    "audit run --recipe voc --data_dir data": "VOCdevkit",
    "audit run --dta_dir data": "Unknown option --dta_dir (did you mean '--data_dir'?)",
    "audit broken": "is damaged",
    "apply-review decisions.csv": "required: --out",
    "apply-review decisions.csv --out new": "Expected the training data, found no --data_dir",
    "apply-review none.csv --data_dir data --out new": "No such file",
    "apply-review decisions.csv --data_dir data --out data --overwrite": "another folder than 'data' for the new data",
    "apply-review decisions.csv --data_dir data --out run --overwrite": "would be lost",
    "apply-review decisions.csv --data_dir changed --out new": "given label 1 of 'cat' in row 1",
    "apply-review decisions.csv --data_dir smaller --out new": "found '8' in line 4",
    "apply-review rejected.csv --data_dir data --out new": "none in 'rejected.csv', 1 rejected. Accept some",
    "apply-review decisions.csv --data_dir data --run nothing --out new": "no folder 'nothing'",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(here, capsys, words):
    write_folder(here / "smaller", splits={"train": 8, "test": 6})
    write_folder(here / "foreign", names=("fox", "dog", "eel"))
    write_folder(here / "changed")
    path = here / "changed" / "train" / "metadata.jsonl"
    lines = path.read_text(encoding="utf-8").replace('"1.png", "labels": ["cat"]', '"1.png", "labels": ["dog"]')
    path.write_text(lines, encoding="utf-8")
    write_folder(here / "holes")
    (here / "holes" / "train" / "3.png").unlink()
    (here / "broken").mkdir()
    (here / "broken" / "label_state.safetensors").write_bytes(b"\x00" * 100)
    write_decisions()
    write_decisions([("5", "5.png", "cat", "1", "0", "reject")], "rejected.csv")
    assert MISTAKES[words] in fail(capsys, *words.split(" "))
    assert not (here / "new").exists()
    assert not (here / "audit").exists()


def test_earlier_results_are_replaced_only_when_asked(here, capsys):
    main(["audit", "run", "--data_dir", "data"])
    assert "Choose another --out, or add --overwrite" in fail(capsys, "audit", "run")
    main(["audit", "run", "--data_dir", "data", "--above", "0.85", "--overwrite"])
    assert len(read_csv("audit/label_issues.csv")) == 1
    assert named_labels(datasets.load_from_disk("audit/corrected")["train"]) == corrected_rows([(5, 0)])
    assert {path.name for path in (here / "audit").iterdir()} == WRITTEN | {"corrected"}
    main(["audit", "run", "--overwrite"])  # without data: what was corrected by other issues goes
    assert {path.name for path in (here / "audit").iterdir()} == WRITTEN


# ---- apply-review ----

DECISIONS = [
    ("5", "5.png", "cat", "1", "0", "accept"),
    ("1", "1.png", "cat", "1", "0", "accept"),
    ("8", "8.png", "eel", "0", "1", "reject"),
]


def write_decisions(lines=DECISIONS, path="decisions.csv"):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("index", "image", "class", "given", "suggested", "decision"), *lines])


def test_accepted_decisions_are_applied(here, capsys):
    write_decisions()
    main(["apply-review", "decisions.csv", "--data_dir", "data", "--out", "cleaned"])
    said = capsys.readouterr().out
    assert "2 suggestions accepted, 1 rejected; 2 images changed" in said
    saved = datasets.load_from_disk("cleaned")["train"]
    assert named_labels(saved) == corrected_rows([(5, 0), (1, 0)])
    assert named_labels(load_folder("cleaned", test_split=None)["train"])
    main(["apply-review", "decisions.csv", "--data_dir", "data", "--out", "cleaned", "--run", "run", "--overwrite"])
    assert named_labels(datasets.load_from_disk("cleaned")["train"]) == corrected_rows([(5, 0), (1, 0)])


def test_a_review_of_what_audit_wrote(here):
    main(["audit", "run", "--data_dir", "data"])
    frame = pd.read_csv("audit/label_issues.csv")
    frame.assign(decision="accept").to_csv("decisions.csv", index=False)  # with more columns than are needed
    main(["apply-review", "decisions.csv", "--data_dir", "data", "--out", "cleaned"])
    assert named_labels(datasets.load_from_disk("cleaned")["train"]) == corrected_rows()


def test_the_current_folder_is_not_replaced(here, capsys, monkeypatch):
    write_decisions()
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")
    line = fail(capsys, "apply-review", "../decisions.csv", "--data_dir", "../data", "--out", ".")
    assert "Expected another folder than the current one for the new data set, found '.'. Name a new one." in line


def test_nothing_but_the_named_folder_is_touched(here):
    write_decisions()
    (here / "cleaned.tmp").mkdir()
    (here / "cleaned.tmp" / "mine.txt").write_text("kept", encoding="utf-8")
    (here / "disk").mkdir()
    (here / "cleaned").symlink_to("disk")
    before = {path.name for path in here.iterdir()}
    for more in ([], ["--overwrite"]):
        main(["apply-review", "decisions.csv", "--data_dir", "data", "--out", "cleaned", *more])
        assert named_labels(datasets.load_from_disk("disk")["train"]) == corrected_rows([(5, 0), (1, 0)])
    assert (here / "cleaned").is_symlink()
    assert (here / "cleaned.tmp" / "mine.txt").is_file()
    assert {path.name for path in here.iterdir()} == before


def test_from_a_run_over_the_page_to_a_cleaned_data_set(here, driver):
    """Three suggestions are accepted and two rejected, all by keyboard."""
    train = tiny.tiny_dataset(24)
    train.save_to_disk("pictures")
    arguments = tiny.arguments(here / "real")
    BalanceMixTrainer(tiny.tiny_vit(), arguments, train_dataset=train, processing_class=tiny.processor()).train()
    main(["audit", "real", "--data_dir", "pictures", "--recipe", "folder", "--above", "0.01"])
    frame = pd.read_parquet("audit/label_issues.parquet")
    assert len(frame) > 5
    page = Page(driver, driver.downloads)
    page.open(here / "audit" / "index.html")
    page.keys("a", "r", "a", "r", "a")
    assert page.text("#reviewed") == f"5 of {len(frame)} reviewed"
    shutil.move(page.export("e"), "decisions.csv")
    assert page.errors() == []
    main(["apply-review", "decisions.csv", "--data_dir", "pictures", "--run", "real", "--out", "cleaned"])
    expected = encode_labels(train, "labels").labels
    for row, name in frame[["index", "class"]].to_numpy()[[0, 2, 4]]:
        expected[row, tiny.NAMES.index(name)] ^= 1
    cleaned = datasets.load_from_disk("cleaned")["train"]
    assert np.array_equal(encode_labels(cleaned, "labels").labels, expected)
    assert cleaned["given_labels"] == train["labels"]
