"""The demo: a folder that runs without this package, and what a real browser shows of it."""

import ast
import http.client
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard
from PIL import Image
from transformers.utils import logging

import hf_balancemix
from hf_balancemix.build import build_model
from hf_balancemix.cli.main import main
from hf_balancemix.data.digits import load_digits_attributes
from hf_balancemix.hub.space import write_space
from hf_balancemix.predict import load_checkpoint
from hf_balancemix.reports.audit_page import write_page
from hf_balancemix.reports.label_issues import LabelIssues
from hf_balancemix.thresholds import save_thresholds
from tests.browser import need, wait_for
from tests.browser import start as start_browser
from tests.distributed.launch import ROOT, environment
from tests.hub.test_loading import BLOCK, run_python
from tests.tiny import SIZE

ODD = ("<b>猫</b><img src=x onerror=alert(1)>", "two\nlines | *x*", 'say "hi"', "it's", "$z$ `y` \\n")
RENAMED = {"square": ODD[0], "four": ODD[2], "even": ODD[3]}
# Runs apps as `python app.py` does, but their servers, and asks each for one picture.
ASK = """
import json, runpy, sys
from PIL import Image
answers = []
for path in sys.argv[2:]:
    app = runpy.run_path(path)
    answers.append([app["classify"](Image.open(sys.argv[1])), app["classify"](None), app["NOTE"]])
print(json.dumps(answers))
"""


@pytest.fixture(autouse=True)
def verbosity():
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)
    logging.enable_progress_bar()


def checkpoint(folder, head="linear", names=ODD):
    torch.manual_seed(1)
    backbone, size = ("small_resnet", SIZE) if head == "linear" else ("test_resnet.r160_in1k", 64)
    for part in build_model(backbone, names, size, pretrained=False, head=head):
        part.save_pretrained(folder)
    return folder


def scores_of(folder, picture):
    """The scores by class, by this package's own code."""
    model, processor = load_checkpoint(folder)
    with torch.no_grad():
        logits = model(**processor(Image.open(picture).convert("RGB"), return_tensors="pt")).logits[0]
    return {model.config.id2label[k]: float(p) for k, p in enumerate(logits.sigmoid())}


def test_the_app_without_this_package(tmp_path):
    need(importlib.util.find_spec("gradio"), "gradio")
    picture, known = tmp_path / "picture.png", {}
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)).save(picture)
    for head in ("linear", "ml_decoder"):
        folder = checkpoint(tmp_path / f'it\'s a "{head}" 猫', head)
        scores = scores_of(folder, picture)
        thresholds = {name: p + (0.01 if i % 2 else -0.01) for i, (name, p) in enumerate(scores.items())}
        save_thresholds(folder, ODD, list(thresholds.values()))
        main(["space", str(folder), "--out", str(tmp_path / head)])
        shutil.rmtree(folder)  # the demo has a copy
        known[head] = scores, thresholds
    apps = [str(tmp_path / head / "app.py") for head in known]
    answers = json.loads(run_python(BLOCK + ASK, str(picture), *apps))
    for (scores, thresholds), ((labels, rows), empty, note) in zip(known.values(), answers, strict=True):
        ranked = sorted(scores, key=scores.get, reverse=True)
        reached = [name for name in ranked if scores[name] >= thresholds[name]]
        assert len(reached) == 3
        assert labels == ", ".join(reached)
        assert rows == [
            [name, f"{scores[name]:.3f}", f"{thresholds[name]:.3f}", "yes" if name in reached else ""]
            for name in ranked
        ]
        assert empty == ["", []]
        assert note == "With the thresholds of the model, tuned for F1."


def test_the_files(tmp_path, capsys):
    folder = checkpoint(tmp_path / "model")
    (folder / "README.md").write_text("card", encoding="utf-8")
    (folder / "optimizer.pt").write_bytes(b"not of the model")
    shutil.copytree(folder, folder / "ema")
    out = tmp_path / "a b" / "demo"
    main(["space", str(folder), "--out", str(out)])
    said = capsys.readouterr().out
    assert "6 files in " in said
    assert "No decision thresholds in the model, so 0.5 counts" in said
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    model = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert files == ["README.md", "app.py", *(f"model/{name}" for name in model), "requirements.txt"]
    card = SpaceCard.load(out / "README.md")
    assert (card.data.sdk, card.data.app_file, card.data.title) == ("gradio", "app.py", "model")
    assert int(card.data.sdk_version.split(".")[0]) >= 6
    text = (out / "app.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert "trust_remote_code" not in text
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"html", "pathlib", "gradio", "torch", "transformers"}


