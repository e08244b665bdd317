"""``hf-balancemix predict``: the scores of image files, and their labels, one row per image."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import datasets
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_balancemix.cli.scoring import add_scoring_options, clear_out_of_memory, find_device
from hf_balancemix.data.images import UnreadableImageError, drop_unreadable
from hf_balancemix.predict import find_images, load_checkpoint, predict_probs
from hf_balancemix.reports.predictions import ScoreWriter, check_scores_path
from hf_balancemix.thresholds import read_thresholds

DESCRIPTION = """\
Score images with a trained model: one row per image, one score from 0 to 1 per class.

If `hf-balancemix thresholds` was run on the model, each row also has the labels of the image: the classes whose score
reaches their decision threshold."""
EXAMPLE = """example:
  hf-balancemix predict runs/coco/balancemix-seed0 photos/ "more/*.jpg" --output scores.csv"""
_SHOWN = 5


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
    add_scoring_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="Replace the output file if it exists.")


def run(options: argparse.Namespace) -> None:
    """Score the images.

    Raises:
        ValueError: For everything that the user can set right.
    """
    files = find_images(options.images)
    check_scores_path(options.output, options.overwrite)
    device = find_device(options.device)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, processor = load_checkpoint(options.checkpoint)
    # Absolute, for `datasets` would take "a::b.png" for an address.
    table = {"image": [os.path.abspath(file) for file in files], "file": files}
    dataset = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
    skipped: list[str] = []
    config: Any = model.config
    class_names = [config.id2label[k] for k in range(config.num_labels)]
    thresholds = read_thresholds(config)
    with ScoreWriter(options.output, class_names, options.overwrite, thresholds) as writer:
        if options.on_bad_image == "skip":
            dataset, skipped = drop_unreadable(dataset, "image")
        kept = list(dataset["file"])
        batches = predict_probs(model, processor, dataset, options.batch_size, options.num_workers, device)
        with tqdm(total=len(kept), unit="image") as bar, clear_out_of_memory(options.batch_size, device):
            try:
                for start, probs in batches:
                    writer.write(kept[start : start + len(probs)], probs)
                    bar.update(len(probs))
            except UnreadableImageError as error:
                rows = f"The first {writer.rows} rows are in {options.output}" if writer.rows else "No row was written"
                raise ValueError(f"{error} {rows}.") from error
    if skipped:
        shown = ", ".join(map(repr, skipped[:_SHOWN])) + ", ..." * (len(skipped) > _SHOWN)
        print(f"skipped {len(skipped)} that cannot be read: {shown}", file=sys.stderr)
    print(f"{writer.rows} image{'s' * (writer.rows != 1)} scored, {len(skipped)} skipped: {options.output}")
    if thresholds is not None:
        span = f"from {thresholds.min():.3g} to {thresholds.max():.3g}"
        print(f"labels: classes that reach their decision threshold in the checkpoint's config.json, {span}")
