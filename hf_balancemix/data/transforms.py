"""From PIL images to model input: geometry from the image processor, augmentation from a seed per image.

The three stages are separate because they are needed separately: ``resize`` (which can be kept in memory),
``augment`` (differs per view) and ``finish`` (rescale and normalise). Without ``augment`` the result is what the
image processor itself gives, so training, evaluation and ``pipeline`` see the same pixels.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as T
from torchvision.transforms.v2 import functional as TF

Seed = tuple[int, ...]
_MEAN_GREY = [128.0]
# Cutout draws from (*seed, this), so that the augmentation after it draws the same with and without it. NumPy pads
# seeds with zeros, so it must not be 0.
_CUTOUT_STREAM = 7
# Settings of a processor that ``resize`` does not depend on.
_OF_FINISH = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


class ImageTransform:
    """Resizes, augments and normalises images for one model.

    Args:
        processor: A Hugging Face image processor, native or timm's.
        augmentation: One of :data:`AUGMENTATIONS`.
        cutout: Side of the rectangle that :func:`cut_out` covers before the augmentation, as a share of the image's
            side; 0 is off.

    Attributes:
        geometry: Text that says how ``resize`` does it.

    Raises:
        TypeError: If ``processor`` is no image processor.
        ValueError: If ``augmentation`` is unknown or ``cutout`` is no share.
    """

    def __init__(self, processor: Any, augmentation: str = "randaugment_asl", cutout: float = 0.0) -> None:
        if augmentation not in AUGMENTATIONS:
            near = difflib.get_close_matches(augmentation, AUGMENTATIONS, n=1, cutoff=0)[0]
            raise ValueError(
                f"`augmentation` must be one of {sorted(AUGMENTATIONS)}, got {augmentation!r} ({near!r}?)."
            )
        if not 0 <= cutout <= 1:
            raise ValueError(f"Expected `cutout` between 0 and 1, a share of the image's side, found {cutout!r}.")
        self.augmentation, self.cutout = augmentation, cutout
        if hasattr(processor, "val_transforms"):  # timm's processor: its last steps convert and normalise
            steps = processor.val_transforms.transforms
            normalise = next(step for step in steps if type(step).__name__ == "Normalize")
            geometry = [s for s in steps if type(s).__name__ not in ("ToTensor", "MaybeToTensor", "Normalize")]
            self._geometry: Callable[[list[Any]], torch.Tensor] = _TimmGeometry(geometry)
            self.geometry = repr(geometry)
            self.scale, mean, std = 1 / 255, normalise.mean, normalise.std
        elif hasattr(processor, "rescale_factor"):
            self._geometry = _ProcessorGeometry(processor)
            settings = {name: value for name, value in processor.to_dict().items() if name not in _OF_FINISH}
            self.geometry = f"{type(processor).__qualname__} {json.dumps(settings, sort_keys=True, default=str)}"
            self.scale = processor.rescale_factor if processor.do_rescale else 1.0
            mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0], [1.0])
        else:
            raise TypeError(
                "Expected an image processor as `processing_class` (for instance "
                f"`AutoImageProcessor.from_pretrained(...)`), found {type(processor).__name__}."
            )
        self.mean = torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.as_tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def resize(self, images: Sequence[Any], rows: Sequence[int] | None = None) -> torch.Tensor:
        """Return (n, 3, H, W) uint8 pixels of n PIL images; ``rows`` names them in an error.

        Raises:
            ValueError: If an entry is no image, or if the processor leaves images of different sizes.
        """
        for i, image in enumerate(images):
            if not hasattr(image, "convert"):
                raise ValueError(
                    f"Expected a PIL image in row {rows[i] if rows else i}, found {type(image).__name__}. Cast the "
                    "column with `dataset.cast_column(name, datasets.Image())`."
                )
        return self._geometry([as_rgb(image) for image in images])

    def augment(self, pixels: torch.Tensor, seeds: Sequence[Seed]) -> torch.Tensor:
        """Return (n, 3, H, W) uint8 pixels, each cut out and augmented by its own seed and nothing else."""
        if self.cutout:
            pixels = cut_out(pixels, seeds, self.cutout)
        return AUGMENTATIONS[self.augmentation](pixels, seeds)

    def finish(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (..., 3, H, W) float32 on the pixels' device: rescaled and normalised as the processor does."""
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        # In place: fresh memory for each step takes longer than all the arithmetic.
        return pixels.to(torch.float32, copy=True).mul_(self.scale).sub_(mean).div_(std)


