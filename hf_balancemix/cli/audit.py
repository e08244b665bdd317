"""``hf-balancemix audit``: the given labels that a run takes for wrong, as tables and as a corrected data set."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from transformers.utils import logging

from hf_balancemix.cli.saved_rows import check_output, check_saved, save_splits
from hf_balancemix.cli.training_data import add_data_options, load_run, load_run_splits
from hf_balancemix.data.images import image_names, read_images
from hf_balancemix.reports.audit_page import write_page
from hf_balancemix.reports.corrections import corrected_dataset
from hf_balancemix.reports.label_issues import LabelIssues, find_label_issues, label_statuses, write_issues

DESCRIPTION = """\
Rank the given labels of the training images that a run of BalanceMix takes for wrong.

RUN is the output folder of a run, or one of its checkpoints. The issue score of a label is 1 - its probability of
being clean, averaged over all epochs after the warm-up. In --out are then index.html, a page for the browser on which
suggestions are accepted or rejected (hf-balancemix apply-review applies what it exports), label_issues.csv, for a
spreadsheet, and label_issues.parquet: row, image, class, given and suggested label, score, and more.

If the training data are there as well (--data_dir, --dataset, --recipe), the page shows the images, they are named by
their files, and corrected/ is the data set with every suggestion applied to the training split, for recipes/folder.py
--data_dir. What a recipe knows about its run, such as columns, splits and noise, need not be said again."""
EXAMPLE = """examples:
  hf-balancemix audit runs/folder/balancemix-seed0 --data_dir my_pictures
  hf-balancemix audit runs/digits/balancemix-seed0 --above 0.9 --out digits_audit
  hf-balancemix audit trainer_output/checkpoint-500"""
_SHOWN = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of the command."""
    parser.add_argument("run", metavar="RUN", help="Folder of a run or of a checkpoint.")
    parser.add_argument("--out", default="audit", metavar="DIR", help="Where the results go (default: %(default)s).")
    parser.add_argument(
        "--above",
        type=_share,
        default=0.5,
        metavar="X",
        help="Labels with a larger issue score are listed, from 0 to 1 (default: %(default)s).",
    )
    add_data_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="Replace earlier results in --out.")


def run(options: argparse.Namespace) -> None:
    """Write the issues, and with the data the corrected data set.

    Raises:
        ValueError: For everything that the user can set right.
    """
    logging.set_verbosity_error()
    out = check_output(options.out, options.overwrite)
    corrected = check_saved(out / "corrected", options.data_dir)
    audited = load_run(options.run)
    find_label_issues(audited.state, above=options.above)  # refuses a state before the data are read
    splits = load_run_splits(options, audited)
    rows = None if splits is None else splits["train"]
    names = None if rows is None else _without_common_folder(image_names(rows, "image"))
    issues = find_label_issues(audited.state, names, options.above)
    paths = write_issues(issues, out)
    _print_summary(issues, audited.state.labels.numpy().sum(axis=0, dtype=np.int64), options.above)
    print(f"label state: {audited.folder}, after {audited.state.prepared_epoch} epochs")
    print(f"label issues: {paths[0]}, {paths[1]}")
    pictures = None if rows is None else rows.select_columns("image")
    images = None if pictures is None else lambda row: read_images(pictures, "image", [row])[0]
    title = f"Label issues of {Path(options.run).resolve().name}"
    print(f"page: {write_page(issues, images, out, title)}")
    if splits is None:
        shutil.rmtree(corrected, ignore_errors=True)  # an earlier audit's, of other issues
        print(
            "note: without the training data the page has no pictures, images are named by their rows, and no "
            "corrected data set is written; say where they are with --data_dir or --dataset, or --recipe",
            file=sys.stderr,
        )
        return
    facts = audited.facts
    statuses = label_statuses(audited.state, facts["relabel_threshold"], facts["refinement"])
    splits["train"] = corrected_dataset(splits["train"], issues, "labels", statuses=statuses)
    save_splits(splits, corrected)
    print(f"corrected data set, all {len(issues)} suggestions applied: {corrected}")


def _without_common_folder(names: list[str]) -> list[str]:
    """Shorten paths of this machine: what all images share tells them not apart, and is nobody else's business."""
    if not all(map(os.path.isabs, names)):
        return names
    common = os.path.commonpath(map(os.path.dirname, names))
    return [os.path.relpath(name, common) for name in names]


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, found {text!r}")
    return value


def _print_summary(issues: LabelIssues, positives: np.ndarray, above: float) -> None:
    """Print how many issues of each kind the classes have, those with most issues first."""
    k = len(issues.class_names)
    wrong = np.bincount(issues.classes[issues.given == 1], minlength=k)
    missing = np.bincount(issues.classes[issues.given == 0], minlength=k)
    order = np.argsort(-(wrong + missing), kind="stable")[:_SHOWN]
    shown = {j: " ".join(issues.class_names[j].split()) for j in order}
    rest = f"{k - len(order)} other classes" if k > len(order) else ""
    width = max(len("class"), len("all"), len(rest), *map(len, shown.values()))
    print(f"{'class':{width}}  given positives  wrong positives  missing positives")
    lines = [(shown[j], positives[j], wrong[j], missing[j]) for j in order]
    if rest:
        lines.append((rest, *(counts.sum() - counts[order].sum() for counts in (positives, wrong, missing))))
    for line in [*lines, ("all", positives.sum(), wrong.sum(), missing.sum())]:
        print("{:{width}}  {:15d}  {:15d}  {:17d}".format(*line, width=width))
    share = len(issues) / max(1, len(issues.image_ids) * k)
    print(f"{len(issues)} label issues, {share:.2%} of the labels, with a score above {above:g}")
