"""``hf-balancemix thresholds``: the score from which on each class is predicted, tuned for F1 on validation images."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_balancemix.cli.data_options import add_data_options, given_data_options
from hf_balancemix.cli.scoring import add_scoring_options, clear_out_of_memory, find_device
from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.folder import load_validation
from hf_balancemix.data.formats import evaluation_labels
from hf_balancemix.data.images import check_files, drop_unreadable
from hf_balancemix.data.validation import choose_validation
from hf_balancemix.messages import mistake, some
from hf_balancemix.predict import load_checkpoint, predict_probs
from hf_balancemix.recipe import RECIPES
from hf_balancemix.thresholds import (
    DEFAULT_THRESHOLD,
    MIN_POSITIVES,
    class_f1,
    f1_thresholds,
    save_thresholds,
)

DESCRIPTION = f"""\
Tune the decision threshold of each class for F1 on a validation split, and save them with the model.

The data are your own images (--data_dir, --dataset) as recipes/folder.py reads them, or those of another recipe
(--recipe). The split validation, val, valid, dev or eval is read, or the whole folder if it has no splits; another
one with --split. A test split is refused: thresholds chosen on test images make the results on them too good. A class
with fewer than {MIN_POSITIVES} positive images there keeps {DEFAULT_THRESHOLD}.

The thresholds go into the model's config.json, where `hf-balancemix predict` and `hf-balancemix space` find them."""
EXAMPLE = """examples:
  hf-balancemix thresholds runs/folder/balancemix-seed0 --data_dir my_pictures
  hf-balancemix thresholds runs/folder/balancemix-seed0 --data_dir my_pictures --split dev2
  hf-balancemix thresholds runs/voc/balancemix-seed0 --recipe voc --data_dir VOCdevkit --split train"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="Folder of a trained model.")
    add_data_options(parser)
    parser.add_argument("--split", metavar="NAME", help="Split to tune on; the validation split unless given.")
    add_scoring_options(parser)


def run(options: argparse.Namespace) -> None:
    """Tune and save the thresholds.

    Raises:
        ValueError: For everything that the user can set right.
    """
    _check_checkpoint(options)
    given = given_data_options(options)
    device = find_device(options.device)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, processor = load_checkpoint(options.checkpoint)
    config: Any = model.config
    names = [config.id2label[k] for k in range(config.num_labels)]
    split, rows = _load_rows(options, given, names)
    shown = f"the {split} split" if split else f"all images of {options.data_dir!r}"
    skipped: list[str] = []
    if options.on_bad_image == "skip":
        rows, skipped = drop_unreadable(rows, "image", options.num_workers or None)
    else:
        check_files(rows, "image", split or "validation")
    labels = evaluation_labels(rows, encode_labels(rows, class_names=names))
    if not (labels == 1).any():
        raise mistake(f"labels in {shown}", f"none in {len(rows)} rows", "Check the label column")
    probs = np.empty(labels.shape, dtype=np.float32)
    batches = predict_probs(model, processor, rows, options.batch_size, options.num_workers, device)
    with tqdm(total=len(rows), unit="image") as bar, clear_out_of_memory(options.batch_size, device):
        for start, batch in batches:
            probs[start : start + len(batch)] = batch
            bar.update(len(batch))
    thresholds = f1_thresholds(labels, probs)
    _print_table(names, labels, probs, thresholds)
    path = save_thresholds(options.checkpoint, names, thresholds)
    if skipped:
        print(f"skipped {len(skipped)} that cannot be read: {some(skipped)}", file=sys.stderr)
    if split == "train":
        print(
            "note: the scores of images that the model was trained on are surer than those of others", file=sys.stderr
        )
    print(f"tuned on {shown}, {len(rows)} images; saved in {path}")


def _check_checkpoint(options: argparse.Namespace) -> None:
    if not os.path.isdir(options.checkpoint):
        raise mistake(
            "the folder of a checkpoint, to save the thresholds there",
            f"no folder {options.checkpoint!r}",
            "Check the path; fetch a model of the Hub with `hf download NAME --local-dir FOLDER`",
        )


def _load_rows(
    options: argparse.Namespace, given: dict[str, Any], class_names: list[str]
) -> tuple[str, datasets.Dataset]:
    """Return the name of the split, and its rows."""
    if options.recipe == "folder":
        return load_validation(**given, split=options.split, class_names=class_names)
    # Their "test" is what the recipe reports its results on.
    splits = dict(RECIPES[options.recipe].load(**given))
    split = choose_validation(splits, options.split, None, f"the recipe {options.recipe}")
    return split, splits[split]


def _print_table(
    names: list[str], labels: npt.NDArray[Any], probs: npt.NDArray[Any], thresholds: npt.NDArray[np.float64]
) -> None:
    """Print a line per class, the mean, and which classes were too rare to tune."""
    positives = np.count_nonzero(labels == 1, axis=0)
    before, after = class_f1(labels, probs), class_f1(labels, probs, thresholds)
    rare = [name for name, n in zip(names, positives, strict=True) if n < MIN_POSITIVES]
    shown = [" ".join(name.split()) for name in names]
    width = max(5, *map(len, shown))
    print(f"{'class':{width}}  images  threshold  F1 at {DEFAULT_THRESHOLD}  F1 tuned")
    for row in zip(shown, positives, thresholds, before, after, strict=True):
        print("{:{width}}  {:6d}  {:9.3f}  {:9.3f}  {:8.3f}".format(*row, width=width))
    print(f"{'mean':{width}}  {'':6}  {'':9}  {before.mean():9.3f}  {after.mean():8.3f}")
    print("F1 tuned is the best possible on these very images; expect less on others.")
    if rare:
        print(f"kept at {DEFAULT_THRESHOLD}, with fewer than {MIN_POSITIVES} positive images: {some(rare)}")
