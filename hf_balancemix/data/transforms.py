"""From PIL images to model input: geometry from the image processor, augmentation from a seed per image.

The three stages are separate because they are needed separately: ``resize`` (which can be kept in memory),
``augment`` (differs per view) and ``finish`` (rescale and normalise). Without ``augment`` the result is what the
image processor itself gives, so training, evaluation and ``pipeline`` see the same pixels.

Where the device augments, the loader's workers only draw what is to happen to each view (``draw``), one copy of each
image travels, and the views are made of it on the device (``views``).
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
from torchvision.transforms import v2 as T

from hf_balancemix.data.augmentations import AUGMENTATIONS, CUTOUT_NUMBERS, Seed, cut_out, draw_cutout

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
        on_device: Whether data sets leave it to :meth:`views` to augment; set before loaders are made.

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
        self.augmentation, self.cutout, self.on_device = augmentation, cutout, False
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

    def set_augmentation(self, augmentation: str, cutout: float, on_device: bool) -> None:
        """Augment otherwise from now on."""
        self.augmentation, self.cutout, self.on_device = augmentation, cutout, on_device

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
        height, width = pixels.shape[-2:]
        return self._apply(pixels, self.draw(seeds, height, width))

    def draw(self, seeds: Sequence[Seed], height: int, width: int) -> torch.Tensor:
        """Return (n, P) int64, what is to happen to n images of this size, each by its own seed."""
        drawn = AUGMENTATIONS[self.augmentation].draw(seeds, height, width)
        return torch.cat([draw_cutout(seeds, height, width, self.cutout), drawn], dim=1) if self.cutout else drawn

    def views(self, batch: dict[str, torch.Tensor], clean: bool = False) -> torch.Tensor:
        """Return the views (..., V, 3, H, W) uint8 of a batch, made where its pixels are unless they are there.

        Args:
            batch: ``pixel_values`` (..., V, 3, H, W), the views; or (..., 1, 3, H, W), an image each, with ``drawn``
                (..., A, P) for its augmented views.
            clean: Whether the image itself comes before the views that are made here.
        """
        pixels = batch["pixel_values"]
        if "drawn" not in batch:
            return pixels
        repeated = pixels.expand(*batch["drawn"].shape[:-1], *pixels.shape[-3:])
        made = self._apply(repeated.flatten(0, -4), batch["drawn"].flatten(0, -2)).reshape(repeated.shape)
        return torch.cat([pixels, made], dim=-4) if clean else made

    def _apply(self, pixels: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        with _one_thread():
            if self.cutout:
                cut, drawn = drawn.split([CUTOUT_NUMBERS, drawn.shape[1] - CUTOUT_NUMBERS], dim=1)
                pixels = cut_out(pixels, cut)
            return AUGMENTATIONS[self.augmentation].apply(pixels, drawn)

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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread: on few images the threads of an operation take longer to meet than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
