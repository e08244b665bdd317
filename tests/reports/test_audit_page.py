"""The page of the label audit: its files, and what a real browser makes of it."""

import base64
import csv
import json
import re
import shutil
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hf_balancemix.reports import audit_page
from hf_balancemix.reports.audit_page import write_page
from hf_balancemix.reports.label_issues import LabelIssues
from tests.browser import Page, wait_for

HOSTILE = (
    "</script><script>document.title='x'</script><!-- <img src=x onerror=\"document.title='y'\">\u2028'猫\n*[é]&amp;"
)
FORMULA = '=HYPERLINK("http://x","y")'
NAMES = ("cat", HOSTILE, FORMULA, "'-dog")
IDS = ("a/one.jpg", "a/two, three.jpg", "+b/Ünë <b>.jpg", "", "\udcff five.jpg")
# (row, class, given, score); row 3 has no issue, row 1 has two.
WRITTEN = ((4, 0, 1, 0.95), (1, 1, 0, 0.9), (2, 2, 1, 0.8), (1, 0, 0, 0.7), (0, 3, 1, 0.6))


def make_issues(written=WRITTEN, names=NAMES, ids=IDS):
    rows, classes, given, scores = np.array(written, dtype=np.float64).reshape(-1, 4).T
    scores = scores.astype(np.float32)
    unknown = np.full_like(scores, np.nan)
    return LabelIssues(
        rows.astype(np.int64),
        classes.astype(np.int64),
        given.astype(np.uint8),
        scores,
        1 - scores,
        unknown,
        names,
        ids,
    )


def picture(row):
    return Image.new("RGB", (300, 200), (40 * row, 0, 255))


def parts(path):
    """The JSON in the page."""
    page = path.read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def test_one_thumbnail_for_each_image(tmp_path):
    asked = []

    def images(row):
        asked.append(row)
        return picture(row)

    path = write_page(make_issues(), images, tmp_path / "new" / "folder", "run")
    assert path == tmp_path / "new" / "folder" / "index.html"
    assert asked == [4, 1, 2, 0]
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    data = parts(path)
    thumbnail = Image.open(BytesIO(base64.b64decode(data["inline"][1])))
    assert thumbnail.size == (128, 85)
    assert np.abs(np.asarray(thumbnail.convert("RGB"), dtype=int) - (40, 0, 255)).max() < 8
    assert data["data"]["image"] == [0, 1, 2, 1, 3]
    assert data["data"]["names"] == [IDS[row] for row in asked]
    assert data["data"]["classes"] == list(NAMES)
    mixed = make_issues([(2, 0, 1, 0.9), (0, 0, 1, 0.8), (1, 0, 1, 0.7), (0, 1, 1, 0.6)])
    data = parts(write_page(mixed, None, tmp_path, "run"))
    assert (data["data"]["rows"], data["data"]["image"]) == ([2, 0, 1], [0, 1, 2, 1])
    assert data["inline"] == []


def test_thumbnails_past_the_limit_are_files(tmp_path, monkeypatch):
    whole = parts(write_page(make_issues(), picture, tmp_path / "all", "run"))["inline"]
    monkeypatch.setattr(audit_page, "INLINE_LIMIT", sum(map(len, whole[:2])))
    written = [*WRITTEN, (12345, 0, 1, 0.5)]
    ids = [f"{row}.jpg" for row in range(12346)]
    path = write_page(make_issues(written, ids=ids), lambda row: picture(row % 5), tmp_path / "some", "run")
    assert parts(path)["inline"] == whole[:2]
    folder = path.parent / "thumbnails"
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*.webp")}
    assert set(files) == {"0/2.webp", "0/0.webp", "12/12345.webp"}
    assert Image.open(files["12/12345.webp"]).size == (128, 85)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_images_of_any_mode(tmp_path, mode):
    image = Image.new("I;16" if mode == "I;16" else "L", (8, 5), 40000 if mode == "I;16" else 155)
    image = image if mode == "I;16" else image.convert(mode)
    before = image.tobytes()
    inline = parts(write_page(make_issues(), lambda row: image, tmp_path, "run"))["inline"]
    assert image.tobytes() == before
    thumbnail = Image.open(BytesIO(base64.b64decode(inline[0])))
    assert thumbnail.size == (8, 5)
    if mode != "1":  # small images are kept exactly
        assert set(thumbnail.convert("L").tobytes()) == {155}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    asked = []
    with pytest.raises(ValueError, match="Expected a folder for the audit page that can be written, found .*file"):
        write_page(make_issues(), asked.append, tmp_path / "file", "run")
    assert not asked


