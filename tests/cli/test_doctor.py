"""The command `hf-balancemix doctor`: what it prints and writes, and what it says of data that cannot be read."""

import json

import pytest

from hf_balancemix.cli.main import main
from tests.layouts.folder import NAMES, write_folder
from tests.reports.test_doctor import Balanced

SMALL = ("--backbone", "small_resnet", "--image_size", "16")
HOSTILE = ("<script>alert(1)</script>", "a\"b' & [x]*\n{{ 7*7 }}", "猫\x1b[2J")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def numbers(folder="doctor"):
    with open(f"{folder}/doctor.json", encoding="utf-8") as file:
        return json.load(file)


def page(folder="doctor"):
    with open(f"{folder}/doctor.html", encoding="utf-8") as file:
        parser = Balanced()
        parser.feed(file.read())
    assert parser.open == []
    return parser


def fail(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", *words])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    line = said.err.splitlines()[-1]
    assert line.startswith("error: ")
    return said.out, line


def test_a_folder_counted_by_hand(here, capsys):
    write_folder(here / "data")
    main(["doctor", "data", *SMALL])
    out = capsys.readouterr().out
    assert "step 1 of 7, data: 12 train, 6 test images\n" in out
    assert "step 4 of 7, images: 12 of 12 train images read; 6 of 6 test images read\n" in out
    assert out.splitlines()[-1] == "written: doctor/doctor.html"
    found = numbers()
    assert found["class_names"] == list(NAMES)
    train, test = found["labels"]["train"], found["labels"]["test"]
    assert (train["positives"], test["positives"]) == ([6, 6, 4], [3, 2, 2])
    assert train["per_image"] == [2, 5, 4, 1]
    assert train["empty"] == [0, 8]
    assert train["class_imbalance"] == 1.5
    assert train["positive_negative_imbalance"] == 1.25
    # Of 6 images 3, 2 and 2 have the class: H = 2.45, (2.45 + 2 · 3.55/5)/6 = 0.645, (2.45 + 3.55/5)/6 = 0.52667.
    assert test["chance_map"] == pytest.approx(100 * (129 / 200 + 2 * 79 / 150) / 3)
    assert [row[:3] for row in found["co_occurrence"]["most"]] == [
        ["cat", "dog", 3],
        ["cat", "eel", 2],
        ["dog", "eel", 2],
    ]
    # The picture of a row is that of its labels: those of 0 to 5 are in both splits, those of 6 and 7 nowhere else.
    assert len(found["duplicates"]) == 6
    assert all(one["across"] and not one["labels_differ"] for one in found["duplicates"])
    assert sum(len(one["images"]) for one in found["duplicates"]) == 10 + 6
    assert found["images"]["train"]["sizes"] == [{"width": 8, "height": 8, "images": 12}]
    assert found["chance_loss"] == pytest.approx(3 * 0.693147, abs=1e-5)
    assert found["estimate"]["cache_bytes"] == 12 * 3 * 16 * 16
    assert found["estimate"]["steps_per_epoch"] == 0
    assert found["estimate"]["model_seconds"] > 0  # of the refresh
    assert found["estimate"]["model_bytes"] > 0
    assert any("12 training images are less than one batch of 32" in sentence for sentence in found["advice"])
    shown = page()
    assert sum(tag == "img" for tag, _ in shown.tags) == 4 + 4 * 3  # figures, and three views of four images
    again = numbers()["untrained_loss"]
    main(["doctor", "data", *SMALL])
    assert numbers()["untrained_loss"] == again


def test_hostile_names_travel_unharmed(here, capsys):
    files = [f"<b>\"{row}\" & '{row}'.png" for row in range(12)]
    write_folder(here / "<i>data</i>", "metadata_parquet", names=HOSTILE, file_names=files)
    main(["doctor", "<i>data</i>", *SMALL, "--out", "<out>"])
    assert "\x1b" not in capsys.readouterr().out
    assert sorted(numbers("<out>")["class_names"]) == sorted(HOSTILE)
    shown = page("<out>")
    assert not {tag for tag, _ in shown.tags} & {"script", "b", "i"}
    text = "".join(shown.texts)
    for name in HOSTILE[:2]:
        assert name in text
    assert "{{ 7*7 }}" in text
    assert any(f"as stored: {here}/<i>data</i>/train/{files[0]}" == attrs.get("alt") for _, attrs in shown.tags)
    assert all(attrs["src"].startswith("data:image/png;base64,") for tag, attrs in shown.tags if tag == "img")
    assert not any("href" in attrs for _, attrs in shown.tags)


@pytest.mark.parametrize("kind", ["csv_columns", "disk"])
def test_other_layouts(here, kind):
    write_folder(here / "data", kind)
    main(["doctor", "--data_dir", "data", *SMALL])
    assert numbers()["labels"]["train"]["positives"] == [6, 6, 4]


def test_bad_images_are_told_and_do_not_stop_it(here, capsys):
    write_folder(here / "data")
    (here / "data" / "train" / "3.png").write_bytes(b"no picture")
    (here / "data" / "test" / "2.png").unlink()
    main(["doctor", "data", *SMALL])
    out = capsys.readouterr().out
    assert "11 of 12 train images read; 5 of 6 test images read" in out
    assert "train/3.png" in out
    assert "Unreadable images: 2." in out
    found = numbers()["images"]
    assert [len(found[name][kind]) for name in found for kind in ("missing", "unreadable")] == [0, 1, 1, 0]
    for row in range(12):
        (here / "data" / "train" / f"{row}.png").write_bytes(b"")
    out, line = fail(capsys, "data", *SMALL)
    assert out.splitlines()[-1] == "step 4 of 7, images: failed"
    assert "Expected a training image that can be read, found none of 12" in line


def test_a_sample_is_said_to_be_one(here, capsys):
    write_folder(here / "data")
    main(["doctor", "data", *SMALL, "--max_images", "4"])
    assert "train: 4 of 12 read, a random sample (--max_images)" in capsys.readouterr().out
    assert any("a random sample" in text for text in page().texts)
    assert numbers()["images"]["train"]["sampled"] == 4


def test_data_of_a_recipe(capsys):
    main(["doctor", "--recipe", "digits", "--max_images", "20"])
    assert numbers()["labels"]["train"]["num_images"] == 627
    assert numbers()["settings"]["own_groups"] is True
    assert "group" not in {text.strip() for text in page().texts}


MISTAKES = {
    "": ("", "Expected data to look at, found none"),
    "dta": ("step 1 of 7, data: failed", "found nothing at"),
    "data --data_dir data": ("", "Expected DATA or --data_dir, found both"),
    "data --recipe digits": ("", "no --data_dir with the data of the recipe digits"),
    "data --recipe digist": ("", "'digist' (did you mean 'digits'?)"),
    "data --bakbone x": ("", "Unknown option --bakbone (did you mean '--backbone'?)"),
    "data --backbone resnet5O": ("step 3 of 7, model: failed", "resnet5O"),
    "data --backbone small_resnet --image_size 2": ("step 3 of 7, model: failed", "at least 8"),
    "data --max_images 0": ("", "--max_images of at least 1, found 0"),
    "data --max_images x": ("", "invalid int value: 'x'"),
    "data --label_column lables": ("step 1 of 7, data: failed", "lables"),
    "data --test_split tst": ("step 1 of 7, data: failed", "'tst' (did you mean 'test'?)"),
    "data --out data/train/0.png": ("", "Expected a folder that can be written to as --out"),
    "empty": ("step 1 of 7, data: failed", "empty"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_the_step_before_it(here, capsys, words):
    write_folder(here / "data")
    (here / "empty").mkdir()
    step, message = MISTAKES[words]
    out, line = fail(capsys, *words.split())
    assert message in line
    assert (out.splitlines() or [""])[-1] == step
    assert not (here / "doctor" / "doctor.html").exists()
