"""Augmentations of whole batches: what happens to an image is drawn from its seed, and done wherever its pixels are.

Each is a pair of functions. ``draw`` gives a row of whole numbers for each image, from the image's own seed and
nothing else, on the CPU. ``apply`` does what they say to a batch on any device; images of which the same is to be
done are worked on together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as T
from torchvision.transforms.v2 import functional as TF

Seed = tuple[int, ...]
_GREY = 128.0
CUTOUT_NUMBERS = 7
_CACHED = 2**19  # values that a processor works on together in its cache
_STEPS = 9  # of ten, as the ASL scripts have it; the first does nothing
# Cutout draws from (*seed, this), so that the augmentation after it draws the same with and without it. NumPy pads
# seeds with zeros, so it must not be 0.
_CUTOUT_STREAM = 7


class Augmentation(NamedTuple):
    """What is drawn for images, and what is done to them.

    Attributes:
        draw: From n seeds, and the height and width of the images, to (n, P) int64.
        apply: From pixels (n, 3, H, W) uint8 and what was drawn for them, on the same device, to such pixels.
    """

    draw: Callable[[Sequence[Seed], int, int], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]


def _number(values: Tensor) -> Tensor:
    """One number for each image: (n,) to (n, 1, 1, 1) float32."""
    return values.float().view(-1, 1, 1, 1)


# ---- none ----


def _draw_nothing(seeds: Sequence[Seed], height: int, width: int) -> Tensor:
    return torch.zeros(len(seeds), 0, dtype=torch.int64)


def _leave(pixels: Tensor, drawn: Tensor) -> Tensor:
    return pixels


# ---- affine: rotate up to 15 degrees, shift up to 10%, scale by 0.85 to 1.15; for small images ----


def _draw_affine(seeds: Sequence[Seed], height: int, width: int) -> Tensor:
    """Bits of four float32 in [-1, 1]."""
    uniform = np.stack([np.random.default_rng(seed).uniform(-1, 1, 4) for seed in seeds]).astype(np.float32)
    return torch.from_numpy(uniform.view(np.int32).astype(np.int64))


def _apply_affine(pixels: Tensor, drawn: Tensor) -> Tensor:
    u = drawn.int().view(torch.float32)
    angle, zoom = u[:, 0] * np.pi / 12, 1 / (1 + 0.15 * u[:, 3])
    cos, sin = (torch.cos(angle) * zoom).view(-1, 1, 1), (torch.sin(angle) * zoom).view(-1, 1, 1)
    height, width = pixels.shape[-2:]
    y = ((torch.arange(height, device=pixels.device) * 2 + 1) / height - 1).view(1, -1, 1)
    x = ((torch.arange(width, device=pixels.device) * 2 + 1) / width - 1).view(1, 1, -1)
    # Elementwise on purpose: a matrix product may round differently for another batch size.
    grid_x = cos * x - sin * y + (0.2 * u[:, 1]).view(-1, 1, 1)
    grid_y = sin * x + cos * y + (0.2 * u[:, 2]).view(-1, 1, 1)
    grid = torch.stack([grid_x, grid_y], dim=-1)
    moved = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8)


# ---- randaugment: torchvision's ----


def _draw_seed(seeds: Sequence[Seed], height: int, width: int) -> Tensor:
    return torch.tensor([[int(np.random.default_rng(seed).integers(2**63))] for seed in seeds])


def _apply_randaugment(pixels: Tensor, drawn: Tensor) -> Tensor:
    """2 operations of magnitude 9, image by image: the policy draws for a whole batch at once."""
    policy = T.RandAugment(num_ops=2, magnitude=9, interpolation=InterpolationMode.BILINEAR, fill=[_GREY])
    out = torch.empty_like(pixels)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator: lend it a seeded one
        for i, seed in enumerate(drawn.flatten().tolist()):
            # Not `torch.manual_seed`, which seeds every device too.
            torch.default_generator.manual_seed(seed)
            out[i] = policy(pixels[i])
    return out


# ---- randaugment_asl: as in the ASL and ML-Decoder training scripts ----


def _draw_asl(seeds: Sequence[Seed], height: int, width: int) -> Tensor:
    """Two of fifteen operations, each applied with probability 1/2, its step uniform in 1..9, with either sign.

    Of each operation its number (-1: none), step, sign, and for cutout a row and a column of the image.
    """
    drawn = np.full((len(seeds), 2, 5), -1)
    for row, seed in zip(drawn, seeds, strict=True):
        rng = np.random.default_rng(seed)
        for i, number in enumerate(rng.choice(len(ASL_OPERATIONS), size=2)):
            applied, step, sign = rng.random() < 0.5, rng.integers(1, _STEPS + 1), rng.choice([-1, 1])
            if applied:
                row[i, :3] = number, step, sign
                if number == _CUTOUT:
                    row[i, 3:] = rng.integers(height), rng.integers(width)
    return torch.from_numpy(drawn).flatten(1)


def _apply_asl(pixels: Tensor, drawn: Tensor) -> Tensor:
    out, operations = pixels.clone(), list(ASL_OPERATIONS.values())
    together = 1 + _CACHED // pixels[0].numel() if pixels.device.type == "cpu" else len(pixels)
    for part in drawn.view(-1, 2, 5).unbind(dim=1):
        numbers = part[:, 0].cpu()
        for number in numbers.unique().tolist():
            if number >= 0:
                for rows in (numbers == number).nonzero().flatten().to(pixels.device).split(together):
                    out[rows] = operations[number](out[rows], part[rows])
    return out


def _level(drawn: Tensor) -> Tensor:
    return _number(drawn[:, 1]) / _STEPS


def _signed(drawn: Tensor) -> Tensor:
    return _level(drawn) * _number(drawn[:, 2])


def _factor(drawn: Tensor) -> Tensor:
    return 1 + 0.9 * _signed(drawn)


def _blended(pixels: Tensor, other: Tensor, drawn: Tensor) -> Tensor:
    """Pixels at 1, the other image at 0, and beyond."""
    factor = _factor(drawn)
    return (pixels * factor).add_(other * (1 - factor)).clamp_(0, 255).to(torch.uint8)


def _moved(pixels: Tensor, x: tuple[Tensor | float, ...], y: tuple[Tensor | float, ...]) -> Tensor:
    """Take each pixel from where it comes from, in pixels from the centre, bilinearly; from outside comes grey.

    Args:
        pixels: (n, 3, H, W) uint8.
        x: Factors of the column and the row, and a shift, each a number or (n, 1, 1, 1): where the column is taken.
        y: The same for the row.
    """
    height, width = pixels.shape[-2:]
    columns = torch.arange(width, device=pixels.device).sub((width - 1) / 2).view(1, 1, -1)
    rows = torch.arange(height, device=pixels.device).sub((height - 1) / 2).view(1, -1, 1)
    places = []
    for (by_column, by_row, shift), size in ((x, width), (y, height)):
        numbers = [n.view(-1, 1, 1) if isinstance(n, Tensor) else n for n in (by_column, by_row, shift)]
        place = (numbers[0] * columns + numbers[1] * rows + numbers[2]) / (size / 2)
        places.append(place.expand(len(pixels), height, width))
    known = torch.cat([pixels.float(), torch.ones_like(pixels[:, :1], dtype=torch.float32)], dim=1)
    known = F.grid_sample(known, torch.stack(places, dim=-1), align_corners=False)
    found, share = known[:, :3], known[:, 3:]  # as torchvision fills: what is partly outside fades twice
    return found.sub(_GREY).mul_(share).add_(_GREY).round_().to(torch.uint8)


def _shear_x(pixels: Tensor, drawn: Tensor) -> Tensor:
    return _moved(pixels, (1.0, 0.3 * _signed(drawn), 0.0), (0.0, 1.0, 0.0))


def _shear_y(pixels: Tensor, drawn: Tensor) -> Tensor:
    return _moved(pixels, (1.0, 0.0, 0.0), (0.3 * _signed(drawn), 1.0, 0.0))


def _translate_x(pixels: Tensor, drawn: Tensor) -> Tensor:
    shift = (150 / 331 * pixels.shape[-1] * _signed(drawn)).round()
    return _moved(pixels, (1.0, 0.0, -shift), (0.0, 1.0, 0.0))


def _translate_y(pixels: Tensor, drawn: Tensor) -> Tensor:
    shift = (150 / 331 * pixels.shape[-2] * _signed(drawn)).round()
    return _moved(pixels, (1.0, 0.0, 0.0), (0.0, 1.0, -shift))


def _rotate(pixels: Tensor, drawn: Tensor) -> Tensor:
    angle = math.pi / 6 * _signed(drawn)
    return _moved(pixels, (angle.cos(), angle.sin(), 0.0), (-angle.sin(), angle.cos(), 0.0))


def _contrast(pixels: Tensor, drawn: Tensor) -> Tensor:
    return _blended(pixels, TF.rgb_to_grayscale(pixels).float().mean(dim=(1, 2, 3), keepdim=True), drawn)


def _sharpness(pixels: Tensor, drawn: Tensor) -> Tensor:
    """Blend with the mean of nine pixels, the middle one of which counts five times; the border stays."""
    out = pixels.float()
    inner = out[..., 1:-1, 1:-1]
    blurred = F.avg_pool2d(out, 3, stride=1, divisor_override=1).add_(inner, alpha=4).div_(13).round_()
    inner.add_(blurred.sub_(inner).mul_(1 - _factor(drawn)))
    return out.clamp_(0, 255).to(torch.uint8)


def _posterize(pixels: Tensor, drawn: Tensor) -> Tensor:
    lost = (4 * _level(drawn)).round().int()  # of eight bits
    return pixels.bitwise_and((255 >> lost << lost).to(torch.uint8))


def _solarize(pixels: Tensor, drawn: Tensor) -> Tensor:
    return torch.where(pixels >= 256 * (1 - _level(drawn)), TF.invert(pixels), pixels)


def _grey_square(pixels: Tensor, drawn: Tensor) -> Tensor:
    side = (20 * _level(drawn)).round().int()
    top, left = (drawn[:, i].view(-1, 1, 1, 1) - side // 2 for i in (3, 4))
    return _covered(pixels, top, left, side, side, torch.full_like(pixels[:1, :, :1, :1], int(_GREY)))


def _covered(pixels: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, colour: Tensor) -> Tensor:
    """Cover a rectangle of each image; what of it lies outside is cut off. Numbers are (n, 1, 1, 1)."""
    row = torch.arange(pixels.shape[-2], device=pixels.device).view(1, 1, -1, 1)
    column = torch.arange(pixels.shape[-1], device=pixels.device).view(1, 1, 1, -1)
    inside = (row >= top) & (row < top + tall) & (column >= left) & (column < left + wide)
    return torch.where(inside, colour, pixels)


# Each takes pixels (n, 3, H, W) uint8 and what was drawn for them, (n, 5): level is a step of nine. The ranges are
# those of these scripts.
ASL_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "color": lambda pixels, drawn: _blended(pixels, TF.rgb_to_grayscale(pixels), drawn),
    "posterize": _posterize,
    "solarize": _solarize,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "brightness": lambda pixels, drawn: _blended(pixels, torch.zeros_like(pixels[:1, :1, :1, :1]), drawn),
    "autocontrast": lambda pixels, _: TF.autocontrast(pixels),
    "equalize": lambda pixels, _: TF.equalize(pixels),
    "invert": lambda pixels, _: TF.invert(pixels),
    "cutout": _grey_square,
}
_CUTOUT = list(ASL_OPERATIONS).index("cutout")

AUGMENTATIONS: dict[str, Augmentation] = {
    "randaugment_asl": Augmentation(_draw_asl, _apply_asl),
    "randaugment": Augmentation(_draw_seed, _apply_randaugment),
    "affine": Augmentation(_draw_affine, _apply_affine),
    "none": Augmentation(_draw_nothing, _leave),
}


# ---- cutout before the augmentation ----


def draw_cutout(seeds: Sequence[Seed], height: int, width: int, share: float) -> Tensor:
    """Draw one rectangle for each image, as the ASL and ML-Decoder training scripts do.

    Relations: DeVries and Taylor's Cutout is a square in the mean colour; the operation of that name within
    ``randaugment_asl`` is grey and at most 20 pixels wide. The scripts' rectangle is a pixel wider and taller.

    Args:
        seeds: n.
        height: H of the images.
        width: W of the images.
        share: The rectangle has round(share·H) × round(share·W) pixels. Its centre is uniform over the image, so it
            may be cut off by the border.

    Returns:
        (n, 7) int64: top, left, height, width, and a random colour.
    """
    tall, wide = int(share * height + 0.5), int(share * width + 0.5)
    drawn = torch.empty(len(seeds), CUTOUT_NUMBERS, dtype=torch.int64)
    for row, seed in zip(drawn, seeds, strict=True):
        rng = np.random.default_rng((*seed, _CUTOUT_STREAM))
        top, left = int(rng.integers(height)) - tall // 2, int(rng.integers(width)) - wide // 2
        row.copy_(torch.tensor([top, left, tall, wide, *rng.integers(0, 256, 3).tolist()]))
    return drawn


def cut_out(pixels: Tensor, drawn: Tensor) -> Tensor:
    """Cover the rectangle (n, 7) of each image (n, 3, H, W) uint8 with its colour."""
    top, left, tall, wide = (drawn[:, i].view(-1, 1, 1, 1) for i in range(4))
    return _covered(pixels, top, left, tall, wide, drawn[:, 4:].to(torch.uint8).view(-1, 3, 1, 1))
