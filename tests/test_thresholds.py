"""Decision thresholds: the best F1 there is, by trying everything, and a configuration that keeps them."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoConfig, AutoModelForImageClassification

from hf_balancemix import MultiLabelTrainer
from hf_balancemix.build import build_model
from hf_balancemix.metrics import f1_scores
from hf_balancemix.thresholds import class_f1, f1_thresholds, read_thresholds, save_thresholds
from tests.tiny import NAMES, SIZE, arguments, processor, refused, tiny_dataset, tiny_resnet


def best_f1(labels, scores):
    """The best F1 of any threshold, by scikit-learn: from each score on, and from above all of them."""
    cuts = [*np.unique(scores), 2.0]
    return max(f1_score(labels, scores >= cut, zero_division=0) for cut in cuts)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("digits", [1, 2, 7])
def test_as_good_as_every_threshold_there_is(digits, dtype):
    rng = np.random.default_rng(digits)
    labels = rng.random((60, 8)) < np.linspace(0.1, 0.9, 8)
    labels[:9] = True
    # Rounded to one digit, nearly all scores are ties.
    probs = np.clip(0.25 * labels + 0.75 * rng.random(labels.shape), 0, 1).round(digits).astype(dtype)
    thresholds = f1_thresholds(labels, probs)
    best = [best_f1(labels[:, k], probs[:, k]) for k in range(8)]
    predicted = probs >= thresholds
    assert f1_score(labels, predicted, average=None) == pytest.approx(best, abs=1e-12)
    assert class_f1(labels, probs, thresholds) == pytest.approx(best, abs=1e-12)
    # `f1_scores` compares in the precision of the scores: nothing changes sides.
    f1_at = f1_scores(probs, labels, thresholds)
    assert f1_at["overall_recall"] == pytest.approx(100 * (predicted & labels).sum() / labels.sum())


def test_by_hand():
    labels = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 0]])
    probs = np.array(
        [[0.9, 0.4, 0.5, 0.1], [0.7, 0.3, 0.5, 0.2], [0.2, 0.2, 0.5, 0.9], [0.1, 0.8, 0.5, 0.3], [0.0, 0.5, 0.5, 0.4]]
    )
    # Separated: half-way between 0.2 and 0.7. All present: everything counts, from half of the lowest. One tie: the
    # same. One positive: too few, unless one is enough.
    assert f1_thresholds(labels, probs, min_positives=2) == pytest.approx([0.45, 0.1, 0.25, 0.5])
    assert f1_thresholds(labels, probs, min_positives=1) == pytest.approx([0.45, 0.1, 0.25, 0.65])
    assert f1_thresholds(labels, probs) == pytest.approx([0.5, 0.1, 0.5, 0.5])
    assert class_f1(labels, probs) == pytest.approx([1.0, 4 / 7, 6 / 8, 1.0])
    # From 0.9 on 2·1/(1 + 2), from 0.4 on 2·2/(3 + 2), from 0.1 on 2·2/(4 + 2): the second is the best.
    odd = np.array([[1], [0], [1], [0]])
    assert f1_thresholds(odd, [[0.9], [0.5], [0.4], [0.1]], 2) == pytest.approx([0.25])


def test_the_highest_of_equals():
    # From 0.8 on 2·1/(1 + 2), from 0.2 on 2·2/(4 + 2): both 2/3.
    assert f1_thresholds([[1], [0], [0], [1]], [[0.8], [0.6], [0.4], [0.2]], 1) == pytest.approx([0.7])
    # From 0.9 on 2/4, from 0.7 on 4/6, from 0.4 on 6/9: the last two are equal.
    labels = [[1], [0], [1], [0], [0], [1]]
    assert f1_thresholds(labels, [[0.9], [0.8], [0.7], [0.6], [0.5], [0.4]], 1) == pytest.approx([0.65])


def test_left_out_entries_do_not_count():
    labels, probs = np.array([[1], [-1], [1], [0]]), np.array([[0.9], [0.8], [0.7], [0.1]])
    assert f1_thresholds(labels, probs, 2) == pytest.approx([0.4])
    assert class_f1(labels, probs, [0.75]) == pytest.approx([2 / 3])
    assert f1_thresholds([[-1], [0]], [[0.5], [0.2]], 0) == [0.5]  # no positive at all


def test_neighbouring_numbers():
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))
    probs = np.array([[high], [low]])
    assert f1_thresholds([[1], [0]], probs, 1)[0] == float(high)
    assert f1_thresholds([[1], [1]], np.zeros((2, 1)), 1) == [0.0]


def test_wrong_arrays():
    refused(ValueError, ["one shape (N, K), found (2, 1) and (1, 2)"], f1_thresholds, [[1], [0]], [[0.1, 0.2]])
    refused(ValueError, ["labels of 1, 0", "[2]"], f1_thresholds, [[2], [0]], [[0.1], [0.2]])
    refused(ValueError, ["nan in row 1, class 0"], f1_thresholds, [[1], [0]], [[0.1], [np.nan]])
    refused(ValueError, ["3.0 in row 0, class 0. Pass the sigmoid"], class_f1, [[1]], [[3.0]])


VALUES = (0.25, 0.5, 0.125, 0.75, 1.0)


@pytest.mark.parametrize("built", ["stock", "timm", "decoder"])
def test_saved_and_loaded(tmp_path, built):
    """With every kind of model: stock classes keep what they do not know, and nothing else changes."""
    torch.manual_seed(0)
    odd = ("猫", "<b>", "two\nlines", 'say "hi"', "*")
    backbone, size = ("small_resnet", SIZE) if built == "stock" else ("test_resnet.r160_in1k", 64)
    head = "ml_decoder" if built == "decoder" else "linear"
    model, _ = build_model(backbone, odd, size, pretrained=False, head=head)
    model.save_pretrained(tmp_path / "a")
    before = json.loads((tmp_path / "a" / "config.json").read_text(encoding="utf-8"))
    assert read_thresholds(AutoConfig.from_pretrained(tmp_path / "a")) is None
    assert save_thresholds(tmp_path / "a", odd, VALUES) == tmp_path / "a" / "config.json"
    after = json.loads((tmp_path / "a" / "config.json").read_text(encoding="utf-8"))
    assert after == {**before, "decision_thresholds": dict(zip(odd, VALUES, strict=True))}
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "a")
    assert read_thresholds(loaded.config) == pytest.approx(VALUES)
    loaded.save_pretrained(tmp_path / "b")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "b")
    assert read_thresholds(again.config) == pytest.approx(VALUES)
    assert {p.name for p in (tmp_path / "a").iterdir()} == {p.name for p in (tmp_path / "b").iterdir()}


def test_thresholds_that_do_not_fit(tmp_path):
    config = tiny_resnet().config
    config.id2label = dict(enumerate(NAMES))
    fitting = dict(zip(NAMES, VALUES, strict=True))
    remedy = "Tune them anew with `hf-balancemix thresholds`"
    for wrong, found in (
        (dict.fromkeys(NAMES[1:], 0.5), "found 4 for 5 classes, 'ant' in one alone"),
        ({**fitting, "fox": 0.5}, "found 6 for 5 classes, 'fox' in one alone"),
        ({**fitting, "cat": 1.5}, "found 1.5 for 'cat'"),
        ({**fitting, "cat": float("nan")}, "found nan for 'cat'"),
        ({**fitting, "cat": "0.5"}, "found '0.5' for 'cat'"),
        (0.5, "found 0.5"),
    ):
        config.decision_thresholds = wrong
        refused(ValueError, [found, remedy], read_thresholds, config)
    config.decision_thresholds = dict(reversed(fitting.items()))
    assert read_thresholds(config) == pytest.approx(VALUES)
    refused(ValueError, ["'a' twice"], save_thresholds, tmp_path, ["a", "b", "a"], [0.1, 0.2, 0.3])


def test_a_new_training_takes_old_thresholds_off(tmp_path):
    model = tiny_resnet()
    model.config.decision_thresholds = dict.fromkeys(NAMES, 0.25)
    sets = {"eval_dataset": tiny_dataset(seed=1), "processing_class": processor()}
    MultiLabelTrainer(model, arguments(tmp_path, second_sampler="none"), **sets)
    assert read_thresholds(model.config) == pytest.approx([0.25] * 5)  # an evaluation changes nothing
    trainer = MultiLabelTrainer(
        model, arguments(tmp_path, second_sampler="none"), train_dataset=tiny_dataset(), **sets
    )
    trainer.save_model(tmp_path / "model")
    assert read_thresholds(AutoConfig.from_pretrained(tmp_path / "model")) is None