def test_no_page_is_left_if_an_image_is_damaged(tmp_path):
    def images(row):
        raise ValueError(f"row {row} is damaged")

    with pytest.raises(ValueError, match="row 4 is damaged"):
        write_page(make_issues(), images, tmp_path, "run")
    assert not list(tmp_path.iterdir())


def test_decisions_belong_to_the_issues(tmp_path):
    changes = {
        "same": make_issues(),
        "other order": make_issues([*WRITTEN[1:], WRITTEN[0]]),
        "other given label": make_issues([(4, 0, 0, 0.95), *WRITTEN[1:]]),
        "other names": make_issues(names=("dog", *NAMES[1:])),
        "other images": make_issues(ids=("b/one.jpg", *IDS[1:])),
    }
    keys = {k: parts(write_page(v, None, tmp_path / k, "t"))["data"]["key"] for k, v in changes.items()}
    assert parts(write_page(make_issues(), picture, tmp_path / "t", "other"))["data"]["key"] == keys["same"]
    assert len(set(keys.values())) == len(keys)


# ---- in a browser ----


@pytest.fixture
def page(driver, tmp_path):
    """The page of ``WRITTEN``, open and without decisions, in a folder with an odd name."""
    found = Page(driver, driver.downloads)
    path = write_page(make_issues(), picture, tmp_path / "a #b% '猫'", f"run {HOSTILE}")
    found.open(path)
    driver.execute_script("localStorage.clear()")
    found.open(path)
    yield found
    assert found.errors() == []


def test_names_are_only_text(page):
    assert page.driver.title == " ".join(f"Label audit: run {HOSTILE}".split("\n"))
    assert page.text("header .title") == f"run {HOSTILE}"
    assert page.texts("#gallery .class bdi") == [NAMES[k] for _, k, _, _ in WRITTEN]
    assert page.texts("#gallery .name bdi") == [IDS[row].replace("\udcff", "\ufffd") for row, _, _, _ in WRITTEN]
    assert sorted(page.texts("#counts tbody bdi")) == sorted(NAMES)
    assert sorted(page.texts("#class option")) == sorted(["all classes", *NAMES])
    assert len(page.all("script")) == 3
    assert len(page.all("img")) == 5
    widths = "return [...document.images].map((i) => i.naturalWidth)"
    wait_for(lambda: page.driver.execute_script(widths) == [128] * 5)
    names = page.driver.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert [name for name in names if not name.startswith(("data:", "file:"))] == []


def test_what_a_card_says(page):
    assert page.all("#gallery li")[3].text.split("\n") == [
        "cat",
        "Given: absent",
        "Suggested: present",
        "Score 0.700, posterior 0.300, confidence unknown",
        "a/two, three.jpg",
        "Accept",
        "Reject",
    ]
    counts = {row[0]: row[1:] for row in map(page_row, page.all("#counts tbody tr"))}
    assert counts["cat"] == ["1", "1", "0"]
    assert counts[FORMULA] == ["1", "0", "0"]


def page_row(row):
    return [cell.get_attribute("textContent") for cell in row.find_elements("css selector", "th, td")]


def test_filters(page):
    def shown():
        return [int(card.get_attribute("data-issue")) for card in page.all("#gallery li")]

    assert shown() == [0, 1, 2, 3, 4]
    next(b for b in page.all("#counts tbody button") if b.text == "cat").click()
    assert shown() == [0, 3]
    assert page.text("#shown") == "Issues 1 to 2 of 2"
    page.one("#kind").send_keys("missing")
    assert shown() == [3]
    page.one("#filters [type=reset]").click()
    wait_for(lambda: shown() == [0, 1, 2, 3, 4])
    page.one("#kind").send_keys("wrong")
    assert shown() == [0, 2, 4]
    page.write("#from", "0.7")
    assert shown() == [0, 2]
    page.write("#to", "0.8")
    assert shown() == [2]
    page.one("#filters [type=reset]").click()
    page.write("#from", "0.7")
    page.write("#to", "0.9")
    assert shown() == [1, 2, 3]  # the bounds themselves pass
    page.one("#filters [type=reset]").click()
    page.write("#search", "u\u0308NE\u0308 <b>")  # another spelling of the same letters
    assert shown() == [2]
    page.write("#search", "nowhere")
    assert shown() == []
    assert page.text("#shown") == "No issue passes the filters."
    page.keys("a")  # is written, does not accept anything
    assert page.text("#reviewed") == "0 of 5 reviewed"


