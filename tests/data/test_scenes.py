"""Scenes of Fashion-MNIST items, from small files in its format."""

import gzip

import numpy as np
import pytest

from hf_balancemix.data import scenes
from hf_balancemix.data.scenes import CANVAS, CLASS_NAMES, TRAIN_FREQUENCIES, load_scenes
from tests import tiny


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Items of class k are squares of 2·k + 4 pixels: what is on a canvas can be told from its area."""
    monkeypatch.setattr(scenes, "TRAIN_SCENES", 400)
    monkeypatch.setattr(scenes, "TEST_SCENES", 60)
    for prefix in ("train", "t10k"):
        kinds = np.arange(30, dtype=np.uint8) % 10
        pictures = np.zeros((30, 28, 28), np.uint8)
        for picture, k in zip(pictures, kinds, strict=True):
            picture[: 2 * k + 4, : 2 * k + 4] = 255
        with gzip.open(tmp_path / f"{prefix}-images-idx3-ubyte.gz", "wb") as file:
            file.write(bytes(16) + pictures.tobytes())
        with gzip.open(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(bytes(8) + kinds.tobytes())
    return tmp_path


def test_splits(folder):
    splits = load_scenes(str(folder))
    assert [len(splits[name]) for name in ("train", "test")] == [400, 60]
    assert splits["train"].features["labels"].feature.names == list(CLASS_NAMES)
    assert splits["train"][0]["image"].size == (CANVAS, CANVAS)
    for split in splits.values():
        assert all(row and row == sorted(set(row)) for row in split["labels"])
    counts = np.bincount(np.concatenate(splits["train"]["labels"]), minlength=10)
    # Empty scenes are drawn again, which makes every class likelier by one factor.
    expected = 400 * TRAIN_FREQUENCIES / (1 - np.prod(1 - TRAIN_FREQUENCIES))
    assert np.all(np.abs(counts - expected) <= 4 * np.sqrt(expected) + 1)
    assert TRAIN_FREQUENCIES[0] / TRAIN_FREQUENCIES[-1] == pytest.approx(100)


def test_the_same_scenes_each_time(folder):
    first, second = (load_scenes(str(folder))["train"] for _ in range(2))
    assert first["labels"] == second["labels"]
    assert np.array_equal(first[7]["image"], second[7]["image"])
    assert not np.array_equal(first[7]["image"], first[8]["image"])


def test_what_is_on_a_canvas_is_what_the_labels_say(folder, monkeypatch):
    placed = []
    scene = scenes._scene

    def recorded(rng, items):
        placed.append(sorted(round(np.sqrt((item > 0).sum()) - 4) // 2 for item in items))
        return scene(rng, items)

    monkeypatch.setattr(scenes, "_scene", recorded)
    splits = load_scenes(str(folder))
    assert placed == list(splits["train"]["labels"]) + list(splits["test"]["labels"])


def test_an_item_covers_the_canvas_where_it_is(folder):
    rng = np.random.default_rng(0)
    item = np.zeros((28, 28), np.uint8)
    item[8:20, 8:20] = 255
    plain = np.asarray(scenes._scene(np.random.default_rng(0), []), dtype=int)
    shown = np.asarray(scenes._scene(rng, [item]), dtype=int)
    changed = np.abs(shown - plain).sum(axis=2) > 0
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    for found in (rows, columns):
        assert 30 * 12 / 28 - 2 <= np.ptp(found) + 1 <= 56 * 12 / 28 + 2


def test_mistakes(folder, tmp_path):
    tiny.refused(ValueError, ["--data_dir", "Fashion-MNIST"], load_scenes)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"not a file")
    tiny.refused(ValueError, ["t10k-labels-idx1-ubyte.gz", "Check --data_dir"], load_scenes, str(folder))
    tiny.refused(ValueError, ["train-images-idx3-ubyte.gz"], load_scenes, str(tmp_path / "elsewhere"))
