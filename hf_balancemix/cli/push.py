"""``hf-balancemix push``: a trained model to the Hub."""

from __future__ import annotations

import argparse

from hf_balancemix.hub.push import Destination, push
from hf_balancemix.training.pushing import run_contents

DESCRIPTION = "Push a trained model to the Hub: weights, configuration, image processor, code of its head, model card."
EXAMPLE = """example:
  hf-balancemix push runs/digits/balancemix-seed0 my-name/digits-balancemix --private"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of the command."""
    parser.add_argument("folder", metavar="RUN_OR_CHECKPOINT", help="Folder of a trained model.")
    parser.add_argument(
        "repo_id", metavar="REPO_ID", help="Its name on the Hub, USER/NAME; yours if no user is in front."
    )
    parser.add_argument("--private", action="store_true", help="Only you may see it, if it does not exist yet.")
    parser.add_argument(
        "--hub_strategy",
        choices=("end", "checkpoint", "all_checkpoints"),
        default="end",
        help="end: the model only; checkpoint: also the last checkpoint, for resuming; all_checkpoints: each of them.",
    )
    parser.add_argument("--revision", metavar="BRANCH", help="Branch; created if it does not exist (default: main).")


def run(options: argparse.Namespace) -> None:
    """Push the model.

    Raises:
        ValueError: If there is no model in the folder, or for a name that cannot be on the Hub.
        PushError: If the push does not succeed.
    """
    destination = Destination(options.repo_id, options.private or None, options.revision)
    contents = run_contents(options.folder, options.hub_strategy)
    pushed = push(contents, destination, "Upload model", quiet=False)
    print(f"pushed: {pushed.commit_url or pushed.url}")