def as_rgb(image: Any) -> Any:
    """Convert as Pillow does, but 16-bit grey to 8 bits, which Pillow cuts off at 255, nearly all white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.getextrema()[1] > 255):
        return PIL.Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:  # Pillow warns unless asked for RGBA
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


class _ProcessorGeometry:
    """Resize and crop of a native image processor, as uint8."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, images: list[Any]) -> torch.Tensor:
        pixels = self.processor(images, do_rescale=False, do_normalize=False)["pixel_values"]
        sizes = {tuple(np.shape(p)) for p in pixels}
        if len(sizes) > 1:
            raise ValueError(
                f"Expected an image processor that gives one size, found sizes {sorted(sizes)[:3]}. Set "
                "`processor.size` to a height and width, or switch centre cropping on."
            )
        stacked = torch.stack([torch.as_tensor(np.asarray(p)) for p in pixels])
        return stacked.round().clamp(0, 255).to(torch.uint8) if stacked.is_floating_point() else stacked


class _TimmGeometry:
    """Resize and crop of a timm image processor, as uint8."""

    def __init__(self, steps: list[Any]) -> None:
        self.steps = T.Compose([*steps, T.PILToTensor()])

    def __call__(self, images: list[Any]) -> torch.Tensor:
        return torch.stack([self.steps(image) for image in images])


def cut_out(pixels: torch.Tensor, seeds: Sequence[Seed], share: float) -> torch.Tensor:
    """Cover one rectangle of each image with one random colour, as the ASL and ML-Decoder training scripts do.

    Relations: DeVries and Taylor's Cutout is a square in the mean colour; the operation of that name within
    ``randaugment_asl`` is grey and at most 20 pixels wide. The scripts' rectangle is a pixel wider and taller.

    Args:
        pixels: (n, 3, H, W) uint8.
        seeds: One seed per image.
        share: The rectangle has round(share·H) × round(share·W) pixels. Its centre is uniform over the image, so it
            may be cut off by the border.

    Returns:
        (n, 3, H, W) uint8.
    """
    height, width = pixels.shape[-2:]
    tall, wide = int(share * height + 0.5), int(share * width + 0.5)
    out = pixels.clone()
    for image, seed in zip(out, seeds, strict=True):
        rng = np.random.default_rng((*seed, _CUTOUT_STREAM))
        top, left = int(rng.integers(height)) - tall // 2, int(rng.integers(width)) - wide // 2
        colour = torch.from_numpy(rng.integers(0, 256, 3).astype(np.uint8)).view(3, 1, 1)
        image[:, max(0, top) : max(0, top + tall), max(0, left) : max(0, left + wide)] = colour
    return out


# ---- augmentations: (pixels uint8 (n, 3, H, W), one seed per image) -> the same shape ----


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread: on a single image the threads of an operation take longer to meet than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _none(pixels: torch.Tensor, seeds: Sequence[Seed]) -> torch.Tensor:
    return pixels


def _affine(pixels: torch.Tensor, seeds: Sequence[Seed]) -> torch.Tensor:
    """Rotate up to 15 degrees, shift up to 10%, scale by 0.85 to 1.15; the whole batch at once, for small images."""
    u = torch.from_numpy(np.stack([np.random.default_rng(seed).uniform(-1, 1, 4) for seed in seeds])).float()
    angle, zoom = u[:, 0] * np.pi / 12, 1 / (1 + 0.15 * u[:, 3])
    cos, sin = (torch.cos(angle) * zoom).view(-1, 1, 1), (torch.sin(angle) * zoom).view(-1, 1, 1)
    height, width = pixels.shape[-2:]
    y = ((torch.arange(height) * 2 + 1) / height - 1).view(1, -1, 1)
    x = ((torch.arange(width) * 2 + 1) / width - 1).view(1, 1, -1)
    # Elementwise on purpose: a matrix product may round differently for another batch size.
    grid_x = cos * x - sin * y + (0.2 * u[:, 1]).view(-1, 1, 1)
    grid_y = sin * x + cos * y + (0.2 * u[:, 2]).view(-1, 1, 1)
    grid = torch.stack([grid_x, grid_y], dim=-1)
    moved = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8)


