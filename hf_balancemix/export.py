"""One file that runs a trained model without transformers: ONNX, or a program of torch.export.

A file is kept only after it has given the logits that the model itself gives, on pictures and at two batch sizes.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_balancemix.data.transforms import ImageTransform
from hf_balancemix.export_formats import ENDINGS, RUNTIMES, Logits, Runtime, load, without_gradients, write
from hf_balancemix.messages import mistake, nearest

# Of a logit, and of its size beyond ±1, where float32 rounds more coarsely. No score then differs by more than 2.5e-5:
# |x|·σ'(x) is nowhere above 0.224, and σ' nowhere above 0.25.
TOLERANCE = 1e-4
MAX_IMAGES, RUNS = 8, 11

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# A file in the format of protocol buffers cannot be larger.
_MOST_BYTES = 2**31 - 2**20
_DRAWN, _WARM_UPS = 4, 3


@dataclass(frozen=True)
class Exported:
    """What an export gave.

    Args:
        path: The file.
        num_bytes: Its size.
        image_size: (H, W) in pixels.
        num_labels: K.
        batch_sizes: Images at once, of each check.
        max_difference: The largest difference between a logit of the model and that of the file, divided by the
            logit's size where that is above 1.
        seconds: By runtime, the median time that one image takes on the CPU.
    """

    path: Path
    num_bytes: int
    image_size: tuple[int, int]
    num_labels: int
    batch_sizes: tuple[int, ...]
    max_difference: float
    seconds: dict[str, float]


def check_export(path: str | os.PathLike[str], to: str = "onnx", overwrite: bool = False) -> Path:
    """Return the path of the file, if it can be made; nothing is loaded or made yet.

    Args:
        path: Where the file goes.
        to: ``onnx`` or ``torch_export``.
        overwrite: Whether an existing file may be replaced.

    Raises:
        ValueError: For an unknown format, if a package is missing that it takes, for another ending, a folder, and an
            existing file unless ``overwrite``.
    """
    path = Path(path)
    if to not in ENDINGS:
        raise mistake(f"a format among {', '.join(ENDINGS)}", f"{to!r}{nearest(to, ENDINGS)}", "Choose one")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if to == "onnx" and missing:
        remedy = "Install them: pip install 'hf-balancemix[onnx]'; or choose the format torch_export, which needs none"
        raise mistake(f"the packages {', '.join(_PACKAGES)}", f"no {', no '.join(missing)}", remedy)
    if path.suffix.lower() != ENDINGS[to]:
        other = next((name for name, ending in ENDINGS.items() if ending == path.suffix.lower()), None)
        remedy = "Give it that ending" + (f", or choose the format {other}" if other else "")
        raise mistake(f"a file that ends in {ENDINGS[to]} for the format {to}", f"{str(path)!r}", remedy)
    if os.path.isdir(path):
        raise mistake("a file for the model", f"the folder {str(path)!r}", "Choose another name")
    if os.path.exists(path) and not overwrite:
        remedy = "Choose another name, or allow it to be replaced with --overwrite (`overwrite=True`)"
        raise mistake(f"no file at {str(path)!r}, where the model goes", "one", remedy)
    return path


def export_model(
    model: PreTrainedModel,
    processor: Any,
    path: str | os.PathLike[str],
    to: str = "onnx",
    images: Sequence[PIL.Image.Image] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a classifier to one file, check that file against it, and time both on the CPU.

    The file takes ``pixel_values`` (B, 3, H, W) and returns ``logits`` (B, K), both float32, for any B and the H and W
    of the image processor; the sigmoid of a logit is the score of its class. It holds, as JSON, ``class_names``,
    ``image_size`` [H, W], ``rescale_factor``, ``image_mean`` and ``image_std`` (a pixel p from 0 to 255 becomes
    (p · rescale_factor − mean) / std), and ``decision_thresholds`` as the model's configuration has them, if it does:
    in ONNX as the model's metadata, with torch.export as the extra file ``metadata.json``. No picture gets into the
    file. The model itself is not changed.

    Args:
        model: Multi-label classifier with K outputs; the file holds its weights in float32.
        processor: Its image processor.
        path: Where the file goes; its folder is made.
        to: ``onnx``, or ``torch_export`` for a program that ``torch.export.load`` reads.
        images: Pictures for the check, of which the first ``MAX_IMAGES`` are used; drawn ones if there are none.
        overwrite: Whether an existing file may be replaced.

    Raises:
        ValueError: If :func:`check_export` refuses, the file cannot be written, the model cannot be recorded or is too
            large for the format, or a logit differs by more than 1e-4 (of its size, where that is above 1); then no
            file is kept. Scores of a file that is kept differ by less than 2.5e-5.
    """
    path = check_export(path, to, overwrite)
    if to == "onnx":
        _check_fits(model)
    with _folder_beside(path) as folder, tqdm(total=3, unit="step", leave=False) as bar:
        bar.set_description("write")
        pixels, metadata = _prepare(model, processor, images)
        network = Logits(copy.deepcopy(model)).eval().float().cpu().requires_grad_(False)
        written = Path(folder) / f"model{ENDINGS[to]}"
        try:
            write(network, metadata, to, written)
        except OSError as error:
            raise _unwritable(path, error) from error
        bar.update()
        bar.set_description("check")
        own, exported = without_gradients(network), load(written, to)
        batches = (pixels[:1], pixels)
        difference = max(_difference(batch, own, exported, RUNTIMES[to]) for batch in batches)
        bar.update()
        bar.set_description("time")
        runs = {"PyTorch": own, RUNTIMES[to]: exported}
        seconds = {name: _median_seconds(run, pixels[:1]) for name, run in runs.items()}
        bar.update()
        num_bytes = written.stat().st_size
        try:
            os.replace(written, path)
        except OSError as error:
            raise _unwritable(path, error) from error
    height, width = metadata["image_size"]
    sizes = tuple(len(batch) for batch in batches)
    return Exported(path, num_bytes, (height, width), len(metadata["class_names"]), sizes, difference, seconds)


