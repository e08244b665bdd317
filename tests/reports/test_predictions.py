"""Scores written as CSV and JSON lines, read back by other programs' readers."""

import csv
import json
import os

import numpy as np
import pandas as pd
import pytest

from hf_balancemix.reports.predictions import ScoreWriter

CLASSES = ('say "hi"', "a,b", "línea\nnueva", "猫", " spaced ", "<b>&amp;</b>")
FILES = (
    *("plain.jpg", "ünïcödé/猫.png", "собака.png", "كلب.png", 'with "quotes".png', "it's.png", "a,b;c\td.png"),
    *("<img src=x>.png", "two\nlines.png", "dos\r\nlines.png", "only\rreturn.png", " spaces .png", "u2028\u2028.png"),
    *("=1+1.png", "'", "#hash.png", "back\\slash\\n.png", "emoji 🦊.png", "e\u0301.png", "\u00e9.png", "*[1]?.png"),
)


def random_scores(rows, classes=len(CLASSES), seed=0):
    return np.random.default_rng(seed).random((rows, classes)).astype(np.float32)


def written(path, files=FILES, classes=CLASSES, batch=4, overwrite=False):
    scores = random_scores(len(files), len(classes))
    with ScoreWriter(path, classes, overwrite) as writer:
        for start in range(0, len(files), batch):
            writer.write(files[start : start + batch], scores[start : start + batch])
    assert writer.rows == len(files)
    return scores


def test_csv_reads_back_exactly(tmp_path):
    path = tmp_path / "scores.csv"
    scores = written(path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ("file", *CLASSES)
    assert tuple(row["file"] for row in rows) == FILES
    found = np.array([[row[name] for name in CLASSES] for row in rows]).astype(np.float32)
    np.testing.assert_array_equal(found, scores)
    table = pd.read_csv(path)
    assert tuple(table.columns) == ("file", *CLASSES)
    assert tuple(table["file"]) == FILES
    np.testing.assert_array_equal(table[list(CLASSES)].to_numpy(np.float32), scores)


def test_json_lines_read_back_exactly(tmp_path):
    path = tmp_path / "scores.jsonl"
    scores = written(path)
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert [set(row) for row in rows] == [{"file", "scores"}] * len(FILES)
    assert tuple(row["file"] for row in rows) == FILES
    assert all(tuple(row["scores"]) == CLASSES for row in rows)
    np.testing.assert_array_equal(np.array([list(row["scores"].values()) for row in rows], np.float32), scores)
    table = pd.read_json(path, lines=True)
    assert tuple(table["file"]) == FILES
    assert all(tuple(row) == CLASSES for row in table["scores"])
    assert "猫" in path.read_text(encoding="utf-8")  # readable, not escaped


@pytest.mark.parametrize("ending", ["csv", "jsonl", "CSV"])
def test_neighbouring_scores_stay_apart(tmp_path, ending):
    """Six digits would make equals of the best scores."""
    path = tmp_path / f"scores.{ending}"
    one = np.float32(1)
    below = np.nextafter(one, np.float32(0))
    scores = np.array([[one], [below], [np.nextafter(below, np.float32(0))], [1e-30], [0]], dtype=np.float32)
    with ScoreWriter(path, ["x"]) as writer:
        writer.write([str(i) for i in range(5)], scores)
    if ending == "jsonl":
        found = [json.loads(line)["scores"]["x"] for line in path.read_text().splitlines()]
    else:
        found = [float(line.split(",")[1]) for line in path.read_text().splitlines()[1:]]
    assert sorted(set(found), reverse=True) == found
    np.testing.assert_array_equal(np.float32(found), scores[:, 0])


def test_other_number_formats(tmp_path):
    with ScoreWriter(tmp_path / "a.csv", ["x", "y"]) as writer:
        writer.write(["a"], np.array([[0.1, 1.0]]))
        writer.write(["b"], np.array([[0.5, 0.25]], dtype=np.float16))
        writer.write([], np.zeros((0, 2)))
    assert (tmp_path / "a.csv").read_text().splitlines() == ["file,x,y", "a,0.1,1.0", "b,0.5,0.25"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_rows_are_on_disk_after_each_batch_and_stay_after_an_interruption(tmp_path, ending):
    path = tmp_path / "new" / "folders" / f"scores.{ending}"
    header = ending == "csv"

    def interrupted_run():
        with ScoreWriter(path, ["x"]) as writer:
            for i in range(3):
                writer.write([f"{i}.png"], np.array([[0.5]]))
                assert len(path.read_text().splitlines()) == i + 1 + header
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert len(path.read_text().splitlines()) == 3 + header


def test_an_error_before_the_first_row_leaves_no_file(tmp_path):
    with pytest.raises(KeyError), ScoreWriter(tmp_path / "a.csv", ["x"]):
        raise KeyError
    assert not (tmp_path / "a.csv").exists()
    with ScoreWriter(tmp_path / "a.csv", ["x"]):
        pass
    assert (tmp_path / "a.csv").read_text() == "file,x\n"


def test_an_existing_file_is_kept_unless_told_otherwise(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"Expected no file at .*scores\.csv', where .* found one\. .*--overwrite"):
        ScoreWriter(path, CLASSES)
    assert path.read_text() == "mine"
    written(path, overwrite=True)
    assert "mine" not in path.read_text(encoding="utf-8")


def test_a_file_made_in_the_meantime_is_kept(tmp_path):
    writer = ScoreWriter(tmp_path / "a.csv", ["x"])
    (tmp_path / "a.csv").write_text("another run's")
    with pytest.raises(ValueError, match=r"can be written, found .*a\.csv' \(File exists\)"), writer:
        pass
    assert (tmp_path / "a.csv").read_text() == "another run's"


@pytest.mark.parametrize("name", ["scores", "scores.txt", "scores.csv.gz", "", ".csv"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"ends in \.csv or \.jsonl, found '.*'\. Give it"):
        ScoreWriter(tmp_path / name, CLASSES)
    assert not os.listdir(tmp_path)


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=r"found the folder '.*folder\.csv'"):
        ScoreWriter(tmp_path / "folder.csv", CLASSES)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"can be written, found .*\((File exists|Not a directory)\)"):
        written(tmp_path / "file" / "a.csv")
    with pytest.raises(ValueError, match=r"can be written, found .*name too long"):
        written(tmp_path / ("a" * 300 + ".csv"))


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("a.csv", ["x", "y", "x"], r"once each, found 'x' 2 times"),
        ("a.jsonl", ["x", "x", "x"], r"once each, found 'x' 3 times"),
        ("a.csv", [], "found no names"),
        ("a.csv", ["nail", "file"], r"no class called 'file' in a CSV.*\.jsonl"),
    ],
)
def test_class_names_that_a_reader_would_mix_up(tmp_path, name, classes, message):
    with pytest.raises(ValueError, match=message):
        ScoreWriter(tmp_path / name, classes)


