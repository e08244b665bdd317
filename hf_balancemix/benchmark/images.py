"""Images per second on one core, from JPEGs of 640 × 480 to normalised pixels, by stage; see `benchmark.py images`.

The pictures are made on the fly: noise, smoothed at five scales, saved at quality 90, about 70 kB each. A photo of
this size has 50 to 100 kB, and what decoding takes follows from that and the number of pixels.
"""

from __future__ import annotations

import importlib
import io
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import timm
import torch
from torchvision.io import ImageReadMode, decode_jpeg
from transformers import TimmWrapperConfig

from hf_balancemix.backbones import squash_processor, timm_processor
from hf_balancemix.benchmark.figures import Figure
from hf_balancemix.data.pairs import ImageRows
from hf_balancemix.data.transforms import ImageTransform

WIDTH, HEIGHT = 640, 480
# Largest features of the picture first: columns of the noise, and its standard deviation in levels.
SCALES = ((4, 60), (12, 35), (40, 20), (120, 10), (320, 6))
# Of an epoch, per training image: images read, views augmented, and what the device does, in units of a training step;
# a view without gradient is a third. Reading: random half, minority half, pass. The device normalises.
EPOCHS = {
    "plain BCE": (1, 1, 1.0),
    "schedule reuse": (3, 4, 1 + 2 / 3),
    "schedule epoch": (3, 4, 1 + 3 / 3),
    "schedule step": (3, 4, 1 + 5 / 3),
}
Decoder = Callable[[bytes], Any]


