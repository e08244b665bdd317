"""Model cards: what they say, what the Hub reads in them, and that nothing in a name breaks them."""

import dataclasses
import re

import pytest
from huggingface_hub import ModelCard

from hf_balancemix.hub.card import CardFacts, DataFacts, Scores, escaped, render_card
from hf_balancemix.training.card_facts import card_facts
from tests.hub.test_push import trainer_for

FACTS = CardFacts(
    name="it",
    architecture="ResNetForImageClassification",
    class_names=["a", "b"],
    trainer="BalanceMixTrainer",
    method="balancemix",
    data=DataFacts("COCO", None, {"train": 10, "test": 4}, "mislabel", 0.4),
    scores=Scores(61.234, {"rare": 12.5}, {"a": 100.0, "b": None}, 62.0, group_classes={"rare": ["b"]}),
    diagnostics={"clean": 0.625, "relabelled": 0.25, "relabel_accuracy": float("nan"), "sampling_max": 1.5},
    settings={"epochs": 3},
    command="python recipes/coco.py",
    versions={"torch": "2"},
    hardware="CPU",
    seconds=3725.0,
    results_file="results.json",
)


def change(**values):
    return render_card(dataclasses.replace(FACTS, **values))


def test_everything_that_is_known_is_said():
    text = render_card(FACTS)
    for part in (
        "2 classes",
        "(mislabel, each positive label was moved to another class with probability 40%).",
        "| all | 61.23 |",
        "| rare | 12.50 |",
        "| class | AP | group |",
        "| a | 100.00 |  |",
        "| b | no positives | rare |",
        "| all, averaged weights | 62.00 |",
        "| labels taken for clean | 62.5% |",
        "| labels re-labelled | 25.0% |",
        "| largest sampling probability, in multiples of uniform | 1.50 |",
        "| images | 10 train, 4 test |",
        "| epochs | 3 |",
        "| training time | 1 h 2 min |",
        "python recipes/coco.py",
        "`results.json`",
        "No licence is stated",
    ):
        assert part in text, part
    assert "nan" not in text
    assert "right afterwards" not in text


def test_nothing_is_made_up():
    text = render_card(CardFacts("it", "ResNetForImageClassification", ["a"]))
    assert ModelCard(text).data.eval_results is None
    assert "was not evaluated" in text
    for part in ("Label noise", "Sampler", "command", "hardware", "None |", "None,"):
        assert part not in text


def test_every_noise_is_explained():
    for noise, said in (
        (DataFacts("d", noise="flip", noise_rate=0.055), "each label was flipped with probability 5.5%"),
        (DataFacts("d", noise="single_positive"), "only one was kept"),
        (DataFacts("d", noise="mislabel and flip"), "on purpose (mislabel and flip)."),
        (DataFacts("d"), "The training labels\nare those given."),
    ):
        assert said in change(data=noise)


def test_the_weakest_classes_are_named():
    scores = Scores(50.0, {}, {"a": 90.0, "b": None, "c": 12.346, "d": 80.0, "e": 30.0, "f": 70.0, "g": 99.0})
    assert "- Weakest classes, by AP: c 12.35, e 30.00, f 70.00.\n" in change(scores=scores)
    assert "Weakest" not in render_card(FACTS)


def test_metadata():
    data = ModelCard(change(license="mit", base_model="timm/resnet50.a1_in1k", tags=["mine"])).data
    assert data.license == "mit"
    assert data.base_model == "timm/resnet50.a1_in1k"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-classification")
    assert {"mine", "balancemix", "label-noise"} <= set(data.tags)
    assert data.model_name == "it"
    assert [(r.metric_name, r.metric_value, r.dataset_name, r.dataset_split) for r in data.eval_results] == [
        ("mAP", 61.23, "COCO", "test"),
        ("mAP (rare)", 12.5, "COCO", "test"),
        ("mAP (averaged weights)", 62.0, "COCO", "test"),
    ]
    unlicensed = ModelCard(render_card(FACTS)).data
    assert unlicensed.license is None
    on_hub = ModelCard(change(data=DataFacts("me/pictures", "me/pictures"))).data
    assert on_hub.datasets == ["me/pictures"]
    assert on_hub.eval_results[0].dataset_type == "me/pictures"