def test_a_class_called_file_has_its_place_in_json_lines(tmp_path):
    with ScoreWriter(tmp_path / "a.jsonl", ["nail", "file"]) as writer:
        writer.write(["x.png"], np.array([[0.5, 0.25]]))
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"file": "x.png", "scores": {"nail": 0.5, "file": 0.25}}


@pytest.mark.parametrize(
    ("files", "scores", "message"),
    [
        (["a"], [[0.5, 0.5]], r"shape \(1, 3\).*found \(1, 2\)"),
        (["a", "b"], [[0.5, 0.5, 0.5]], r"shape \(2, 3\).*found \(1, 3\)"),
        (["a"], [0.5, 0.5, 0.5], r"shape \(1, 3\).*found \(3,\)"),
        (["a", "b"], [[0.5] * 3, [0.5, np.nan, 2]], r"found nan for class 'y' of 'b'"),
        (["a"], [[0, 1, 1.5]], r"found 1\.5 for class 'z' of 'a'"),
        (["a"], [[0, -3, 1]], r"found -3\.0 for class 'y'"),
    ],
)
def test_scores_that_are_none(tmp_path, files, scores, message):
    with pytest.raises(ValueError, match=message), ScoreWriter(tmp_path / "a.csv", ["x", "y", "z"]) as writer:
        writer.write(files, np.array(scores))


def test_a_closed_writer_says_so(tmp_path):
    with pytest.raises(ValueError, match="open file.*with ScoreWriter"):
        ScoreWriter(tmp_path / "a.csv", ["x"]).write(["a"], np.array([[0.5]]))


@pytest.mark.parametrize("rows", [0, 1])
def test_an_old_file_stays_until_there_is_a_row(tmp_path, rows):
    path = tmp_path / "scores.csv"
    path.write_text("an old and long file of scores\n" * 9, encoding="utf-8")

    def broken():
        with ScoreWriter(path, ["a"], overwrite=True) as writer:
            for _ in range(rows):
                writer.write(["x.jpg"], np.array([[0.5]]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert path.read_text(encoding="utf-8") == (
        "file,a\nx.jpg,0.5\n" if rows else "an old and long file of scores\n" * 9
    )


def test_labels_by_thresholds(tmp_path):
    scores = np.array([[0.5, 0.2, 0.9], [0.4, 0.3, 0.1], [1.0, 0.3, 0.0]], dtype=np.float32)
    thresholds = np.array([0.5, np.float32(0.3), 0.95], dtype=np.float64)
    expected = [["猫"], ["<b> c, d"], ["猫", "<b> c, d"]]
    for name in ("a.csv", "a.jsonl"):
        with ScoreWriter(tmp_path / name, ("猫", "<b> c, d", "e"), thresholds=thresholds) as writer:
            writer.write(["1", "2", "3"], scores)
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "猫", "<b> c, d", "e", "labels"]
    assert [row["labels"].split("|") for row in rows] == expected
    with open(tmp_path / "a.jsonl", encoding="utf-8") as file:
        assert [json.loads(line)["labels"] for line in file] == expected


def test_labels_that_a_csv_cannot_hold(tmp_path):
    thresholds = np.array([0.5, 0.5])
    for names, found in ((("labels", "b"), "no class called 'labels'"), (("a|b", "c"), "found 'a|b'")):
        with pytest.raises(ValueError, match=r"Write JSON lines instead") as caught:
            ScoreWriter(tmp_path / "a.csv", names, thresholds=thresholds)
        assert found in str(caught.value)
        ScoreWriter(tmp_path / "a.csv", names)
        with ScoreWriter(tmp_path / f"{found[-4]}.jsonl", names, thresholds=thresholds) as writer:
            writer.write(["1"], np.array([[0.9, 0.1]]))
