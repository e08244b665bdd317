"""``hf-balancemix predict``: the scores of image files, one row per image."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_balancemix.data.images import UnreadableImageError, drop_unreadable
from hf_balancemix.predict import find_images, load_checkpoint, predict_probs
from hf_balancemix.reports.predictions import ScoreWriter, check_scores_path

DESCRIPTION = "Score images with a trained model: one row per image, one score from 0 to 1 per class."
EXAMPLE = """example:
  hf-balancemix predict runs/coco/balancemix-seed0 photos/ "more/*.jpg" --output scores.csv"""
_SHOWN = 5


def _at_least(minimum: int, text: str) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, found {text!r}")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="Folder of a trained model, or its name on the Hub.")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="Image file, folder of images, or pattern.")
    parser.add_argument(
        "--output",
        default="predictions.csv",
        metavar="FILE",
        help="Where the scores go: .csv or .jsonl (default: %(default)s).",
    )
    parser.add_argument(
        "--batch_size",
        type=lambda text: _at_least(1, text),
        default=32,
        metavar="N",
        help="Images per step (default: %(default)s).",
    )
    parser.add_argument(
        "--num_workers",
        type=lambda text: _at_least(0, text),
        default=0,
        metavar="N",
        help="Processes that read images (default: %(default)s, only this one).",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, mps, ... (default: %(default)s, an accelerator if there is one).",
    )
    parser.add_argument(
        "--on_bad_image",
        choices=("raise", "skip"),
        default="raise",
        help="What to do about an image that cannot be read (default: %(default)s).",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace the output file if it exists.")


def run(options: argparse.Namespace) -> None:
    """Score the images.

    Raises:
        ValueError: For everything that the user can set right.
    """
    files = find_images(options.images)
    check_scores_path(options.output, options.overwrite)
    device = _device(options.device)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, processor = load_checkpoint(options.checkpoint)
    # Absolute, for `datasets` would take "a::b.png" for an address.
    table = {"image": [os.path.abspath(file) for file in files], "file": files}
    dataset = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
    skipped: list[str] = []
    config: Any = model.config
    class_names = [config.id2label[k] for k in range(config.num_labels)]
    with ScoreWriter(options.output, class_names, options.overwrite) as writer:
        if options.on_bad_image == "skip":
            dataset, skipped = drop_unreadable(dataset, "image")
        kept = list(dataset["file"])
        batches = predict_probs(model, processor, dataset, options.batch_size, options.num_workers, device)
        with tqdm(total=len(kept), unit="image") as bar:
            try:
                for start, probs in batches:
                    writer.write(kept[start : start + len(probs)], probs)
                    bar.update(len(probs))
            except UnreadableImageError as error:
                rows = f"The first {writer.rows} rows are in {options.output}" if writer.rows else "No row was written"
                raise ValueError(f"{error} {rows}.") from error
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"Expected {options.batch_size} images at once to fit into the memory of {device}, found that "
                    "they do not. Lower --batch_size."
                ) from error
    if skipped:
        shown = ", ".join(map(repr, skipped[:_SHOWN])) + ", ..." * (len(skipped) > _SHOWN)
        print(f"skipped {len(skipped)} that cannot be read: {shown}", file=sys.stderr)
    print(f"{writer.rows} image{'s' * (writer.rows != 1)} scored, {len(skipped)} skipped: {options.output}")


def _device(name: str) -> torch.device:
    """Return the device of that name; "auto" is the accelerator, or the CPU where there is none."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    kinds = ["cpu", *([accelerator.type] if accelerator else [])]
    if device is None or device.type not in kinds:
        raise ValueError(
            f"Expected as --device auto or a device of this machine ({', '.join(kinds)}), found {name!r}. Leave it "
            "out for the fastest one."
        )
    if device.type != "cpu" and (device.index or 0) >= torch.accelerator.device_count():
        raise ValueError(
            f"Expected as --device one of the {torch.accelerator.device_count()} devices of this machine, counted "
            f"from 0, found {name!r}. Leave the number out for the first one."
        )
    return device