@pytest.mark.parametrize(
    "name",
    [
        "a|b",
        "<b>x</b>",
        "two\nlines",
        "key: value",
        "- list",
        "`code`",
        "# title",
        "---",
        "[x](http://y)",
        "日本 *x*",
        "&lt;",
    ],
)
def test_names_break_neither_tables_nor_metadata(name):
    text = change(
        name=name,
        data=DataFacts(name, None, {name: 1}, "flip", 0.1),
        scores=Scores(50.0, {name: 10.0}, {name: 20.0}),
        settings={name: name},
        command=f"python '{name}'",
    )
    card = ModelCard(text)
    results = card.data.eval_results
    assert card.data.model_name == name
    assert all(r.dataset_type for r in results)
    assert [(r.dataset_name, r.metric_name) for r in results] == [(name, "mAP"), (name, f"mAP ({name})")]
    shown = escaped(name)
    assert not re.search(r"[|<>`\n\[\]#*]", re.sub(r"&#\d+;", "", shown))
    assert f"| {shown} | 20.00 |" in text
    rows = [line for line in card.text.splitlines() if line.startswith("|")]
    for row in rows:
        assert row.endswith("|")
        assert row.count("|") in (3, 4 if "mAP" in row else 3), row
    fences = [line for line in text.splitlines() if re.fullmatch("`{3,}.*", line)]
    assert len(fences) == 4


def test_a_name_reads_as_it_is():
    import html

    for name in ("__init__", "_x_", "snake_case", "a_b_", "100%", "a|b", "<i>"):
        assert html.unescape(escaped(name)) == name
    assert escaped("snake_case 100%") == "snake_case 100%"
    assert "_" not in escaped("__init__").replace("init", "")


def test_a_share_of_nothing_is_no_result():
    scores = dataclasses.replace(FACTS.scores, map=float("nan"))
    assert [r.metric_name for r in ModelCard(change(scores=scores)).data.eval_results] == [
        "mAP (rare)",
        "mAP (averaged weights)",
    ]


def test_the_folder_is_named_in_the_usage():
    text = render_card(FACTS)
    assert 'model=".")' in text
    assert 'model=".", trust_remote_code=True' in change(remote_code=True)
    assert "```bash\n" in text
    assert "````bash\n" in change(command="a ``` b")


def test_a_trainer_knows_its_facts(tmp_path):
    trainer = trainer_for(tmp_path / "model", push_to_hub=False, many_shot_from=20, medium_shot_from=8)
    trainer.train()
    trainer.card_details |= {"method": "balancemix"}
    trainer.create_model_card(license="mit", model_name="other", tags="mine", finetuned_from="google/vit", dataset="D")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    last = [log for log in trainer.state.log_history if "eval_map" in log][-1]
    assert [(r.metric_name, r.metric_value) for r in card.data.eval_results] == [
        ("mAP", round(last["eval_map"], 2)),
        *[
            (f"mAP ({name})", round(last[f"eval_{name}"], 2))
            for name in ("many", "medium", "few")
            if f"eval_{name}" in last
        ],
    ]
    assert (card.data.license, card.data.base_model, card.data.model_name) == ("mit", "google/vit", "other")
    refresh = [log for log in trainer.state.log_history if "refresh_seconds" in log][-1]
    for part in (
        "after 2 epochs",
        f"| labels taken for clean | {refresh['clean']:.1%} |",
        f"| of the labels taken for clean, truly right | {refresh['label_precision']:.1%} |",
        f"{refresh['effective_sample_share']:.1%}",
        "| images | 48 training |",
        "| warmup epochs | 1 |",
        "method `balancemix`",
    ):
        assert part in card.text, part
    facts = card_facts(trainer, {"name": "mine"})
    assert facts.name == "mine"
    assert facts.note is None
    assert not facts.remote_code