def _check_fits(model: PreTrainedModel) -> None:
    """Refuse a model whose weights are too large for one file of ONNX."""
    size = sum(4 * tensor.numel() for tensor in model.state_dict().values())
    if size > _MOST_BYTES:
        found = f"{size / 1e9:.1f} GB of {type(model).__name__}"
        raise mistake("weights of at most 2.1 GB for a file of ONNX", found, "Choose the format torch_export")


def _folder_beside(path: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a folder for a file that is not checked yet, from where it can be moved in one step."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.stat()  # raises for a name that the file system does not take
        return tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ValueError:
    found = f"{str(path)!r} ({error.strerror or error})"
    return mistake("a file for the model that can be written", found, "Choose another one")


def _prepare(
    model: PreTrainedModel, processor: Any, images: Sequence[PIL.Image.Image] | None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return at least two pictures as the model takes them (n, 3, H, W), and what the file tells of it."""
    transform = ImageTransform(processor, "none")
    chosen = list(images or [])[:MAX_IMAGES] or _draw()
    pixels = transform.finish(transform.resize(chosen))
    if len(pixels) == 1:  # and its mirror image: two batch sizes take two pictures
        pixels = torch.cat([pixels, pixels.flip(-1)])
    config: Any = model.config
    metadata = {
        "class_names": [config.id2label[k] for k in range(config.num_labels)],
        "image_size": list(pixels.shape[-2:]),
        "rescale_factor": transform.scale,
        # Seven digits are what float32 holds: 0.485, not 0.48500001430511475.
        "image_mean": [float(f"{value:.7g}") for value in transform.mean.flatten().tolist()],
        "image_std": [float(f"{value:.7g}") for value in transform.std.flatten().tolist()],
    }
    if (thresholds := getattr(config, "decision_thresholds", None)) is not None:
        metadata["decision_thresholds"] = thresholds
    return pixels, metadata


def _draw() -> list[PIL.Image.Image]:
    """Draw pictures of soft coloured patches, the same ones each time."""
    patches = np.random.default_rng(0).integers(0, 256, (_DRAWN, 8, 8, 3), dtype=np.uint8)
    return [PIL.Image.fromarray(picture).resize((256, 256), PIL.Image.Resampling.BICUBIC) for picture in patches]


def _difference(pixels: torch.Tensor, own: Runtime, exported: Runtime, name: str) -> float:
    """Return the largest difference between the logits of the model and those of the file; refuse too large ones."""
    wanted, found = own(pixels), exported(pixels)
    if not wanted.isfinite().all():
        expected = f"finite logits of the model for all {len(pixels)} pictures of the check"
        raise mistake(expected, "NaN or infinity", "Check its weights; no file was kept")
    same_shape = wanted.shape == found.shape
    difference = float(((wanted - found).abs() / wanted.abs().clamp(min=1)).max()) if same_shape else float("nan")
    if not difference <= TOLERANCE:  # NaN neither
        raise mistake(
            f"logits of {name} that differ from PyTorch's by at most {TOLERANCE} (relative beyond ±1)",
            f"a difference of {difference:.2g} in a batch of {len(pixels)}",
            "No file was kept. Choose another format, or newer versions of torch, onnxscript and onnxruntime",
        )
    return difference


def _median_seconds(run: Runtime, pixels: torch.Tensor) -> float:
    """Return the median time of a run; the first ones, which allocate memory, do not count."""
    seconds = []
    for _ in range(_WARM_UPS + RUNS):
        start = time.perf_counter()
        run(pixels)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[_WARM_UPS:]))
