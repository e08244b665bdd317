import csv
import re

import numpy as np
import pytest
import torch
from matplotlib import rc_context
from PIL import Image

from hf_balancemix.drawing import MissingNumbersError
from hf_balancemix.label_state import LabelState
from hf_balancemix.reports.class_plots import (
    plot_ap_against_frequency,
    plot_class_counts,
    plot_confidence_against_ap,
)
from hf_balancemix.reports.label_plots import plot_loss_histograms, plot_relabelled
from hf_balancemix.reports.plots import (
    plot_label_quality,
    plot_label_shares,
    plot_map_over_epochs,
    plot_sampling_over_epochs,
)
from hf_balancemix.reports.rank_plot import plot_ranks
from tests.tiny import refused

# In other scripts, with signs that a formula, a table, a page or a file name would read as something else.
HOSTILE = ["$a_{b$", "<b>&amp;", "line\nbreak", 'quote"s', "猫", "*[x]|,"]


def numbers(path):
    """The rows of the CSV beside a picture, which is there and not empty."""
    with Image.open(path) as picture:
        assert 900 < picture.width < 1100  # 3.3 inches at 300 dots
        assert picture.convert("L").getextrema()[0] < 128
    with path.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(method="a", seed=0, epochs=(), noise="none", rate=None, map=50.0, **groups):
    points = [{"epoch": float(i), **epoch} for i, epoch in enumerate(epochs, start=1)]
    named = {"method": method, "noise": noise, "noise_rate": rate, "seed": seed}
    return {**named, "map": map, "groups": groups, "epochs": points}


def test_map_is_the_mean_over_seeds_of_the_epochs_that_all_have(tmp_path):
    runs = [
        run("a", 0, [{"map": 10}, {"map": 20}, {"map": 90}]),
        run("a", 1, [{"map": 20}, {"map": 40}]),
        run("b", 0, [{"map": 5}]),
    ]
    plot_map_over_epochs(runs, tmp_path / "new" / "map.png", "title")
    assert [list(row.values()) for row in numbers(tmp_path / "new" / "map.png")] == [
        ["1", "a", "15", "10", "20", "2"],
        ["2", "a", "30", "20", "40", "2"],
        ["1", "b", "5", "5", "5", "1"],
    ]


def test_sampling_shares_and_quality_read_their_numbers(tmp_path):
    epochs = [
        {"map": 1, "sampling_max": 4.0, "sampling_min": 0.5},
        {"sampling_max": 2.0, "sampling_min": 0.75, "clean": 0.8, "relabelled": 0.05, "ambiguous": 0.15}
        | {"label_precision": 0.9, "label_recall": 0.7, "relabel_accuracy": 0.6},
    ]
    path = tmp_path / "x.png"
    plot_sampling_over_epochs([run(epochs=epochs)], path)
    found = [(row["epoch"], row["series"], row["mean"]) for row in numbers(path)]
    assert found == [
        ("1", "max", "4"),
        ("2", "max", "2"),
        ("1", "mean (uniform)", "1"),
        ("2", "mean (uniform)", "1"),
        ("1", "min", "0.5"),
        ("2", "min", "0.75"),
    ]
    plot_label_shares([run(epochs=epochs)], path)
    assert {row["series"]: row["mean"] for row in numbers(path)} == {
        "clean": "80", "relabelled": "5", "ambiguous": "15",
    }  # fmt: skip
    plot_label_quality([run(epochs=epochs)], path)
    assert [row["mean"] for row in numbers(path)] == ["90", "70", "60"]


def test_a_logarithmic_axis_has_plain_numbers(tmp_path):
    path = tmp_path / "sampling.svg"
    with rc_context({"svg.fonttype": "none"}):  # text as text
        plot_sampling_over_epochs([run(epochs=[{"map": 1, "sampling_max": 20.0, "sampling_min": 0.5}] * 2)], path)
    said = re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))
    assert {"1", "10"} <= set(said)
    assert not any("$" in text for text in said)


