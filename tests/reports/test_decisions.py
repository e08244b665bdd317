"""What a person decided, read from a CSV that may have been through a spreadsheet."""

import csv

import pytest

from hf_balancemix.reports.decisions import read_decisions
from tests.tiny import refused

NAMES = ("ant", "bee", "cat")
IDS = ("a.png", "b.png", "c.png", "d.png")
ODD = ('=1+1"\n<b>', "'@x", "cat")
HEADER = ["index", "image", "class", "given", "suggested", "decision"]


def write(path, *lines, header=HEADER, encoding="utf-8", delimiter=","):
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *lines])
    return path


@pytest.mark.parametrize(("encoding", "delimiter"), [("utf-8", ","), ("utf-8-sig", ";"), ("utf-8", "\t")])
def test_decisions(tmp_path, encoding, delimiter):
    lines = [
        ["2", "c.png", ODD[0], "0", "1", "accept"],
        ["0", "elsewhere/a.png", f"'{ODD[0]}", "1", "0", "Accept"],
        ["0", "row 0", ODD[1], "1", "0", "reject"],
        ["1", "'=b.png", "cat", "0", "1", ""],
        ["1", "=b.png", "cat", "0", "1", "accept"],
    ]
    path = write(tmp_path / "d.csv", *lines, encoding=encoding, delimiter=delimiter)
    issues, rejected = read_decisions(path, ODD, ["folder/a.png", "=b.png", "c.png"])
    assert (issues.rows.tolist(), issues.classes.tolist(), issues.given.tolist()) == ([2, 0, 1], [0, 0, 2], [0, 1, 0])
    assert rejected == 1
    assert issues.class_names == ODD


GOOD = ["1", "b.png", "bee", "0", "1", "accept"]
WRONG = {
    "index 4": (0, "4", "an index from 0 to 3, for 4 images, found '4' in line 3"),
    "index -1": (0, "-1", "found '-1' in line 3"),
    "no index": (0, "1.5", "found '1.5' in line 3"),
    "image": (1, "a.png", "the image 'b.png' in row 1, found 'a.png' in line 3"),
    "class": (2, "bea", "found 'bea' (did you mean 'bee'?) in line 3"),
    "given": (3, "2", "found '2' and '1' in line 3"),
    "suggested": (4, "0", "found '0' and '0' in line 3"),
    "decision": (5, "acept", "found 'acept' (did you mean 'accept'?) in line 3"),
    "twice": (5, "reject", "one decision about a label, found another about 'bee' in line 4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_line_is_named(tmp_path, case):
    place, value, message = WRONG[case]
    line = [*GOOD[:place], value, *GOOD[place + 1 :]]
    lines = [["0", "a.png", "ant", "1", "0", "reject"], line, *([GOOD] if case == "twice" else [])]
    path = write(tmp_path / "my decisions.csv", *lines)
    refused(ValueError, [message, "my decisions.csv"], read_decisions, path, NAMES, IDS)


def test_no_decisions_file(tmp_path):
    remedy = "Pass the file that the page of the audit exports"
    empty = tmp_path / "empty.csv"
    empty.write_bytes(b"")
    latin = write(tmp_path / "latin.csv", ["0", "ä.png", "ant", "1", "0", "accept"], encoding="latin-1")
    other = write(tmp_path / "other.csv", ["0"], header=["index"])
    cut = tmp_path / "cut.csv"
    cut.write_text(",".join(HEADER) + '\n0,"a.png', encoding="utf-8")
    for path, found in (
        (tmp_path / "none.csv", "No such file"),
        (tmp_path, "directory"),
        (empty, "without 'index'"),
        (latin, "utf-8"),
        (other, "without 'image'"),
        (cut, "cut.csv"),
    ):
        refused(ValueError, [found, remedy], read_decisions, path, NAMES, IDS)