def test_code_of_its_own_only_where_it_is_needed(tmp_path):
    out = tmp_path / "demo"
    main(["space", str(checkpoint(tmp_path / "model", "ml_decoder")), "--out", str(out)])
    assert 'OPTIONS = {"trust_remote_code": True}' in (out / "app.py").read_text(encoding="utf-8")
    assert {path.name for path in (out / "model").glob("*.py")} >= {"modeling_balancemix.py", "heads.py"}


def test_a_model_of_the_hub_is_named(tmp_path):
    assert write_space("tester/linear", tmp_path, remote_code=False) == ["README.md", "app.py", "requirements.txt"]
    assert "MODEL = 'tester/linear'" in (tmp_path / "app.py").read_text(encoding="utf-8")
    assert SpaceCard.load(tmp_path / "README.md").data.models == ["tester/linear"]


MISTAKES = {
    "{model}": "required: --out. hf-balancemix space --help",
    "{model} --out {full}": "Expected an empty folder for the Space, or none, found files in ",
    "{model} --out {full}/file": "found the file ",
    "{model} --out {full}/file/demo": "can be written, found ",
    "{full} --out {out}": "found no config.json in ",
    "{full}/modle --out {out}": "no folder ",
    "{model} --out {out} --audit {full}": "Expected the folder of a label audit, found no index.html in ",
    "{model} --ouy {out}": "Unknown option --ouy (did you mean '--out'?)",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, capsys, words):
    places = {name: str(tmp_path / name) for name in ("model", "full", "out")}
    checkpoint(tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        main(["space", *(word.format(**places) for word in words.split(" "))])
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert MISTAKES[words] in line
    assert not (tmp_path / "out").exists()


def test_the_package_does_not_import_gradio():
    for path in Path(hf_balancemix.__file__).parent.rglob("*.py"):
        assert "import gradio" not in path.read_text(encoding="utf-8"), path


def write_audit(folder, images):
    """The page of an audit with a wrong label in each image."""
    n = len(images)
    rows, ones = np.arange(n), np.ones(n, np.float32)
    ids = [f"{row}.png" for row in rows]
    issues = LabelIssues(rows, rows * 0, rows.astype(np.uint8) * 0 + 1, ones, ones, ones, ("<b>cat</b>",), ids)
    write_page(issues, images.__getitem__, folder, "Audit")


def test_an_audit_is_linked(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_balancemix.reports.audit_page.INLINE_LIMIT", 0)
    write_audit(tmp_path / "audit", [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")])
    (tmp_path / "audit" / "label_issues.csv").write_text("not shown", encoding="utf-8")
    out, model = tmp_path / "demo", checkpoint(tmp_path / "model")
    main(["space", str(model), "--out", str(out), "--audit", str(tmp_path / "audit")])
    copied = sorted(str(path.relative_to(out / "audit")) for path in (out / "audit").rglob("*.*"))
    assert copied == ["index.html", "thumbnails/0/0.webp", "thumbnails/0/1.webp"]
    assert (out / "audit/index.html").read_bytes() == (tmp_path / "audit/index.html").read_bytes()
    ast.parse((out / "app.py").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_an_audit_in_a_browser(tmp_path, monkeypatch, serve, browser):
    need(importlib.util.find_spec("gradio"), "gradio")
    monkeypatch.setattr("hf_balancemix.reports.audit_page.INLINE_LIMIT", 0)  # pictures in their own files
    write_audit(tmp_path / "audit", [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")])
    out, model = tmp_path / "demo", checkpoint(tmp_path / "model")
    main(["space", str(model), "--out", str(out), "--audit", str(tmp_path / "audit")])
    address = serve(out)
    browser.get(address)
    link = wait_for(lambda: browser.find_elements("css selector", "a[href='audit/']"))[0]
    assert link.get_attribute("href") == f"{address}audit/"
    browser.get(f"{address}audit/")
    loaded = "return [...document.images].filter(i => i.naturalWidth === 9).length"
    wait_for(lambda: browser.execute_script(loaded) == 2)
    assert "<b>cat</b>" in browser.find_element("css selector", "body").text
    server = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=30)
    server.request("GET", "/audit/../app.py")  # as it stands: a browser would tidy it up
    assert b"AutoImageProcessor" not in server.getresponse().read()


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium of its own, with a log of what its console says."""
    started = start_browser(tmp_path)
    yield started
    started.quit()


@pytest.fixture
def serve(tmp_path):
    """Start the app of a folder as a user does, but where this package cannot be imported; its address."""
    started = []

    def start(folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        settings |= {"no_proxy": "127.0.0.1,localhost"}
        words = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
        with open(tmp_path / "app.log", "wb") as log:
            app = subprocess.Popen(
                [sys.executable, "-c", BLOCK + words, str(folder / "app.py")],
                env={**os.environ, **settings, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                stdout=log,
                stderr=log,
            )
        started.append(app)
        address, opener = f"http://127.0.0.1:{port}/", urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def up():
            assert app.poll() is None, (tmp_path / "app.log").read_text(encoding="utf-8")[-4000:]
            try:
                return opener.open(address, timeout=5).status == 200
            except OSError:
                return False

        wait_for(up, 120)
        return address

    yield start
    for app in started:
        app.terminate()
        app.wait()


def rename(config):
    """Give classes of a saved configuration odd names."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content["id2label"] = {k: RENAMED.get(name, name) for k, name in content["id2label"].items()}
    content["label2id"] = {name: int(k) for k, name in content["id2label"].items()}
    config.write_text(json.dumps(content), encoding="utf-8")


def write_digits(folder, rows, renamed):
    """Write digits as an image folder with metadata."""
    folder.mkdir()
    feature = rows.features["labels"].feature
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            row["image"].save(folder / f"{number}.png")
            names = [feature.int2str(k) for k in row["labels"]]
            file.write(json.dumps({"file_name": f"{number}.png", "labels": [renamed.get(n, n) for n in names]}) + "\n")


@pytest.mark.slow
def test_a_digit_in_a_browser(tmp_path, serve, browser):
    """Train on digits, tune thresholds, write the demo, upload a picture that it was not trained on, look."""
    need(importlib.util.find_spec("gradio"), "gradio")
    options = {"output_dir": tmp_path / "runs", "methods": "bce", "num_train_epochs": 8, "noise": "none"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, ROOT / "recipes" / "digits.py", *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    out, picture = tmp_path / "demo", tmp_path / "runs" / "example.png"
    model = shutil.move(tmp_path / "runs" / "bce-seed0", tmp_path / "<i>digits & <script>")
    rename(model / "config.json")
    write_digits(tmp_path / "validation", load_digits_attributes()["test"].select(range(200)), RENAMED)
    main(["thresholds", str(model), "--data_dir", str(tmp_path / "validation"), "--batch_size", "200"])
    thresholds = json.loads((model / "config.json").read_text(encoding="utf-8"))["decision_thresholds"]
    assert ODD[0] in thresholds
    main(["space", str(model), "--out", str(out)])
    big = tmp_path / "big.png"
    Image.open(picture).resize((160, 160), Image.Resampling.NEAREST).save(big)
    scores = scores_of(model, big)
    browser.get(serve(out))
    wait_for(lambda: browser.find_elements("css selector", "input[type=file]"))[0].send_keys(str(big))
    labels = wait_for(lambda: browser.execute_script("return (document.querySelector('textarea') || {}).value"))
    ranked = sorted(scores, key=scores.get, reverse=True)
    reached = [name for name in ranked if scores[name] >= thresholds[name]]
    assert 0 < len(reached) < len(ranked)
    assert labels == ", ".join(reached)
    for name in ranked[:8]:  # what is below may not be rendered until it is scrolled to
        row = f"{name}\n{scores[name]:.3f}\n{thresholds[name]:.3f}\n" + "yes\n" * (name in reached)
        wait_for(lambda row=row: row in browser.find_element("css selector", "body").text)
    body = browser.find_element("css selector", "body").text
    assert "<i>digits & <script>" in body
    assert "With the thresholds of the model, tuned for F1." in body
    assert not browser.find_elements("css selector", "img[src=x]")
    wait_for(lambda: browser.execute_script("return [...document.images].some(i => i.naturalWidth === 160)"))
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    # Without a network the fonts of the theme do not come.
    assert not [entry for entry in severe if "127.0.0.1" in entry["message"]]
    assert browser.get_screenshot_as_file(str(tmp_path / "space.png"))
    print(f"screenshot: {tmp_path / 'space.png'}")