@pytest.mark.parametrize(
    "plot", [plot_map_over_epochs, plot_sampling_over_epochs, plot_label_shares, plot_label_quality]
)
def test_no_numbers_no_picture(plot, tmp_path):
    refused(MissingNumbersError, ["Expected", "found none"], plot, [run(epochs=[{"loss": 1}])], tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_another_ending_is_refused(tmp_path):
    refused(
        ValueError, ["ends in .png", "x.doc"], plot_map_over_epochs, [run(epochs=[{"map": 1}])], tmp_path / "x.doc"
    )


def test_ranks_by_perspective(tmp_path):
    def both(first, second, **where):
        return [run("a", map=first, few=first, **where), run("b", map=second, few=100 - second, **where)]

    runs = [
        *both(60, 50),
        *both(50, 60, noise="mislabel", rate=0.2),
        *both(70, 60, noise="mislabel", rate=0.4),
        *both(40, 40, noise="flip", rate=0.2),
        run("a", map=99, noise="single_positive"),  # b has no such run
    ]
    plot_ranks(runs, tmp_path / "ranks.png")
    found = {(row["method"], row["perspective"]): row["rank"] for row in numbers(tmp_path / "ranks.png")}
    # few: a 60, 50, 70, 40 against b 50, 40, 40, 60
    assert found == {
        ("a", "clean"): "1", ("b", "clean"): "2",
        ("a", "mislabel"): "1.5", ("b", "mislabel"): "1.5",
        ("a", "flip"): "1.5", ("b", "flip"): "1.5",
        ("a", "imbalance"): "1.25", ("b", "imbalance"): "1.75",
    }  # fmt: skip
    refused(MissingNumbersError, ["two methods", "found 1"], plot_ranks, [run()], tmp_path / "none.png")


def test_confidence_against_ap(tmp_path):
    # By hand: deviations of P are -0.2, -0.1, 0, 0.3 and those of AP -15, 5, -5, 15: 7 / sqrt(0.14 * 500) = 0.8367.
    presence, ap = [0.3, 0.4, 0.5, 0.8, 0.1, np.nan], [40.0, 60.0, 50.0, 70.0, np.nan, 30.0]
    confidence = [[0.9] * 6, presence]
    groups = {"many": [0, 1, 2], "few": [3, 4]}
    r = plot_confidence_against_ap(confidence, ap, HOSTILE, tmp_path / "c.png", groups)
    assert r == pytest.approx(0.8367, abs=1e-4)
    rows = numbers(tmp_path / "c.png")
    assert [row["class"] for row in rows] == HOSTILE
    assert [row["group"] for row in rows] == ["many"] * 3 + ["few"] * 2 + ["others"]
    assert (rows[4]["ap"], rows[5]["P"], rows[0]["A"]) == ("", "", "0.9")
    assert rows[0]["pearson_r_group"] == "0.5"  # -0.1, 0, 0.1 against -10, 10, 0
    assert rows[3]["pearson_r_group"] == ""  # one class
    assert rows[0]["pearson_r"] == "0.83666"


def test_frequency_and_counts(tmp_path):
    counts, names = [100, 0, 2000], HOSTILE[:3]
    ap = {"$x$": [50, np.nan, 80], "b": [40, 1, 90]}
    plot_ap_against_frequency(counts, ap, names, tmp_path / "f.png")
    rows = [tuple(row.values()) for row in numbers(tmp_path / "f.png")]
    assert rows[:3] == [(names[0], "100", "$x$", "50"), (names[1], "0", "$x$", ""), (names[2], "2000", "$x$", "80")]
    assert len(rows) == 6
    plot_class_counts(counts, 2500, names, tmp_path / "n.png", (100, 2000))
    rows = [tuple(row.values()) for row in numbers(tmp_path / "n.png")]
    assert rows == [(names[2], "2000", "many"), (names[0], "100", "medium"), (names[1], "0", "few")]


def a_state():
    """Two classes: the first has 30 negatives of which 10 are wrong, and 10 positives; the second no positive."""
    labels = torch.zeros(40, 2, dtype=torch.uint8)
    labels[30:, 0] = 1
    probs = torch.full((40, 2), 0.02) + torch.linspace(0, 0.01, 40)[:, None]
    probs[20:, 0] += 0.9
    posterior, confidence = torch.ones(40, 2), probs.clone()
    posterior[20:30, 0] = 0.1
    confidence[24:30, 0] = 0.92 + torch.arange(6) / 200
    posterior[25, 0] = 0.05
    confidence[20:24, 0] = 0.5  # not sure: ambiguous
    posterior[35, 0], confidence[35, 0] = 0.3, 0.01  # a wrong positive
    posterior[5, 1] = 0.2  # confident that it is right: re-labelled to what it was
    confidence[5, 1] = 0.001
    return LabelState(labels, (HOSTILE[0], HOSTILE[2]), probs=probs, posterior=posterior, confidence=confidence)


def test_loss_histograms_count_every_label(tmp_path):
    state = a_state()
    plot_loss_histograms(state, tmp_path / "l.png", min_fit=4)
    rows = numbers(tmp_path / "l.png")
    first = [row for row in rows if row["class"] == HOSTILE[0] and row["given"] == "0"]
    losses = -np.log(1 - state.probs[:30, 0].double().numpy())
    edges = np.linspace(0, losses.max(), 31)
    assert [int(row["labels"]) for row in first] == np.histogram(losses, edges)[0].tolist()
    assert float(first[-1]["to"]) == pytest.approx(losses.max(), rel=1e-5)
    low = sum(float(row["clean_mode"]) for row in first)
    high = sum(float(row["other_mode"]) for row in first)
    # A half of the narrow clean mode lies below zero at most.
    assert 9 < low <= 20.1
    assert 5 < high < 10.1
    assert sum(int(row["labels"]) for row in rows if row["class"] == HOSTILE[2]) == 40
    state.probs = None
    refused(MissingNumbersError, ["predictions", "found none"], plot_loss_histograms, state, tmp_path / "m.png")


def test_relabelled_images_are_the_changed_ones(tmp_path):
    asked = []

    def images(row):
        asked.append(row)
        return Image.new("L", (8, 8), 100)

    truth = np.zeros((40, 2))
    truth[20:28, 0] = 1
    plot_relabelled(a_state(), images, tmp_path / "r.png", 0.9, truth, count=4)
    rows = numbers(tmp_path / "r.png")
    assert [int(row["row"]) for row in rows] == [25, 29, 28, 27, 26, 24, 35]  # the lowest posterior, then the surest
    assert asked == [25, 35, 29, 28]  # of both kinds
    assert {(row["class"], row["given"], row["relabelled_to"]) for row in rows} == {
        (HOSTILE[0], "0", "1"),
        (HOSTILE[0], "1", "0"),
    }
    assert [row["truth"] for row in rows] == ["1", "0", "0", "1", "1", "1", "0"]
    refused(
        MissingNumbersError,
        ["found none: 12 are not clean"],
        plot_relabelled,
        a_state(),
        images,
        tmp_path / "s.png",
        1.0,
    )
