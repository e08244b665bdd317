"""Geometry from the processor, augmentation from a seed."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF
from transformers import BitImageProcessor, ConvNextImageProcessor, ViTImageProcessor
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_balancemix.data.augmentations import ASL_OPERATIONS, AUGMENTATIONS, Augmentation, cut_out, draw_cutout
from hf_balancemix.data.pairs import EvalDataset, ImageRows, ViewDataset
from hf_balancemix.data.transforms import ImageTransform
from tests import tiny

NUMBERS = {name: number for number, name in enumerate(ASL_OPERATIONS)}
GREY = [128.0]
BILINEAR = InterpolationMode.BILINEAR


def augmented(name, pixels, seeds):
    draw, apply = AUGMENTATIONS[name]
    return apply(pixels, draw(seeds, *pixels.shape[-2:]))


def with_cutout(pixels, seeds, share):
    return cut_out(pixels, draw_cutout(seeds, *pixels.shape[-2:], share))


def operate(name, image, step, sign, y=5, x=7):
    """One operation on one image (3, H, W)."""
    return ASL_OPERATIONS[name](image[None], torch.tensor([[NUMBERS[name], step, sign, y, x]]))[0]


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
    assert len(ASL_OPERATIONS) == 15
    pixels = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    pixels[..., ::2] = 30
    n = 2000
    out = augmented("randaugment_asl", pixels.repeat(n, 1, 1, 1), [(0, i) for i in range(n)])
    same = int((out == pixels).flatten(1).all(dim=1).sum())
    assert same >= n / 4 - 4 * np.sqrt(n * 3 / 16)
    assert same < n * 0.6


def moved(image, angle=0.0, translate=(0, 0), shear=(0.0, 0.0)):
    degrees = [float(np.degrees(np.arctan(s))) for s in shear]
    return TF.affine(image, angle, list(translate), 1.0, degrees, interpolation=BILINEAR, fill=GREY)


# The same on one image (3, H, W) with torchvision's own functions; v is level times sign.
TORCHVISION = {
    "shear_x": lambda im, level, v: moved(im, shear=(0.3 * v, 0.0)),
    "shear_y": lambda im, level, v: moved(im, shear=(0.0, 0.3 * v)),
    "translate_x": lambda im, level, v: moved(im, translate=(round(150 / 331 * v * im.shape[-1]), 0)),
    "translate_y": lambda im, level, v: moved(im, translate=(0, round(150 / 331 * v * im.shape[-2]))),
    "rotate": lambda im, level, v: moved(im, angle=30 * v),
    "color": lambda im, level, v: TF.adjust_saturation(im, 1 + 0.9 * v),
    "posterize": lambda im, level, v: TF.posterize(im, 8 - round(4 * level)),
    "solarize": lambda im, level, v: TF.solarize(im, 256 * (1 - level)),
    "contrast": lambda im, level, v: TF.adjust_contrast(im, 1 + 0.9 * v),
    "sharpness": lambda im, level, v: TF.adjust_sharpness(im, 1 + 0.9 * v),
    "brightness": lambda im, level, v: TF.adjust_brightness(im, 1 + 0.9 * v),
    "autocontrast": lambda im, level, v: TF.autocontrast(im),
    "equalize": lambda im, level, v: TF.equalize(im),
    "invert": lambda im, level, v: TF.invert(im),
}


@pytest.mark.parametrize("size", [(24, 24), (31, 45), (64, 50)])
@pytest.mark.parametrize("name", TORCHVISION)
def test_operations_on_batches_are_those_of_torchvision_on_images(name, size):
    """Within a level, by which two ways to add up may round differently; in few pixels."""
    noise = torch.rand(18, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(noise, size, mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)
    steps = [(step, sign) for step in range(1, 10) for sign in (-1, 1)]
    found = ASL_OPERATIONS[name](pixels, torch.tensor([[NUMBERS[name], *pair, 0, 0] for pair in steps]))
    assert found.dtype == torch.uint8
    expected = [TORCHVISION[name](im, s / 9, s / 9 * sign) for im, (s, sign) in zip(pixels, steps, strict=True)]
    difference = (found.int() - torch.stack(expected).int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 0.03
    assert not torch.equal(found, pixels) or name in ("autocontrast", "equalize")


def test_the_grey_square_of_cutout_is_at_most_20_wide():
    image = torch.full((3, 40, 50), 7, dtype=torch.uint8)
    for step, y, x, rows, columns in (
        (9, 20, 30, (10, 30), (20, 40)),
        (9, 0, 49, (0, 10), (39, 50)),
        (2, 3, 3, (1, 5), (1, 5)),
    ):
        expected = image.clone()
        expected[:, slice(*rows), slice(*columns)] = 128
        assert torch.equal(operate("cutout", image, step, 1, y, x), expected)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("cutout", [0.0, 0.4])
def test_an_image_does_not_depend_on_the_others_of_its_batch(name, cutout):
    transform, seeds = ImageTransform(PROCESSORS["vit"], name, cutout), [(1, i) for i in range(40)]
    pixels = transform.resize(pictures(40))
    whole = transform.augment(pixels, seeds)
    for together in (1, 7):
        parts = zip(pixels.split(together), range(0, 40, together), strict=True)
        assert torch.equal(torch.cat([transform.augment(p, seeds[i : i + together]) for p, i in parts]), whole)


@pytest.mark.parametrize("name", ["affine", *ASL_OPERATIONS, "cut_out"])
def test_no_operation_mixes_devices(name):
    """Without a GPU: tensors that have a shape and a device only; one operation on two devices is refused."""
    with FakeTensorMode():
        pixels = torch.empty(6, 3, 20, 30, dtype=torch.uint8, device="cuda")
        width = {"affine": 4, "cut_out": 7}.get(name, 5)
        drawn = torch.empty(6, width, dtype=torch.int64, device="cuda")
        others = {"affine": AUGMENTATIONS["affine"].apply, "cut_out": cut_out}
        out = others.get(name, ASL_OPERATIONS.get(name))(pixels, drawn)
        assert (out.shape, out.dtype, out.device.type) == (pixels.shape, torch.uint8, "cuda")


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("cutout", [0.0, 0.4])
@pytest.mark.parametrize(("clean", "augmented_views"), [(True, 2), (False, 2), (True, 0), (False, 1)])
def test_views_of_the_device_are_those_of_the_workers(name, cutout, clean, augmented_views):
    transform = ImageTransform(PROCESSORS["vit"], name, cutout)
    images = ImageRows(tiny.tiny_dataset(6), "image", transform)
    found = []
    for on_device in (False, True):
        transform.set_augmentation(name, cutout, on_device)
        batch = ViewDataset(images, transform, clean, augmented_views, 3, 1).__getitems__([4, 0, 5])
        travels = batch["pixel_values"].shape[1]
        assert travels == (1 if on_device else clean + augmented_views)
        found.append(transform.views(batch, clean))
    assert torch.equal(*found)
    assert found[0].shape[:2] == (3, clean + augmented_views)


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


def test_randaugment_asl_draws_operations_levels_and_signs_evenly():
    """Two of fifteen, each with probability 1/2, level steps 1..9 of nine, both signs."""
    n = 3000
    drawn = AUGMENTATIONS["randaugment_asl"].draw([(1, i) for i in range(n)], 20, 30).view(-1, 5)
    seen = drawn[drawn[:, 0] >= 0].numpy()
    assert (drawn[drawn[:, 0] < 0] == -1).all()
    assert abs(len(seen) - n) < 4 * np.sqrt(2 * n / 4)
    for column, values in ((0, range(15)), (1, range(1, 10)), (2, (-1, 1))):
        counts = np.array([(seen[:, column] == value).sum() for value in values])
        expected = len(seen) / len(values)
        assert counts.sum() == len(seen)
        assert ((counts - expected) ** 2 / expected).sum() < len(values) + 5 * np.sqrt(2 * len(values))
    squares = seen[seen[:, 0] == NUMBERS["cutout"]]
    assert {*range(20)} >= {*squares[:, 3]} > {0, 19}
    assert {*range(30)} >= {*squares[:, 4]} > {0, 29}


def test_randaugment_asl_draws_its_two_operations_independently():
    """With replacement: in one of fifteen images both are the same; a quarter of the images get none, half get one."""
    n = 3000
    drawn = AUGMENTATIONS["randaugment_asl"].draw([(2, i) for i in range(n)], 20, 30).view(-1, 2, 5)[..., 0]
    counts = (drawn >= 0).sum(dim=1)
    applied = torch.bincount(counts, minlength=3)
    for count, share in zip(applied.tolist(), (0.25, 0.5, 0.25), strict=True):
        assert abs(count - share * n) < 4 * np.sqrt(n * share * (1 - share))
    twice = int(((counts == 2) & (drawn[:, 0] == drawn[:, 1])).sum())
    both = int(applied[2])
    assert abs(twice - both / 15) < 4 * np.sqrt(both / 15)


# What the strongest of the nine steps does, worked out by hand: pixel values before and after.
STRONGEST = {
    "posterize": (1, [255, 127, 16], [240, 112, 16]),  # four bits are left of eight
    "solarize": (1, [0, 100, 255], [255, 155, 0]),  # from 0 on everything is inverted
    "brightness": (-1, [0, 100, 200], [0, 10, 20]),  # 1 - 0.9
    "contrast": (-1, [0, 100, 200], [90, 100, 110]),  # a tenth of the distance from the mean 100
    "color": (-1, [50, 50, 50], [50, 50, 50]),
    "invert": (1, [0, 100, 255], [255, 155, 0]),
}


@pytest.mark.parametrize("name", STRONGEST)
def test_the_ranges_of_the_colour_operations(name):
    sign, before, after = STRONGEST[name]
    image = torch.tensor(before, dtype=torch.uint8).repeat_interleave(4).view(1, 3, 4).expand(3, 3, 4).contiguous()
    out = operate(name, image, 9, sign)
    found = out[:, :, 0].int()
    assert (found - torch.tensor(after)).abs().max() <= 1


def test_the_ranges_of_the_moving_operations():
    """In 331 columns: 150 to the side, a shear of 0.3 per row; 30 degrees take a point below to cosine and sine."""
    size, centre = 331, 165
    dot = torch.zeros(3, size, size, dtype=torch.uint8)
    dot[:, centre + 100 - 2 : centre + 103, centre - 2 : centre + 3] = 255  # 100 below the centre

    def place(name, sign):
        out = operate(name, dot, 9, sign)[0]
        bright = (out > 200).nonzero().double()  # grey comes in from outside
        return tuple((bright.mean(dim=0) - centre).tolist())

    for sign in (-1, 1):
        assert place("translate_x", sign) == pytest.approx((100, 150 * sign), abs=1)
        y, x = place("shear_x", sign)
        assert y == pytest.approx(100, abs=1)
        assert abs(x) == pytest.approx(30, abs=1)
        y, x = place("rotate", sign)
        assert (y, abs(x)) == pytest.approx((100 * np.cos(np.pi / 6), 50), abs=1)
    assert place("translate_y", -1) == pytest.approx((-50, 0), abs=1)


# ---- cutout ----


def test_cutout_covers_a_rectangle_of_one_colour():
    n, height, width = 400, 10, 14
    pixels = torch.full((n, 3, height, width), 7, dtype=torch.uint8)
    kept = pixels.clone()
    out = with_cutout(pixels, [(3, i) for i in range(n)], 0.5)
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
    out = with_cutout(torch.zeros(n, 3, 8, 8, dtype=torch.uint8), [(4, i) for i in range(n)], 0.5)
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
    out = with_cutout(torch.full((50, 3, 8, 8), 7, dtype=torch.uint8), [(i,) for i in range(50)], share)
    changed = (out != 7).any(dim=1).flatten(1).sum(dim=1)
    assert int(changed.max()) <= (0 if share < 0.05 else 64)
    assert int(changed.min()) >= (0 if share < 0.05 else 16)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_cutout_comes_first_and_changes_no_other_draw(name):
    off, on = ImageTransform(PROCESSORS["vit"], name), ImageTransform(PROCESSORS["vit"], name, 0.5)
    pixels, seeds = off.resize(pictures(8)), [(1, i, 0) for i in range(8)]
    assert torch.equal(off.augment(pixels, seeds), augmented(name, pixels, seeds))
    first = on.augment(pixels, seeds)
    assert torch.equal(first, augmented(name, with_cutout(pixels, seeds, 0.5), seeds))
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(on.augment(pixels.flip(0), seeds[::-1]).flip(0), first)
    # Another view, another rectangle.
    other = with_cutout(pixels, [(1, i, 1) for i in range(8)], 0.5)
    assert (other != with_cutout(pixels, seeds, 0.5)).flatten(1).any(dim=1).all()


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


def test_augmentation_takes_one_thread(monkeypatch):
    seen = []
    transform = ImageTransform(PROCESSORS["vit"], "affine")
    watched = Augmentation(AUGMENTATIONS["affine"].draw, lambda pixels, drawn: seen.append(torch.get_num_threads()))
    monkeypatch.setitem(AUGMENTATIONS, "affine", watched)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        transform.augment(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [(0,)])
        assert seen == [1]
        with pytest.raises((TypeError, ValueError)):
            transform.augment(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [("no number",)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