@_one_thread()
def _randaugment(pixels: torch.Tensor, seeds: Sequence[Seed]) -> torch.Tensor:
    """Apply torchvision's RandAugment (2 operations, magnitude 9)."""
    policy = T.RandAugment(num_ops=2, magnitude=9, interpolation=InterpolationMode.BILINEAR, fill=_MEAN_GREY)
    out = torch.empty_like(pixels)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator: lend it a seeded one
        for i, seed in enumerate(seeds):
            # Not `torch.manual_seed`, which seeds every device too.
            torch.default_generator.manual_seed(int(np.random.default_rng(seed).integers(2**63)))
            out[i] = policy(pixels[i])
    return out


@_one_thread()
def _randaugment_asl(pixels: torch.Tensor, seeds: Sequence[Seed]) -> torch.Tensor:
    """Draw RandAugment as the ASL and ML-Decoder training scripts do.

    Two of fifteen operations are drawn uniformly, each is applied with probability 1/2, with a magnitude step
    uniform in 1..9 of ten.
    """
    out = pixels.clone()
    for i, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        for name in rng.choice(list(_ASL_OPERATIONS), size=2):
            applied, level, sign = rng.random() < 0.5, rng.integers(1, 10) / 9, rng.choice([-1.0, 1.0])
            if applied:
                out[i] = _ASL_OPERATIONS[name](out[i], float(level), float(sign), rng)
    return out


def _shift(
    image: torch.Tensor, angle: float = 0.0, translate: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> torch.Tensor:
    degrees = [float(np.degrees(np.arctan(s))) for s in shear]
    return TF.affine(
        image, angle, list(translate), 1.0, degrees, interpolation=InterpolationMode.BILINEAR, fill=_MEAN_GREY
    )


def _cutout(image: torch.Tensor, level: float, sign: float, rng: np.random.Generator) -> torch.Tensor:
    side = round(20 * level)
    height, width = image.shape[-2:]
    y, x = int(rng.integers(height)), int(rng.integers(width))
    image = image.clone()
    image[:, max(0, y - side // 2) : y + (side + 1) // 2, max(0, x - side // 2) : x + (side + 1) // 2] = 128
    return image


_Operation = Callable[[torch.Tensor, float, float, np.random.Generator], torch.Tensor]
# Each takes (image uint8, level in (0, 1], sign ±1, generator). The ranges are those of these scripts.
_ASL_OPERATIONS: dict[str, _Operation] = {
    "shear_x": lambda im, level, sign, _: _shift(im, shear=(0.3 * level * sign, 0.0)),
    "shear_y": lambda im, level, sign, _: _shift(im, shear=(0.0, 0.3 * level * sign)),
    "translate_x": lambda im, level, sign, _: _shift(
        im, translate=(round(150 / 331 * level * sign * im.shape[-1]), 0)
    ),
    "translate_y": lambda im, level, sign, _: _shift(
        im, translate=(0, round(150 / 331 * level * sign * im.shape[-2]))
    ),
    "rotate": lambda im, level, sign, _: _shift(im, angle=30 * level * sign),
    "color": lambda im, level, sign, _: TF.adjust_saturation(im, 1 + 0.9 * level * sign),
    "posterize": lambda im, level, sign, _: TF.posterize(im, 8 - round(4 * level)),
    "solarize": lambda im, level, sign, _: TF.solarize(im, 256 * (1 - level)),
    "contrast": lambda im, level, sign, _: TF.adjust_contrast(im, 1 + 0.9 * level * sign),
    "sharpness": lambda im, level, sign, _: TF.adjust_sharpness(im, 1 + 0.9 * level * sign),
    "brightness": lambda im, level, sign, _: TF.adjust_brightness(im, 1 + 0.9 * level * sign),
    "autocontrast": lambda im, level, sign, _: TF.autocontrast(im),
    "equalize": lambda im, level, sign, _: TF.equalize(im),
    "invert": lambda im, level, sign, _: TF.invert(im),
    "cutout": _cutout,
}

AUGMENTATIONS: dict[str, Callable[[torch.Tensor, Sequence[Seed]], torch.Tensor]] = {
    "randaugment_asl": _randaugment_asl,
    "randaugment": _randaugment,
    "affine": _affine,
    "none": _none,
}
