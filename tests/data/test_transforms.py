"""Geometry from the processor, augmentation from a seed."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import BitImageProcessor, ConvNextImageProcessor, ViTImageProcessor
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_balancemix.data.transforms import _ASL_OPERATIONS, AUGMENTATIONS, ImageTransform


def pictures(n=4, size=(40, 30), mode="RGB"):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size[::-1], 3)).astype(np.uint8)).convert(mode) for _ in range(n)]


PROCESSORS = {
    "vit": ViTImageProcessor(size={"height": 24, "width": 24}),
    "bit": BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 24, "width": 24}, do_center_crop=True),
    "convnext": ConvNextImageProcessor(size={"shortest_edge": 24}, crop_pct=0.875),
    "timm": TimmWrapperImageProcessor(
        {**timm.get_pretrained_cfg("resnet18").to_dict(), "input_size": (3, 24, 24)}, architecture="resnet18"
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_without_augmentation_it_is_the_processor(name):
    processor = PROCESSORS[name]
    transform = ImageTransform(processor, "none")
    pixels = transform.resize(pictures())
    assert pixels.dtype == torch.uint8
    expected = processor(pictures(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(transform.finish(transform.augment(pixels, [(0,)] * 4)), expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "1", "P"])
def test_any_picture_mode_becomes_rgb(mode):
    source = pictures(1, mode="RGB" if mode == "LA" else mode)[0]
    source = source.convert("LA") if mode == "LA" else source
    pixels = ImageTransform(PROCESSORS["vit"], "none").resize([source])
    expected = PROCESSORS["vit"]([source.convert("RGB")], do_rescale=False, do_normalize=False)["pixel_values"][0]
    assert np.array_equal(pixels[0].numpy(), np.asarray(expected))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_follows_its_seed_alone(name):
    transform = ImageTransform(PROCESSORS["vit"], name)
    pixels = transform.resize(pictures(8))
    seeds = [(1, i) for i in range(8)]
    torch.manual_seed(0)
    first = transform.augment(pixels, seeds)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(transform.augment(pixels, seeds), first)
    assert torch.equal(transform.augment(pixels.flip(0), seeds[::-1]).flip(0), first)
    assert first.dtype == torch.uint8
    assert first.shape == pixels.shape
    changed = (transform.augment(pixels, [(2, i) for i in range(8)]) != first).flatten(1).any(dim=1)
    assert bool(changed.any()) == (name != "none")


def test_randaugment_asl_has_the_fifteen_operations_and_halves():
    """Two draws of 15, each applied with probability 1/2: a quarter of the images stay as they are."""
    assert len(_ASL_OPERATIONS) == 15
    pixels = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    pixels[..., ::2] = 30
    n = 2000
    out = AUGMENTATIONS["randaugment_asl"](pixels.repeat(n, 1, 1, 1), [(0, i) for i in range(n)])
    same = int((out == pixels).flatten(1).all(dim=1).sum())
    assert same >= n / 4 - 4 * np.sqrt(n * 3 / 16)
    assert same < n * 0.6


@pytest.mark.parametrize("name", _ASL_OPERATIONS)
def test_each_operation_keeps_shape_and_type(name):
    image = ImageTransform(PROCESSORS["vit"], "none").resize(pictures(1))[0]
    out = _ASL_OPERATIONS[name](image, 1.0, -1.0, np.random.default_rng(0))
    assert out.shape == image.shape
    assert out.dtype == torch.uint8
    assert not torch.equal(out, image) or name in ("autocontrast", "equalize")


def test_mistakes():
    with pytest.raises(ValueError, match="randaugment_asl.*'randaug'.*'randaugment'"):
        ImageTransform(PROCESSORS["vit"], "randaug")
    with pytest.raises(TypeError, match="image processor.*found dict"):
        ImageTransform({})
    with pytest.raises(ValueError, match="row 7, found str.*cast_column"):
        ImageTransform(PROCESSORS["vit"]).resize(["a.jpg"], [7])
    loose = BitImageProcessor(size={"shortest_edge": 28}, do_center_crop=False)
    with pytest.raises(ValueError, match="one size"):
        ImageTransform(loose).resize([*pictures(1), *pictures(1, (60, 30))])


def test_randaugment_asl_draws_operations_levels_and_signs_evenly(monkeypatch):
    """Two of fifteen, each with probability 1/2, level steps 1..9 of nine, both signs."""
    seen = []

    def recorder(name):
        def record(image, level, sign, rng):
            seen.append((name, round(level * 9), sign))
            return image

        return record

    for name in _ASL_OPERATIONS:
        monkeypatch.setitem(_ASL_OPERATIONS, name, recorder(name))
    n = 3000
    AUGMENTATIONS["randaugment_asl"](torch.zeros(n, 3, 2, 2, dtype=torch.uint8), [(1, i) for i in range(n)])
    assert abs(len(seen) - n) < 4 * np.sqrt(2 * n / 4)
    for column, values in ((0, list(_ASL_OPERATIONS)), (1, range(1, 10)), (2, (-1.0, 1.0))):
        counts = np.array([sum(entry[column] == value for entry in seen) for value in values])
        expected = len(seen) / len(values)
        assert counts.sum() == len(seen)
        assert ((counts - expected) ** 2 / expected).sum() < len(values) + 5 * np.sqrt(2 * len(values))
