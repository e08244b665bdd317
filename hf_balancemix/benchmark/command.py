"""How long the parts of BalanceMix take and how much memory they need, each figure beside its bar.

    python recipes/benchmark.py mixtures
    python recipes/benchmark.py epoch --json > epoch.json

mixtures: refit all mixtures and compute all posteriors, at the size of COCO, against a loop of scikit-learn's
`GaussianMixture` in the same run. Takes 1 to 4 minutes, nearly all of it scikit-learn's.

epoch: whole epochs of every schedule against those of plain BCE, pictures in memory, and where the time goes.

images: from a JPEG to normalised pixels, for each stage and decoder, with and without --image_cache, and the cores
that a GPU needs. Takes half a minute.

memory: what the label state takes and what a refresh needs, at a growing number of images.

simulate: what BalanceMix's own work takes on sets larger than this machine holds, continued from sizes that it does
hold, on one core and on several ranks (Linux). Takes 2 to 4 minutes.

Other work on the machine slows everything down: the ratios within one run are the figures to compare.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from hf_balancemix.benchmark.epoch import epoch
from hf_balancemix.benchmark.figures import Figure, machine
from hf_balancemix.benchmark.images import images
from hf_balancemix.benchmark.memory import memory
from hf_balancemix.benchmark.mixtures import COCO, mixtures
from hf_balancemix.benchmark.simulate import simulate

BENCHMARKS: dict[Callable[[Any], tuple[str, list[Figure]]], tuple[str, dict[str, tuple[int, str]]]] = {
    mixtures: (
        "mixtures and posteriors at the size of COCO",
        {
            "rows": (COCO[0], "images"),
            "classes": (COCO[1], "classes"),
            "repeats": (5, "runs before, and after, the loop"),
        },
    ),
    epoch: (
        "whole epochs of every schedule beside plain BCE",
        {
            "images": (256, "training images"),
            "batch": (32, "images per step"),
            "size": (96, "pixels per side"),
            "rounds": (3, "epochs of each"),
        },
    ),
    images: (
        "reading, resizing and augmenting images",
        {
            "images": (32, "in a batch"),
            "rounds": (9, "times that each stage is measured"),
            "image_size": (448, "pixels per side"),
            "gpu_images_per_second": (1000, "that the GPU trains on, without any method"),
        },
    ),
    memory: (
        "the label state and a refresh at growing size",
        {
            "rows": (COCO[0], "images of the largest set of schedule epoch; stream takes 16 times as many"),
            "classes": (COCO[1], "classes"),
        },
    ),
    simulate: (
        "sets larger than this machine holds",
        {
            "entries": (2**24, "labels of the largest pass measured"),
            "rows": (2**23, "images of the largest sampling measured"),
            "fits": (512, "classes of the largest fit measured"),
            "rounds": (3, "times that each size is measured"),
            "ranks": (8, "processes"),
        },
    ),
}
"""Each benchmark, what it measures, and its sizes: default and meaning."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message[:1].upper()}{message[1:]}. {self.prog} --help lists the options.\n")


def _above_zero(word: str) -> int:
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {word!r}")
    return int(word)


def _shape(word: str) -> tuple[int, int]:
    rows, _, classes = word.partition("x")
    if not (rows.isdecimal() and classes.isdecimal() and int(rows) and int(classes)):
        raise argparse.ArgumentTypeError(f"expected images and classes such as 9000000x600, found {word!r}")
    return int(rows), int(classes)


def benchmark_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    style: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = _Parser(description=__doc__, **style)
    commands = parser.add_subparsers(metavar="BENCHMARK", required=True)
    for measure, (text, sizes) in BENCHMARKS.items():
        command = commands.add_parser(measure.__name__, help=text, **style)
        for name, (default, meaning) in sizes.items():
            command.add_argument(f"--{name}", type=_above_zero, default=default, help=f"{meaning} (%(default)s)")
        command.add_argument("--json", action="store_true", help="print JSON in place of a table")
        command.set_defaults(measure=measure)
    commands.choices["epoch"].add_argument("--backbone", default="resnet18", help="timm name (%(default)s)")
    text = "images x classes to continue to, such as 9000000x600; may be repeated"
    commands.choices["simulate"].add_argument("--shape", type=_shape, action="append", help=text)
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Measure what the command line names; a mistake in it ends in one line and exit status 2.

    Args:
        words: By default those of this process.
    """
    options = benchmark_parser().parse_args(words)
    title, figures = options.measure(options)
    facts = machine()
    if options.json:
        found = [asdict(figure) | {"met": figure.met} for figure in figures]
        text = json.dumps({"title": title, "figures": found, "machine": facts}, indent=1, ensure_ascii=False)
    else:
        about = ", ".join(f"{name} {value}" for name, value in facts.items())
        text = "\n".join([title, *(figure.line() for figure in figures), about])
    sys.stdout.write(text + "\n")
