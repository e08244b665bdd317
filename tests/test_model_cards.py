"""The cards in model_cards/: the Hub can read them, and every number on one stands in the results file it names."""

import html
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

FOLDER = Path(__file__).parents[1] / "model_cards"
REAL = sorted(FOLDER.glob("*/README.md"))
TEMPLATES = sorted((FOLDER / "templates").glob("*.md"))
# Row of a card → where its number stands in the last epoch's diagnostics.
SHARES = {
    "labels taken for clean": "clean",
    "labels re-labelled": "relabelled",
    "labels left ambiguous": "ambiguous",
    "of the labels taken for clean, truly right": "label_precision",
    "of the truly right labels, taken for clean": "label_recall",
    "of the re-labelled, right afterwards": "relabel_accuracy",
    "effective sample size, as a share of the images": "effective_sample_share",
    "total variation from uniform sampling": "sampling_total_variation",
}
MULTIPLES = {
    "largest sampling probability, in multiples of uniform": "sampling_max",
    "smallest sampling probability, in multiples of uniform": "sampling_min",
}


def rows(card):
    """First and second cell of all rows of the card's tables, as a reader sees them."""
    cells = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    return [(html.unescape(row[0]), html.unescape(row[1])) for row in cells if len(row) in (2, 3)]


def test_there_are_cards():
    assert {path.parent.name for path in REAL} >= {
        "digits-bce",
        "digits-balancemix",
        "scenes-bce",
        "scenes-mixup",
        "scenes-balancemix",
    }
    assert len(TEMPLATES) == 9


@pytest.mark.parametrize("path", [*REAL, *TEMPLATES], ids=lambda p: p.parent.name + "-" + p.stem)
def test_the_hub_can_read_it(path):
    card = ModelCard.load(path)
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-classification")
    assert "hf-balancemix" in card.data.tags
    assert not re.search(r"/home/|/root/|/tmp/|[A-Z]:\\", card.content)
    if path in REAL:
        name, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
        assert name == card.data.model_name
        assert results == card.data.eval_results
        assert card.data.license == "apache-2.0"
    else:
        assert card.data.eval_results is None
        assert "No run stands behind this card yet" in card.text
        assert "## Results\n\nNone yet.\n" in card.text
        assert not re.search(r"mAP|AP \||\d%", card.text)


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.parent.name)
def test_every_number_stands_in_the_results(path):
    card = ModelCard.load(path)
    file = re.search(r"in full in `(.+)`", card.text)[1]
    [run] = json.loads((path.parent / file).read_text(encoding="utf-8"))["runs"]
    last, settings, checked = run["epochs"][-1], run["settings"], 0
    expected = {
        "all": f"{run['map']:.2f}",
        **{name: f"{value:.2f}" for name, value in run["groups"].items()},
        **{name: f"{value:.2f}" for name, value in run["per_class_ap"].items()},
        **{text: f"{last[name]:.1%}" for text, name in SHARES.items() if name in last},
        **{text: f"{last[name]:.2f}" for text, name in MULTIPLES.items() if name in last},
        "images": f"{run['images']['train']} train, {run['images']['test']} test",
        "epochs": f"{float(settings['num_train_epochs']):g}",
        "images per step": str(settings["images_per_step"]),
        "learning rate": f"{float(settings['learning_rate']):g}",
        "weight decay": f"{float(settings['weight_decay']):g}",
        "seed": str(run["seed"]),
        "hardware": run["hardware"],
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }
    for name, shown in rows(card):
        if re.search(r"\d", shown) and name in expected:
            assert shown == expected[name], name
            checked += 1
        elif name == "training time":
            minutes, seconds = re.fullmatch(r"(?:(\d+) min )?([\d.]+) s", shown).groups(default=0)
            assert 60 * int(minutes) + float(seconds) == pytest.approx(run["seconds"], abs=0.51)
        elif re.search(r"\d", shown) and name not in ("model", "started from"):  # options of the method
            assert settings[name.replace(" ", "_")] == pytest.approx(float(shown)), name
    for name, value in re.findall(r"([\w -]+) (\d+\.\d\d)[,.]", re.search(r"by AP: (.*)", card.text)[1]):
        assert expected[name.strip()] == value
    assert checked >= len(expected) - 1  # "all" may be no class
    assert [r.metric_value for r in card.data.eval_results] == [
        round(value, 2) for value in (run["map"], *run["groups"].values())
    ]
    assert run["command"] in card.text
    assert run["method"] in card.data.tags


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.parent.name)
def test_the_numbers_of_the_index(path):
    [run] = json.loads((path.parent / "results.json").read_text(encoding="utf-8"))["runs"]
    index = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    [row] = [line for line in index if f"]({path.parent.name}/README" in line]
    shown = " | ".join(f"{value:.2f}" for value in (run["map"], *run["groups"].values()))
    assert row.endswith(f"| {shown} |")


@pytest.mark.parametrize("path", [*REAL, *TEMPLATES], ids=lambda p: p.parent.name + "-" + p.stem)
def test_the_index_names_it(path):
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"({path.relative_to(FOLDER).as_posix()})" in index
    assert "python model_cards/write.py" in index
