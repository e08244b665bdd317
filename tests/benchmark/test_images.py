"""`recipes/benchmark.py images`: every stage is measured, decoders agree, and cores follow from the times."""

import json

import numpy as np
import pytest
import torch

from hf_balancemix.benchmark import main
from hf_balancemix.benchmark.images import HEIGHT, WIDTH, available_decoders, cores, jpeg, photo


def test_images_prints_every_stage(capsys):
    threads = torch.get_num_threads()
    main(["images", "--images", "2", "--rounds", "1", "--image_size", "64", "--json"])
    assert torch.get_num_threads() == threads
    found = json.loads(capsys.readouterr().out)
    figures = {figure["name"]: figure["value"] for figure in found["figures"]}
    assert found["title"].startswith(f"One core, 2 JPEGs of {WIDTH} × {HEIGHT}")
    for name in ("decode: torchvision", "resize", "read from the image cache", "augment", "normalise"):
        assert figures[name] > 0
    assert figures["size in the image cache"] == 3 * 64 * 64 / 1e3
    assert figures["cores for schedule reuse"] > figures["cores for schedule reuse, cached"] > 0
    assert figures["cores for schedule reuse"] > figures["cores for schedule reuse, augmented on the GPU"] > 0


def test_pictures_are_as_large_as_photos_and_decoders_agree():
    content = jpeg(photo(np.random.default_rng(0)), 90)
    assert 40_000 < len(content) < 110_000
    used, *others = [decode(content) for decode in available_decoders().values()]
    assert used.shape == (HEIGHT, WIDTH, 3)
    for other in others:
        assert np.abs(used.astype(int) - other).max() <= 2


def test_cores_by_hand():
    # Two reads of 3 ms, one augmentation of 4 and one normalisation of 2: 12 ms per image, at 500 images per second
    # over two steps each.
    assert cores((2, 1, 2.0), 3.0, 4.0, 500) == pytest.approx(10e-3 * 250)