def test_keys_and_reload(page):
    from selenium.webdriver.common.keys import Keys

    assert page.text("#reviewed") == "0 of 5 reviewed"
    page.keys("a", "r", Keys.ARROW_RIGHT, "a")
    assert page.decisions() == "ar-a-"
    assert page.text("#reviewed") == "3 of 5 reviewed"
    assert page.selected() == 4
    page.keys("u")
    assert page.decisions() == "ar---"
    assert page.selected() == 3
    page.keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, "a", Keys.ARROW_UP, "r")
    assert page.decisions() == "ra---"  # decided anew; nothing is above the first row
    page.keys("?")
    assert page.one("#help").is_displayed()
    page.keys(Keys.ESCAPE)
    wait_for(lambda: not page.one("#help").is_displayed())
    page.driver.refresh()
    assert page.decisions() == "ra---"
    assert page.text("#reviewed") == "2 of 5 reviewed"
    assert page.selected() == 2
    assert {row[0]: row[3] for row in map(page_row, page.all("#counts tbody tr"))}["cat"] == "1"


def test_a_key_held_down_decides_once(page):
    press = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {...arguments[0], bubbles: true}))"
    page.driver.execute_script("document.querySelector('#gallery li').focus()")
    for repeat in (False, True, True):
        page.driver.execute_script(press, {"key": "a", "repeat": repeat})
    page.driver.execute_script(press, {"key": "a", "ctrlKey": True})  # selects all, as everywhere
    assert page.decisions() == "a----"


def test_two_tabs_agree(page):
    first, address = page.driver.current_window_handle, page.driver.current_url
    page.driver.switch_to.new_window("tab")
    page.driver.get(address)
    page.keys("a", "r")
    page.driver.close()
    page.driver.switch_to.window(first)
    wait_for(lambda: page.decisions() == "ar---")
    assert page.text("#reviewed") == "2 of 5 reviewed"


def test_buttons(page):
    accept, reject = page.all("#gallery li:first-child button")
    reject.click()
    assert page.decisions() == "r----"
    assert (accept.get_attribute("aria-pressed"), reject.get_attribute("aria-pressed")) == ("false", "true")
    accept.click()
    assert page.decisions() == "a----"
    accept.click()
    assert page.decisions() == "-----"
    page.one("#undo").click()
    page.one("#undo").click()
    assert page.decisions() == "r----"


def test_export_and_import(page, tmp_path):
    page.keys("a", "r", "a", "a", "r")
    assert page.decisions() == "araar"
    file = page.export()
    assert file.read_bytes().startswith(b"\xef\xbb\xbf")
    with open(file, encoding="utf-8-sig", newline="") as lines:
        table = list(csv.reader(lines))
    assert table == [
        ["index", "image", "class", "given", "suggested", "decision"],
        ["4", "\ufffd five.jpg", "cat", "1", "0", "accept"],
        ["1", IDS[1], HOSTILE, "0", "1", "reject"],
        ["2", "'" + IDS[2], "'" + FORMULA, "1", "0", "accept"],
        ["1", IDS[1], "cat", "0", "1", "accept"],
        ["0", IDS[0], "''-dog", "1", "0", "reject"],
    ]
    kept = shutil.copy(file, tmp_path / "kept.csv")
    page.driver.execute_script("localStorage.clear()")
    page.driver.refresh()
    assert page.decisions() == "-----"
    page.one("#import").send_keys(str(kept))
    wait_for(lambda: page.text("#message") == "Imported 5 decisions.")
    assert page.decisions() == "araar"
    page.one("#undo").click()
    assert page.decisions() == "-----"
    with open(kept, "w", encoding="utf-8", newline="") as lines:  # as a spreadsheet may save it
        csv.writer(lines, delimiter=";", lineterminator="\n").writerows(table)
    page.one("#import").send_keys(str(kept))
    wait_for(lambda: page.text("#message") == "Imported 5 decisions.")
    assert page.decisions() == "araar"


