"""``hf-balancemix apply-review``: a person's decisions about label issues, applied to the data set."""

from __future__ import annotations

import argparse

from transformers.utils import logging

from hf_balancemix.cli.saved_rows import check_output, check_saved, save_splits
from hf_balancemix.cli.training_data import add_data_options, load_run, load_run_splits
from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.images import image_names
from hf_balancemix.messages import mistake
from hf_balancemix.reports.corrections import corrected_dataset
from hf_balancemix.reports.decisions import read_decisions

DESCRIPTION = """\
Apply the suggestions that a person accepted to the training images, and save them with the new labels.

DECISIONS.csv is what the page of `hf-balancemix audit` exports: index, image, class, given, suggested and decision,
which is accept or reject. The data are the training images of the audited run, with the labels that it was given.
--run names that run: what its recipe knows, such as columns, splits and injected noise, need not be said again.

The result is for recipes/folder.py --data_dir; its column given_labels has the labels from before."""
EXAMPLE = """example:
  hf-balancemix apply-review decisions.csv --data_dir my_pictures --run runs/folder/balancemix-seed0 --out cleaned"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of the command."""
    parser.add_argument("decisions", metavar="DECISIONS.csv", help="The decisions.")
    parser.add_argument("--out", required=True, metavar="DIR", help="Where the data set goes.")
    parser.add_argument("--run", metavar="RUN", help="Folder of the audited run or checkpoint.")
    add_data_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="Replace a data set in --out.")


def run(options: argparse.Namespace) -> None:
    """Save the data set with the accepted labels.

    Raises:
        ValueError: For everything that the user can set right.
    """
    logging.set_verbosity_error()
    out = check_saved(check_output(options.out, options.overwrite), options.data_dir)
    splits = load_run_splits(options, None if options.run is None else load_run(options.run))
    if splits is None:
        raise mistake("the training data", "no --data_dir, --dataset or --recipe", "Say where they are")
    rows = splits["train"]
    names = encode_labels(rows, "labels").class_names
    issues, rejected = read_decisions(options.decisions, names, image_names(rows, "image"))
    if not len(issues):
        found = f"none in {options.decisions!r}, {rejected} rejected"
        raise mistake("at least one accepted decision", found, "Accept some on the page and export them again")
    splits["train"] = corrected_dataset(rows, issues, "labels")
    save_splits(splits, out)
    print(f"{len(issues)} suggestions accepted, {rejected} rejected; {len(set(issues.rows.tolist()))} images changed")
    print(f"data set of {len(rows)} training images: {out}")
