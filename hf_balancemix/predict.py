"""From a checkpoint and image files to one score per class."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from hf_balancemix.connection import prepare_hub
from hf_balancemix.data.columns import find_image_column
from hf_balancemix.data.pairs import EvalDataset, ImageRows, as_batch
from hf_balancemix.data.transforms import ImageTransform
from hf_balancemix.messages import nearest

# Looked for in folders; a file that is named may have any ending.
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico"),
)


def load_checkpoint(checkpoint: str | Path) -> tuple[PreTrainedModel, Any]:
    """Load a multi-label classifier and its image processor.

    Args:
        checkpoint: A folder as ``save_model`` or a recipe writes it, or a name on the Hub.

    Returns:
        The model, in eval mode, and its image processor.

    Raises:
        ValueError: If there is no such folder or name, if one of the two parts is missing or damaged, or if the model
            was not trained for several labels per image.
    """
    checkpoint = os.fspath(checkpoint)
    if os.path.isdir(checkpoint):
        _check_has_model(Path(checkpoint))
        repair = "Copy the checkpoint anew, or save model and image processor there with `save_pretrained`."
        remedy = repair
    else:
        _check_could_be_on_hub(checkpoint)
        repair = "Check the connection, or choose another one."
        remedy = f"There is no folder of that name either{_missing(checkpoint)}. Check the name"
        remedy += "." if prepare_hub() else " and the connection: the Hub cannot be reached."
    config = _load(AutoConfig, "the configuration of a model", checkpoint, remedy)
    if config.problem_type != "multi_label_classification":
        raise ValueError(
            "Expected a model for several labels per image (`problem_type` multi_label_classification in its "
            f"config.json), found {config.problem_type!r} in {checkpoint!r}, whose outputs mean something else. "
            "Choose a checkpoint that was trained with this package or with that problem type."
        )
    processor = _load(AutoImageProcessor, "an image processor", checkpoint, repair)
    options = {"output_loading_info": True}
    model, info = _load(AutoModelForImageClassification, "the weights of a model", checkpoint, repair, **options)
    if info["missing_keys"]:  # transformers draws them at random
        raise ValueError(
            f"Expected all weights of the model in {checkpoint!r}, found {len(info['missing_keys'])} missing, for "
            f"instance {min(info['missing_keys'])!r}. {repair}"
        )
    return model, processor


def _load(loader: Any, what: str, checkpoint: str, remedy: str, **options: Any) -> Any:
    try:
        return loader.from_pretrained(checkpoint, **options)
    # A mismatch of sizes is a RuntimeError.
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(
            f"Expected {what} in {checkpoint!r}, found that it cannot be loaded ({reason}). {remedy}"
        ) from error


def _check_has_model(folder: Path) -> None:
    """Refuse a folder without a model, and name those inside it that have one."""
    if (folder / "config.json").is_file():
        return
    inside = {str(path.parent) for level in ("*", "*/*") for path in folder.glob(f"{level}/config.json")}
    # "checkpoint-90" before "checkpoint-200"
    ordered = sorted(
        inside, key=lambda name: [part.zfill(20) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )
    remedy = f"Did you mean {' or '.join(map(repr, ordered[-4:]))}?" if inside else "Check the path."
    raise ValueError(
        f"Expected a folder with a model (config.json, model.safetensors), found no config.json in {str(folder)!r}. "
        f"{remedy}"
    )


def _check_could_be_on_hub(name: str) -> None:
    """Refuse what can only be meant as a folder, but is none."""
    if os.path.exists(name):
        raise ValueError(
            f"Expected the folder of a checkpoint, found the file {name!r}. Pass its folder: "
            f"{str(Path(name).parent)!r}."
        )
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"Expected the folder of a checkpoint or a model's name on the Hub, found no folder {name!r}"
            f"{_missing(name)}. Check the path."
        ) from error


def _missing(path: str) -> str:
    """Name what is nearest to the first part of a path that does not exist."""
    part = Path(path)
    while part.parent != part and not part.parent.exists():
        part = part.parent
    return nearest(part.name, os.listdir(part.parent)) if part.parent.is_dir() else ""


def find_images(patterns: Sequence[str]) -> list[str]:
    """List image files.

    Args:
        patterns: Files, folders (searched to any depth for files that end in one of ``IMAGE_ENDINGS``, hidden ones
            left out) and glob patterns (``**`` for any depth). What exists under its name is no pattern.

    Returns:
        The files in the order of ``patterns``, those of one folder or pattern sorted, each file once.

    Raises:
        ValueError: If something does not exist, a folder holds no image or a pattern fits nothing, and for names that
            are no valid text.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise ValueError(
                f"Expected images, found no file or folder that is called {pattern!r} or fits it as a "
                f"pattern{_missing(pattern)}. Check the path."
            )
        files = [file for match in matches for file in (_in_folder(match) if os.path.isdir(match) else [match])]
        if not files:
            raise ValueError(
                f"Expected images in {pattern!r}, found no file that ends in {', '.join(IMAGE_ENDINGS)}. Check the "
                "path; name files with another ending one by one, or by a pattern such as '*.dat'."
            )
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    # Bytes that are no UTF-8 come from the file system as lone surrogates, which no file of scores can hold.
    if wrong := next((file for file in found.values() if re.search("[\ud800-\udfff]", file)), None):
        raise ValueError(f"Expected file names in UTF-8, found {os.fsencode(wrong)!r}. Rename the file.")
    return list(found.values())


def _in_folder(folder: str) -> list[str]:
    return sorted(
        os.path.join(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")
    )


class _Rows(EvalDataset):
    """Returns a mistake in the data instead of raising it.

    The DataLoader would give the message of a worker's error a traceback, and hold the workers in a reference cycle
    with it, so that they end seconds later.
    """

    def __getitems__(self, index: Sequence[int]) -> Any:
        try:
            return super().__getitems__(index)
        except ValueError as error:
            return error


def predict_probs(
    model: PreTrainedModel,
    processor: Any,
    dataset: datasets.Dataset,
    batch_size: int = 32,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Predict the images of a data set in order, as ``transformers.pipeline("image-classification")`` does.

    Args:
        model: Multi-label classifier with K outputs; it is moved to ``device`` and set to eval mode.
        processor: Its image processor.
        dataset: N rows with an image column.
        batch_size: Images per forward pass; no more are held at once, but for what the workers read ahead.
        num_workers: Processes that read images; 0 reads in this one.
        device: Where the model runs.

    Yields:
        The row of the batch's first image, and the sigmoid of the logits: (n, K) float32.

    Raises:
        ValueError: If there is no image column; ``UnreadableImageError`` if an image cannot be read.
    """
    transform = ImageTransform(processor, "none")
    rows = ImageRows(dataset, find_image_column(dataset), transform)
    loader: Any = DataLoader(
        _Rows(rows, None),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=cast(Any, as_batch),
    )
    model.eval().to(torch.device(device))
    start = 0
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        # Not around the `yield`: the caller's code would run without gradients too.
        with torch.no_grad():
            pixels = transform.finish(batch["pixel_values"].to(model.device))
            logits = model(pixel_values=pixels.to(model.dtype)).logits
        probs = logits.float().sigmoid().cpu().numpy()
        yield start, probs
        start += len(probs)
