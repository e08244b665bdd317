"""Geometry from the processor, augmentation from a seed."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import BitImageProcessor, ConvNextImageProcessor, ViTImageProcessor
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_balancemix.data.pairs import EvalDataset, ImageRows, ViewDataset
from hf_balancemix.data.transforms import _ASL_OPERATIONS, AUGMENTATIONS, ImageTransform, cut_out
from tests import tiny


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
    with pytest.raises(ValueError, match="Expected `cutout` between 0 and 1.*found 50"):
        ImageTransform(PROCESSORS["vit"], cutout=50)
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


def test_randaugment_asl_draws_its_two_operations_independently(monkeypatch):
    """With replacement: in one of fifteen images both are the same; a quarter of the images get none, half get one."""
    seen = {}
    for name in _ASL_OPERATIONS:
        monkeypatch.setitem(
            _ASL_OPERATIONS,
            name,
            lambda image, level, sign, rng, name=name: seen.setdefault(int(image[0, 0, 0]), []).append(name) or image,
        )
    n = 3000
    for start in range(0, n, 250):
        numbered = torch.arange(250, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 2, 2)
        AUGMENTATIONS["randaugment_asl"](numbered, [(2, start + i) for i in range(250)])
        seen |= {start + i + 1000: seen.pop(i) for i in range(250) if i in seen}
    applied = np.bincount([len(names) for names in seen.values()], minlength=3)
    applied[0] = n - len(seen)
    for count, share in zip(applied, (0.25, 0.5, 0.25), strict=True):
        assert abs(count - share * n) < 4 * np.sqrt(n * share * (1 - share))
    twice = sum(len(names) == 2 and names[0] == names[1] for names in seen.values())
    assert abs(twice - applied[2] / 15) < 4 * np.sqrt(applied[2] / 15)


# What the strongest of the nine steps does, worked out by hand: pixel values before and after.
STRONGEST = {
    "posterize": (1.0, [255, 127, 16], [240, 112, 16]),  # four bits are left of eight
    "solarize": (1.0, [0, 100, 255], [255, 155, 0]),  # from 0 on everything is inverted
    "brightness": (-1.0, [0, 100, 200], [0, 10, 20]),  # 1 - 0.9
    "contrast": (-1.0, [0, 100, 200], [90, 100, 110]),  # a tenth of the distance from the mean 100
    "color": (-1.0, [50, 50, 50], [50, 50, 50]),
    "invert": (1.0, [0, 100, 255], [255, 155, 0]),
}


@pytest.mark.parametrize("name", STRONGEST)
def test_the_ranges_of_the_colour_operations(name):
    sign, before, after = STRONGEST[name]
    image = torch.tensor(before, dtype=torch.uint8).repeat_interleave(4).view(1, 3, 4).expand(3, 3, 4).contiguous()
    out = _ASL_OPERATIONS[name](image, 1.0, sign, np.random.default_rng(0))
    found = out[:, :, 0].int()
    assert (found - torch.tensor(after)).abs().max() <= 1


def test_the_ranges_of_the_moving_operations():
    """In 331 columns: 150 to the side, a shear of 0.3 per row; 30 degrees take a point below to cosine and sine."""
    size, centre = 331, 165
    dot = torch.zeros(3, size, size, dtype=torch.uint8)
    dot[:, centre + 100 - 2 : centre + 103, centre - 2 : centre + 3] = 255  # 100 below the centre

    def place(name, sign):
        out = _ASL_OPERATIONS[name](dot, 1.0, sign, np.random.default_rng(0))[0]
        bright = (out > 200).nonzero().double()  # grey comes in from outside
        return tuple((bright.mean(dim=0) - centre).tolist())

    for sign in (-1.0, 1.0):
        assert place("translate_x", sign) == pytest.approx((100, 150 * sign), abs=1)
        y, x = place("shear_x", sign)
        assert y == pytest.approx(100, abs=1)
        assert abs(x) == pytest.approx(30, abs=1)
        y, x = place("rotate", sign)
        assert (y, abs(x)) == pytest.approx((100 * np.cos(np.pi / 6), 50), abs=1)
    assert place("translate_y", -1.0) == pytest.approx((-50, 0), abs=1)


# ---- cutout ----


def test_cutout_covers_a_rectangle_of_one_colour():
    n, height, width = 400, 10, 14
    pixels = torch.full((n, 3, height, width), 7, dtype=torch.uint8)
    kept = pixels.clone()
    out = cut_out(pixels, [(3, i) for i in range(n)], 0.5)
    assert torch.equal(pixels, kept)
    whole = 0
    for image in out:
        changed = (image != 7).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero().flatten(), changed.any(dim=0).nonzero().flatten()
        top, bottom, left, right = int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
        inside = image[:, top : bottom + 1, left : right + 1].flatten(1)
        assert (inside == inside[:, :1]).all()
        assert changed.sum() == inside.shape[1]
        assert bottom - top < 5
        assert right - left < 7
        whole += (bottom - top + 1, right - left + 1) == (5, 7)
        # Narrower at the border only.
        assert bottom - top == 4 or top == 0 or bottom == height - 1
        assert right - left == 6 or left == 0 or right == width - 1
    # A 5 × 7 rectangle is whole for 6 of 10 rows and 8 of 14 columns as centre.
    expected = n * 6 / 10 * 8 / 14
    assert abs(whole - expected) < 4 * np.sqrt(expected)


def test_cutout_has_a_uniform_centre_and_colour():
    """Side 8, rectangle 4: row 0 is covered by the centres 0-2 of 8, rows 1-5 by four, row 7 by the centres 6, 7."""
    n = 4000
    out = cut_out(torch.zeros(n, 3, 8, 8, dtype=torch.uint8), [(4, i) for i in range(n)], 0.5)
    covered = (out != 0).any(dim=1)  # black is one colour of 2**24
    by_row = covered.any(dim=2).double().mean(dim=0)
    by_column = covered.any(dim=1).double().mean(dim=0)
    expected = torch.tensor([3, 4, 4, 4, 4, 4, 3, 2]).double() / 8
    for found in (by_row, by_column):
        torch.testing.assert_close(found, expected, rtol=0, atol=4 * np.sqrt(0.25 / n))
    both = covered[:, 0, 0].double().mean()  # rows and columns are drawn independently
    assert abs(both - 9 / 64) < 4 * np.sqrt(9 / 64 / n)
    colours = out.flatten(2).amax(dim=2).double()
    assert colours.min() == 0
    assert colours.max() == 255
    torch.testing.assert_close(colours.mean(dim=0), torch.full((3,), 127.5).double(), rtol=0, atol=4 * 74 / n**0.5)
    assert torch.corrcoef(colours.T).fill_diagonal_(0).abs().max() < 4 / n**0.5


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_cutout_at_its_limits(share):
    out = cut_out(torch.full((50, 3, 8, 8), 7, dtype=torch.uint8), [(i,) for i in range(50)], share)
    changed = (out != 7).any(dim=1).flatten(1).sum(dim=1)
    assert int(changed.max()) <= (0 if share < 0.05 else 64)
    assert int(changed.min()) >= (0 if share < 0.05 else 16)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_cutout_comes_first_and_changes_no_other_draw(name):
    off, on = ImageTransform(PROCESSORS["vit"], name), ImageTransform(PROCESSORS["vit"], name, 0.5)
    pixels, seeds = off.resize(pictures(8)), [(1, i, 0) for i in range(8)]
    assert torch.equal(off.augment(pixels, seeds), AUGMENTATIONS[name](pixels, seeds))
    first = on.augment(pixels, seeds)
    assert torch.equal(first, AUGMENTATIONS[name](cut_out(pixels, seeds, 0.5), seeds))
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(on.augment(pixels.flip(0), seeds[::-1]).flip(0), first)
    # Another view, another rectangle.
    other = cut_out(pixels, [(1, i, 1) for i in range(8)], 0.5)
    assert (other != cut_out(pixels, seeds, 0.5)).flatten(1).any(dim=1).all()


def test_cutout_is_for_augmented_views_only():
    dataset, transform = tiny.tiny_dataset(4), ImageTransform(tiny.processor(), "none", 0.5)
    images, index = ImageRows(dataset, "image", transform), [0, 1, 2, 3]
    plain = EvalDataset(images, None).__getitems__(index)["pixel_values"]
    expected = tiny.processor()(list(dataset["image"]), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(transform.finish(plain), expected, atol=2e-2, rtol=0)
    views = ViewDataset(images, transform, True, 2, 0, 1).__getitems__(index)["pixel_values"]
    assert torch.equal(views[:, 0], plain)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (views[:, first] != views[:, second]).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("name", ["randaugment", "randaugment_asl"])
def test_single_images_are_augmented_on_one_thread_with_the_same_result(name, monkeypatch):
    pixels = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    seeds = [(i,) for i in range(12)]
    seen = []

    def watched(seed):
        seen.append(torch.get_num_threads())
        return np.random.Generator(np.random.PCG64(seed))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        threaded = AUGMENTATIONS[name].__wrapped__(pixels, seeds)
        monkeypatch.setattr(np.random, "default_rng", watched)
        assert torch.equal(AUGMENTATIONS[name](pixels, seeds), threaded)
        assert seen == [1] * 12
        with pytest.raises((TypeError, ValueError)):
            AUGMENTATIONS[name](pixels, [("no number",)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