MISTAKES = {
    "": "Expected the columns index,image,class,given,suggested,decision, found none.",
    "a;b\r\n1;2\r\n": "found none.",
    "index;class\r\n1;2\r\n": "found index,class.",
    "index,class\n": "found index,class.",
    "{header}1,x,cat,0,1,maybe\n": 'Expected accept or reject in record 1, found "maybe".',
    "{header}1,x,cat,0,1,accept\n9,x,cat,0,1,accept\n": "Expected an issue of this page in record 2, found row 9",
    "{header}1,x,cat,1,0,accept\n": 'found row 1, class "cat", given 1.',
    "{header}1,x\n": "Expected an issue of this page in record 1",
}


def test_files_that_cannot_be_imported(page, tmp_path):
    for text, message in MISTAKES.items():
        file = tmp_path / "wrong.csv"
        file.write_text(text.format(header="index,image,class,given,suggested,decision\n"), encoding="utf-8")
        page.one("#import").send_keys(str(file))
        wait_for(lambda message=message: message in page.text("#message"))
        assert page.decisions() == "-----"


def test_without_issues_and_without_pictures(driver, tmp_path):
    page = Page(driver, driver.downloads)
    page.open(write_page(make_issues([]), picture, tmp_path, "run"))
    assert page.text("#shown") == "No label issues were found."
    page.one("body").send_keys("a")
    assert page.text("#reviewed") == "0 of 0 reviewed"
    page.open(write_page(make_issues(), None, tmp_path, "run"))
    assert len(page.all("#gallery li")) == 5
    assert not page.all("#gallery img")
    assert page.errors() == []


def test_thumbnails_in_files_are_shown(driver, tmp_path, monkeypatch):
    monkeypatch.setattr(audit_page, "INLINE_LIMIT", 0)
    page = Page(driver, driver.downloads)
    page.open(write_page(make_issues(), picture, tmp_path / "a #b%", "run"))
    widths = "return [...document.images].map((i) => i.naturalWidth)"
    wait_for(lambda: page.driver.execute_script(widths) == [128] * 5)
    assert page.errors() == []


@pytest.mark.slow
def test_100_000_issues(driver, tmp_path):
    """It must not hang; what it takes is printed."""
    m, k = 100_000, 80
    rng = np.random.default_rng(0)
    scores = np.sort(rng.random(m))[::-1]
    written = np.stack([rng.permutation(m), np.arange(m) % k, rng.integers(2, size=m), scores], axis=1)
    issues = make_issues(written, [f"class {i}" for i in range(k)], [f"train/{row:012d}.jpg" for row in range(m)])
    path = write_page(issues, None, tmp_path, "large")
    page = Page(driver, driver.downloads)
    page.open(path)
    paint = "return performance.getEntriesByType('paint').map((e) => e.startTime)[0]"
    first = wait_for(lambda: page.driver.execute_script(paint))
    ready = page.driver.execute_script("return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    print(f"first paint after {first:.0f} ms, gallery after {ready:.0f} ms, page {path.stat().st_size / 1e6:.1f} MB")
    assert max(first, ready) < 20_000
    assert len(page.all("#gallery li")) == 60
    assert page.text("#shown") == "Issues 1 to 60 of 100,000"
    start = time.monotonic()
    page.write("#page", "1667\t")
    assert len(page.all("#gallery li")) == 100_000 - 1666 * 60
    page.one("#class").send_keys("class 79")
    assert page.text("#shown") == "Issues 1 to 60 of 1,250"
    page.write("#search", f"{int(written[79, 0]):012d}")
    assert len(page.all("#gallery li")) == 1
    page.one("#gallery li").click()
    page.keys("r")
    assert page.text("#reviewed") == "1 of 100,000 reviewed"
    assert time.monotonic() - start < 60
    page.driver.refresh()
    assert page.text("#reviewed") == "1 of 100,000 reviewed"
    assert page.errors() == []
