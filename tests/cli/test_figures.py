import csv
import json

import pytest
import torch

from hf_balancemix.cli.main import main
from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.digits import CLASS_NAMES, load_digits_attributes
from hf_balancemix.data.formats import evaluation_labels
from hf_balancemix.data.sparse_labels import sparse_labels
from hf_balancemix.label_state import LabelState
from hf_balancemix.recipe.job import labels_digest


@pytest.fixture(scope="module")
def digits():
    splits = load_digits_attributes()
    test = encode_labels(splits["test"])
    train, names = sparse_labels(splits["train"])
    return train.dense(slice(None)), labels_digest(names, train, evaluation_labels(splits["test"], test))


def entry(method, digest, seed=0, **changes):
    named = {"method": method, "noise": "mislabel", "noise_rate": 0.4, "seed": seed} | changes
    epochs = [{"epoch": 1.0, "map": 10.0 + seed}, {"epoch": 2.0, "map": 30.0 + seed}]
    ap = {name: 50.0 + k for k, name in enumerate(CLASS_NAMES)}
    settings = {**named, "data": {"recipe": "digits", "digest": digest}, "relabel_threshold": 0.9}
    return {**named, "map": 30.0, "groups": {"rare": 20.0}, "per_class_ap": ap, "epochs": epochs, "settings": settings}


def a_run(folder, entries, state_of=None, labels=None):
    """Results as a recipe writes them, with the label state of one run in which the first label is wrong."""
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"runs": entries}), encoding="utf-8")
    if state_of is not None:
        own = folder / f"{state_of['method']}-seed{state_of['seed']}"
        (own / "_label_state").mkdir(parents=True)
        (own / "settings.json").write_text(json.dumps(state_of["settings"]), encoding="utf-8")
        given = labels.clone()
        given[3, 0] = 1 - given[3, 0]
        probs = 0.02 + 0.96 * labels.float()
        posterior = torch.ones_like(probs)
        posterior[3, 0] = 0.1
        confidence = torch.stack([probs.mean(0)] * 2).double()
        tables = {"probs": probs, "posterior": posterior, "confidence": probs.clone()}
        state = LabelState(given, CLASS_NAMES, 2, class_confidence=confidence, **tables)
        state.save(own / "_label_state", {})


def test_everything_that_the_run_has(tmp_path, digits, capsys):
    labels, digest = digits
    entries = [entry("bce", digest), entry("bce", digest, 1), entry("balancemix", digest)]
    a_run(tmp_path / "runs 猫", entries, entries[2], labels)
    main(["figures", str(tmp_path / "runs 猫")])
    out = tmp_path / "runs 猫" / "figures"
    drawn = {path.stem for path in out.glob("*.png")}
    assert drawn == {path.stem for path in out.glob("*.csv")}
    assert drawn == {
        "map_over_epochs",
        "class_counts",
        "ap_against_frequency",
        "ranks",
        "confidence_against_ap-balancemix-seed0",
        "loss_histograms-balancemix-seed0",
        "relabelled-balancemix-seed0",
    }
    with (out / "relabelled-balancemix-seed0.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    truth = str(int(labels[3, 0]))
    assert [(row["row"], row["class"], row["relabelled_to"], row["truth"]) for row in rows] == [
        ("3", CLASS_NAMES[0], truth, truth)
    ]
    with (out / "map_over_epochs.csv").open(encoding="utf-8", newline="") as file:
        assert [(row["series"], row["mean"]) for row in csv.DictReader(file)][:2] == [("bce", "10.5"), ("bce", "30.5")]
    with (out / "class_counts.csv").open(encoding="utf-8", newline="") as file:
        counts = {row["class"]: int(row["positives"]) for row in csv.DictReader(file)}
    assert counts["one"] == int(labels[:, 1].sum())
    said = capsys.readouterr().out
    assert "not drawn: sampling-bce, sampling-balancemix" in said
    assert "7 figures" in said


def test_other_data_are_noticed(tmp_path, digits, capsys):
    labels, _ = digits
    entries = [entry("balancemix", "another")]
    a_run(tmp_path / "runs", entries, entries[0], labels)
    with pytest.raises(SystemExit):
        main(["figures", str(tmp_path / "runs")])
    assert "Expected the data that the run was trained on, found others" in capsys.readouterr().err


def test_groups_of_runs_have_folders_and_variants_names(tmp_path, digits, capsys):
    entries = [entry("bce", "x"), entry("bce", "x", noise="flip"), entry("balancemix", "x")]
    entries += [entry("balancemix", "x"), entry("balancemix", "x")]
    entries[-2]["settings"]["refinement"] = "clean"
    entries[-1]["settings"]["num_train_epochs"] = "7"
    lines = "".join(json.dumps(line) + "\n" for line in entries)
    (tmp_path / "some results.jsonl").write_text(lines, encoding="utf-8")
    main(["figures", str(tmp_path / "some results.jsonl"), "--out", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("flip-0.4", "mislabel-0.4", "mislabel-0.4-2", "ranks.csv", "ranks.png")
    ]
    with (tmp_path / "out/mislabel-0.4/map_over_epochs.csv").open(encoding="utf-8", newline="") as file:
        assert {row["series"] for row in csv.DictReader(file)} == {"bce", "balancemix", "balancemix-2"}
    assert "mislabel 40%: balancemix-2: refinement clean\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file or folder"),
        ("", "Expected JSON"),
        ("[]", 'Expected an object with a list "runs"'),
        ('{"runs": []}', "Expected a finished run"),
        ('{"runs": [{"map": 1}]}', "in run 1 of"),
        (json.dumps({"runs": [entry("bces", "x")]}), "found 'bces'"),
    ],
)
def test_mistakes_in_one_line(tmp_path, capsys, content, said):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        main(["figures", str(path)])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: Expected")
    assert error.count("\n") == 1
