"""``hf-balancemix space``: a demo of a trained model, to run at home or as a Space of the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_balancemix.hub.space import check_empty, write_space
from hf_balancemix.predict import load_checkpoint
from hf_balancemix.reports.audit_page import page_files
from hf_balancemix.thresholds import read_thresholds

DESCRIPTION = """\
Write a Gradio demo of a trained model: upload a picture, see the score of every class and its labels.

The folder has app.py, requirements.txt and a README.md as a Space of the Hub needs it, and a copy of the model unless
that is on the Hub. The demo runs without this package. With --audit it links the page of a label audit, which shows
training images to everyone who can open the Space."""
EXAMPLE = """example:
  hf-balancemix space runs/folder/balancemix-seed0 --out demo
  pip install -r demo/requirements.txt && python demo/app.py"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="Folder of a trained model, or its name on the Hub.")
    parser.add_argument("--out", required=True, metavar="DIR", help="Folder of the demo; it must not hold anything.")
    parser.add_argument("--audit", metavar="DIR", help="Folder of a label audit, whose page the demo links.")


def run(options: argparse.Namespace) -> None:
    """Write the demo.

    Raises:
        ValueError: For everything that the user can set right.
    """
    check_empty(Path(options.out))
    audit = page_files(Path(options.audit)) if options.audit else None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, _ = load_checkpoint(options.checkpoint)  # a demo that cannot load its model is of no use
    config: Any = model.config
    tuned = read_thresholds(config) is not None
    written = write_space(options.checkpoint, options.out, bool(getattr(config, "auto_map", None)), audit)
    shown = [path for path in written if "thumbnails" not in path]
    more = f" and {len(written) - len(shown)} thumbnails" if len(written) > len(shown) else ""
    print(f"{len(written)} files in {options.out}: {', '.join(shown)}{more}")
    if not tuned:
        print("No decision thresholds in the model, so 0.5 counts: `hf-balancemix thresholds` tunes them")
    print(f"To try it: pip install -r {options.out}/requirements.txt && python {options.out}/app.py")
