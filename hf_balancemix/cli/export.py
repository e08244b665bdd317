"""``hf-balancemix export``: a trained model as one file, for ONNX Runtime or torch.export."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers.utils import logging

from hf_balancemix.data.images import read_images
from hf_balancemix.export import MAX_IMAGES, RUNS, TOLERANCE, check_export, export_model
from hf_balancemix.export_formats import ENDINGS
from hf_balancemix.predict import find_images, load_checkpoint

DESCRIPTION = "Write a trained model to one file, for ONNX Runtime or torch.export, and check it against PyTorch."
EXAMPLE = """example:
  hf-balancemix export runs/coco/balancemix-seed0 --to onnx --out coco.onnx --images photos/

The file takes pixel_values (batch, 3, height, width) and gives logits (batch, classes), whose sigmoid is the score of
each class. Its metadata hold class_names, image_size, rescale_factor, image_mean, image_std, and decision_thresholds
if the model has them."""
# Recipes write it beside the folders of their runs; checkpoints lie within these.
_EXAMPLE_IMAGE, _LEVELS = "example.png", 3


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="Folder of a trained model, or its name on the Hub.")
    parser.add_argument("--to", choices=list(ENDINGS), default="onnx", help="Format (default: %(default)s).")
    parser.add_argument(
        "--out", metavar="FILE", help=f"Where it goes (default: model{' or model'.join(ENDINGS.values())}, here)."
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help=f"Images for the check: a folder, file or pattern; the first {MAX_IMAGES} are used (default: the "
        f"{_EXAMPLE_IMAGE} of the run, else drawn pictures).",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace the file if it exists.")


def run(options: argparse.Namespace) -> None:
    """Export the model.

    Raises:
        ValueError: For everything that the user can set right.
    """
    path = check_export(options.out or f"model{ENDINGS[options.to]}", options.to, options.overwrite)
    files = find_images([options.images]) if options.images is not None else _example(options.checkpoint)
    images = _read(files[:MAX_IMAGES])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, processor = load_checkpoint(options.checkpoint)
    done = export_model(model, processor, path, options.to, images, options.overwrite)
    height, width = done.image_size
    sizes = " and ".join(map(str, done.batch_sizes))
    pictures = f"{len(images)} of {len(files)} from {options.images or files[0]}" if files else "drawn pictures"
    latency = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in done.seconds.items())
    threads = torch.get_num_threads()
    print(f"file:    {path}, {done.num_bytes / 1e6:.1f} MB")
    print(f"input:   pixel_values (batch, 3, {height}, {width}); output: logits (batch, {done.num_labels})")
    print(
        f"check:   logits differ by at most {done.max_difference:.1e} (allowed: {TOLERANCE:.0e}; relative beyond ±1)"
    )
    print(f"         in batches of {sizes}, {pictures}")
    print(f"latency: {latency}")
    print(f"         (one image on the CPU, {threads} thread{'s' * (threads != 1)}, median of {RUNS} runs)")


def _example(checkpoint: str) -> list[str]:
    """Return the example image of the run that a checkpoint belongs to, if there is one."""
    folder = Path(checkpoint).resolve()
    folders = [folder, *folder.parents][:_LEVELS] if folder.is_dir() else []
    return [str(place / _EXAMPLE_IMAGE) for place in folders if (place / _EXAMPLE_IMAGE).is_file()][:1]


def _read(files: list[str]) -> list[Any]:
    # Absolute, for `datasets` would take "a::b.png" for an address.
    table = {"image": [os.path.abspath(file) for file in files]}
    features = datasets.Features({"image": datasets.Image()})
    return read_images(datasets.Dataset.from_dict(table, features), "image", range(len(files)))