def images(options: Namespace) -> tuple[str, list[Figure]]:
    """Measure every stage in turn, round after round; medians over the rounds, in milliseconds per image.

    Args:
        options: ``images`` in a batch, ``rounds``, ``image_size`` and ``gpu_images_per_second``.

    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(options, Path(folder))
    finally:
        torch.set_num_threads(threads)


def _measure(options: Namespace, folder: Path) -> tuple[str, list[Figure]]:
    rng, count = np.random.default_rng(0), options.images
    contents = [jpeg(photo(rng), 90) for _ in range(count)]
    for i, content in enumerate(contents):
        (folder / f"{i}.jpg").write_bytes(content)
    dataset = datasets.Dataset.from_dict(
        {"image": [str(folder / f"{i}.jpg") for i in range(count)]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    transform = ImageTransform(squash_processor(options.image_size, mean, std))
    cached = ImageRows(dataset, "image", transform, cache_dir=str(folder / "cache"))
    rows, pictures = list(range(count)), list(dataset["image"])
    pixels = transform.resize(pictures)
    copies = [jpeg(PIL.Image.fromarray(row), 95) for row in pixels.permute(0, 2, 3, 1).numpy()]
    seeds = [(0, row) for row in rows]
    decoders = available_decoders()
    used = next(iter(decoders))
    stages: dict[str, Callable[[], Any]] = {
        **{f"decode: {name}": partial(_all, decode, contents) for name, decode in decoders.items()},
        "resize": lambda: transform.resize(pictures),
        "resize, timm's processor": lambda: of_timm(options.image_size).resize(pictures),
        "read from the image cache": lambda: cached[rows],
        "decode a JPEG copy instead": lambda: [decoders["torchvision"](content) for content in copies],
        "draw what to augment": lambda: transform.draw(seeds, options.image_size, options.image_size),
        "augment": lambda: transform.augment(pixels, seeds),
        "normalise": lambda: transform.finish(pixels),
    }
    times = rounds_of(stages, options.rounds, count)
    lossy = torch.stack([torch.from_numpy(decoders[used](content).copy()).permute(2, 0, 1) for content in copies])
    differences = [
        np.abs(decode(contents[0]).astype(int) - decoders[used](contents[0])) for decode in decoders.values()
    ]
    read = times[f"decode: {used}"] + times["resize"]
    whole = [first + times["augment"] + times["normalise"] for first in (read, times["read from the image cache"])]
    size = sum(map(len, contents)) / count / 1e3
    title = (
        f"One core, {count} JPEGs of {WIDTH} × {HEIGHT} ({size:.0f} kB) to {options.image_size} px, median of "
        f"{options.rounds} rounds"
    )
    figures = [(name, value, "ms") for name, value in times.items()]
    figures += [
        ("largest difference between decoders", float(max(part.max() for part in differences)), "levels"),
        ("mean difference of a JPEG copy", float((lossy.float() - pixels.float()).abs().mean()), "levels"),
        ("size of a JPEG copy", sum(map(len, copies)) / count / 1e3, "kB"),
        ("size in the image cache", pixels[0].numel() / 1e3, "kB"),
        ("images per second", 1e3 / whole[0], "/s"),
        ("with the image cache", 1e3 / whole[1], "/s"),
        ("times faster with it", whole[0] / whole[1], "×"),
        ("reading alone", read / times["read from the image cache"], "×"),
    ]
    speed = options.gpu_images_per_second
    for name, parts in EPOCHS.items():
        for cache, reading in (("", read), (", cached", times["read from the image cache"])):
            for place, stage in (("", "augment"), (", augmented on the GPU", "draw what to augment")):
                figures.append((f"cores for {name}{cache}{place}", cores(parts, reading, times[stage], speed), ""))
    return title, [Figure(*figure) for figure in figures]


def _all(decode: Decoder, contents: list[bytes]) -> list[Any]:
    return [decode(content) for content in contents]


def cores(parts: tuple[int, int, float], read: float, augment: float, speed: float) -> float:
    """How many cores keep a device busy that trains on ``speed`` images per second.

    Args:
        parts: One of :data:`EPOCHS`.
        read: Milliseconds per image to read it.
        augment: The same per view, to augment it, or to draw what the device is to do.
        speed: Of plain training.
    """
    reads, augmented, steps = parts
    return (reads * read + augmented * augment) / 1e3 * speed / steps


def rounds_of(stages: dict[str, Callable[[], Any]], rounds: int, count: int) -> dict[str, float]:
    """Median milliseconds per image of each stage; they take turns, as other work on the machine comes and goes."""
    times: dict[str, list[float]] = {name: [] for name in stages}
    for turn in range(rounds + 1):
        for name, stage in stages.items():
            start = time.perf_counter()
            stage()
            if turn:  # the first is to warm up
                times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(found) / count for name, found in times.items()}


def photo(rng: np.random.Generator) -> PIL.Image.Image:
    """A picture with structure at five scales, and colours that differ less than the light."""
    pixels = np.full((HEIGHT, WIDTH, 3), 120.0)
    for columns, level in SCALES:
        shape = max(2, columns * HEIGHT // WIDTH), columns
        light, colour = rng.normal(size=shape), rng.normal(size=(*shape, 3))
        for k in range(3):
            noise = 0.7 * light + 0.5 * colour[..., k]
            smooth = PIL.Image.fromarray(noise.astype(np.float32)).resize(
                (WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC
            )
            pixels[..., k] += level * np.asarray(smooth)
    return PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(picture: PIL.Image.Image, quality: int) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def of_timm(size: int) -> ImageTransform:
    """As a timm model with its own head has it, which resizes with Pillow."""
    name = "resnet50.tv_in1k"
    settings: Any = timm.get_pretrained_cfg(name)
    make: Any = TimmWrapperConfig
    config = make(architecture="resnet50", pretrained_cfg=settings.to_dict())
    return ImageTransform(timm_processor(config, size))


def available_decoders() -> dict[str, Decoder]:
    """What can decode a JPEG here, to (H, W, 3) uint8; first what training uses."""

    def as_tensor(content: bytes) -> torch.Tensor:
        return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())

    def drafted(content: bytes) -> Any:
        picture = PIL.Image.open(io.BytesIO(content))
        picture.draft("RGB", (448, 448))
        return np.asarray(picture)

    feature = datasets.Image()
    found: dict[str, Decoder] = {
        "datasets with Pillow (used)": lambda content: np.asarray(
            feature.decode_example({"bytes": content, "path": None})
        ),
        "Pillow, draft mode": drafted,
        "torchvision": lambda content: decode_jpeg(as_tensor(content), ImageReadMode.RGB).permute(1, 2, 0).numpy(),
    }
    for name, module, decode in (
        ("torchcodec", "torchcodec.decoders", lambda m, c: m.decode_jpeg(as_tensor(c)).permute(1, 2, 0).numpy()),
        ("simplejpeg", "simplejpeg", lambda m, c: m.decode_jpeg(c, colorspace="RGB")),
        ("OpenCV", "cv2", lambda m, c: m.imdecode(np.frombuffer(c, np.uint8), m.IMREAD_COLOR)[..., ::-1]),
    ):
        try:
            loaded = importlib.import_module(module)
        except (ImportError, OSError, RuntimeError):  # torchcodec looks for libraries of FFmpeg
            continue
        found[name] = partial(decode, loaded)
    return found
