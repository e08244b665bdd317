"""`recipes/benchmark.py mixtures`: what it prints, and that it measures against an independent fit."""

import json

import pytest
import torch

from hf_balancemix.benchmark import main
from hf_balancemix.benchmark.figures import Figure
from hf_balancemix.benchmark.mixtures import noisy_losses, one_by_one
from hf_balancemix.method import label_posteriors


def test_a_figure_stands_beside_its_bar():
    assert Figure("a", 0.5, "s", at_most=1).line().split() == ["a", "0.5", "s", "bar", "≤", "1:", "met"]
    assert Figure("a", 2, "s", at_most=1).line().endswith("missed")
    assert Figure("a", 29.9, at_least=30).met is False
    assert Figure("a", 30, at_least=30).met is True
    assert Figure("a", 3, "MB").line().split() == ["a", "3", "MB"]


def test_the_losses_are_imbalanced_and_noisy():
    losses, labels = noisy_losses(20_000, 10)
    assert 0.03 < labels.double().mean() < 0.042
    assert labels[:, 0].sum() > 20 * labels[:, -1].sum()
    positive = losses[labels == 1]
    assert 0.25 < (positive > 3).double().mean() < 0.45  # the wrong ones, which the model contradicts
    assert losses[labels == 0].median() < 0.01


def test_mixtures_prints_a_table_and_json(capsys):
    main(["mixtures", "--rows", "400", "--classes", "3", "--repeats", "1"])
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "Refit and posteriors of 400 × 3 labels, median of 2 runs"
    assert [line.split("  ")[0] for line in table[1:3]] == ["seconds", "fastest run"]
    assert "bar" not in table[1]  # it is for the size of COCO
    assert "threads" in table[-1]
    main(["mixtures", "--rows", "400", "--classes", "3", "--repeats", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    figures = {figure["name"]: figure for figure in found["figures"]}
    assert figures["largest difference of a posterior"]["met"] is True
    assert figures["seconds"]["value"] > 0
    assert found["machine"]["threads"] == torch.get_num_threads()


def test_the_loop_and_the_histograms_agree_where_the_loop_is_exact():
    losses, labels = noisy_losses(20_000, 4, seed=1)
    found = label_posteriors(losses, labels)
    assert found.fitted.all()
    torch.testing.assert_close(found.posterior.double(), one_by_one(losses, labels), atol=1e-3, rtol=0)


@pytest.mark.parametrize("words", [[], ["mixture"], ["mixtures", "--rows", "0"], ["mixtures", "--row", "9"]])
def test_a_mistake_is_one_line(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
