"""`recipes/benchmark.py simulate`: the laws it continues, the data it makes, and what it prints."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_balancemix.benchmark import main
from hf_balancemix.benchmark.laws import extrapolate, growth
from hf_balancemix.benchmark.simulate import LAWS, SHARED, _even_labels, sparse_labels, views

needs_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux")


def test_exact_laws_are_continued_exactly():
    sizes = [1.0, 4.0, 16.0, 64.0]
    line, error = extrapolate("linear", sizes, [2 + 3 * n for n in sizes], 1000)
    assert line == pytest.approx(3002)
    assert error < 1e-8
    power, error = extrapolate("power", sizes, [5 * n**1.25 for n in sizes], 10_000)
    assert power == pytest.approx(500_000)
    assert error < 1e-5
    assert growth(sizes, [5 * n**1.25 for n in sizes])[0] == pytest.approx(1.25)


def test_errors_are_those_of_the_textbook():
    # y = 1, 2, 4 at x = 0, 1, 2 (powers of e): slope 3/2, residuals 1/6, -1/3, 1/6, s² = 1/6, Σ(x − 1)² = 2.
    sizes, values = np.exp([0.0, 1.0, 2.0]).tolist(), np.exp([1.0, 2.0, 4.0]).tolist()
    slope, error = growth(sizes, values)
    assert slope == pytest.approx(1.5)
    assert error == pytest.approx((1 / 12) ** 0.5)
    value, error = extrapolate("power", sizes, values, float(np.exp(5)))
    assert value == pytest.approx(np.exp(7 / 3 + 6))
    assert error / value == pytest.approx((1 / 6 * (1 / 3 + 16 / 2)) ** 0.5)


@pytest.mark.parametrize(("law", "true"), [("linear", lambda n: 1 + n), ("power", lambda n: 2 * n**1.2)])
def test_standard_error_is_how_far_repetitions_scatter(law, true):
    generator = np.random.default_rng(0)
    sizes = np.tile([1.0, 4.0, 16.0, 64.0], 2)
    noisy = true(sizes) * (1 + 0.01 * generator.normal(size=(400, 8)))
    found = np.array([extrapolate(law, list(sizes), list(values), 256.0) for values in noisy])
    scatter = found[:, 0].std()
    assert (found[:, 1] ** 2).mean() ** 0.5 == pytest.approx(scatter, rel=0.2)
    assert found[:, 0].mean() == pytest.approx(true(256.0), abs=4 * scatter / 20)


def test_labels_and_logits_are_as_described():
    labels = sparse_labels(20_000, 100, 8.8)
    assert 8 < len(labels.classes) / 20_000 < 8.8  # a class counts once
    assert labels.counts[0] > 5 * labels.counts[-1]
    dense = labels.dense(torch.arange(20_000))
    logits = views(dense, torch.Generator().manual_seed(1))
    assert logits.shape == (20_000, 2, 100)
    present = logits.mean(dim=1) > -2  # half way between the two means: 2.5 standard deviations of the mean of two
    assert float(present[dense == 1].double().mean()) == pytest.approx(0.6, abs=0.02)
    missing = int(present[dense == 0].sum()) / int(dense.sum())
    assert 0.35 < missing < 0.55


def test_even_labels_have_distinct_classes_in_order():
    labels = _even_labels(3000, 400, 8.8)
    assert len(labels.classes) / 3000 == pytest.approx(8.8, abs=0.2)
    row = torch.repeat_interleave(labels.offsets.diff())
    steps = labels.classes.diff()[row.diff() == 0]
    assert bool((steps >= 0).all())
    assert float((steps == 0).double().mean()) < 0.01
    assert int(labels.classes.max()) < 400


@needs_linux
def test_simulate_prints_every_part_of_every_shape(capsys):
    words = ["simulate", "--entries", "8000", "--rows", "4000", "--fits", "64", "--ranks", "4"]
    main([*words, "--shape", "1000000x20", "--shape", "5000x8", "--json"])
    found = json.loads(capsys.readouterr().out)
    figures = {figure["name"]: figure for figure in found["figures"]}
    assert len(figures) == 2 * (len(LAWS) + 1) + 2
    parts = {part: figures[f"1,000,000 × 20: {part}"] for part in LAWS}
    total = figures["1,000,000 × 20: epoch"]
    assert total["value"] == pytest.approx(sum(part["value"] for part in parts.values()))
    for part, figure in parts.items():
        ranks = 4 if part in SHARED else 1
        assert figure["details"]["per_rank"] == pytest.approx(figure["value"] / ranks)
    # 3/4 of 2 × 20 sets of 4096 bins of 16 bytes, there and back, over 10 Gb/s.
    assert total["details"]["reduce"] == pytest.approx(1.5 * 40 * 65536 / 1.25e9)
    assert total["details"]["predicted_shared_megabytes"] == pytest.approx(4 * 8.8 + 16, rel=1e-3)
    assert "4000 images" in found["title"].replace(",", "")


@pytest.mark.parametrize("shape", ["600", "9x", "0x5", "9000000×600", "axb"])
def test_a_wrong_shape_is_one_line(shape, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", "--shape", shape])
    assert stopped.value.code == 2
    assert f"expected images and classes such as 9000000x600, found '{shape}'" in capsys.readouterr().err
