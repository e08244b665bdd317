"""How long the parts of BalanceMix take and how much memory they need, each figure beside its bar.

    OMP_NUM_THREADS=2 python recipes/benchmark.py mixtures
    python recipes/benchmark.py mixtures --json > mixtures.json
    python recipes/benchmark.py images --gpu_images_per_second 1000

mixtures: refit all mixtures and compute all posteriors, at the size of COCO, against a loop of scikit-learn's
`GaussianMixture` in the same run. Takes 1 to 4 minutes, nearly all of it scikit-learn's.

images: from a JPEG to normalised pixels, for each stage and decoder, with and without --image_cache, and the cores
that a GPU needs. Takes half a minute.

Other work on the machine slows everything down: the ratios within one run are the figures to compare.
"""

import argparse
import json
import math
import os
import platform
import runpy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from tqdm import tqdm

from hf_balancemix.method import label_posteriors

COCO = (117_266, 80)
"""Images of train2017 with at least one label, and classes."""


@dataclass(frozen=True)
class Figure:
    """One measured number, and what it is to reach."""

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the value reaches its bar; ``None`` without one."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least

    def line(self) -> str:
        """The figure, its bar, and whether it is met."""
        text = f"{self.name:<38}{self.value:>10.3g} {self.unit:<3}"
        if self.met is None:
            return text.rstrip()
        bar = f"≤ {self.at_most:g}" if self.at_least is None else f"≥ {self.at_least:g}"
        return f"{text}bar {bar}: {'met' if self.met else 'missed'}"


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    facts = Path("/proc/cpuinfo")
    models = (
        [line.split(":", 1)[1].strip() for line in facts.read_text().splitlines() if line.startswith("model name")]
        if facts.exists()
        else [platform.processor()]
    )
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scikit_learn": sklearn.__version__,
    }


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_memory(work: Callable[[], Any]) -> tuple[Any, float]:
    """Result of a call, and by how many megabytes memory grew at its peak; NaN where the system does not tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return work(), math.nan
    reset.write_text("5")  # the peak so far is forgotten
    before = dict(line.split(":", 1) for line in status.read_text().splitlines())
    result = work()
    after = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return result, (int(after["VmHWM"].split()[0]) - int(before["VmRSS"].split()[0])) * 1024 / 1e6


def noisy_losses(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Losses (rows, classes) of a model after warm-up, float32, and labels of which 3.6% are 1, 40% of these wrong.

    Made a few rows at a time, so that the peak of the memory is not that of making them.
    """
    generator = torch.Generator().manual_seed(seed)
    share = torch.logspace(0, -2, classes)
    share *= 0.036 / share.mean()
    losses, labels = torch.empty(rows, classes), torch.empty(rows, classes, dtype=torch.uint8)
    for some in torch.arange(rows).split(4096):
        given = torch.rand(len(some), classes, generator=generator) < share
        true = given & (torch.rand(given.shape, generator=generator) < 0.6)
        true |= ~given & (torch.rand(given.shape, generator=generator) < 0.4 * share)
        logits = torch.where(true, 1.5, -5.5) + 2 * torch.randn(given.shape, generator=generator)
        losses[some] = torch.nn.functional.softplus(torch.where(given, -logits, logits))
        labels[some] = given.to(torch.uint8)
    return losses, labels


def one_by_one(losses: Tensor, labels: Tensor) -> Tensor:
    """The same posteriors by a loop over the classes and label values with scikit-learn, float64 (rows, classes)."""
    posterior = torch.ones(losses.shape, dtype=torch.float64)
    settings: dict[str, Any] = {"covariance_type": "spherical", "max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4}
    start: dict[str, Any] = {"weights_init": [0.5] * 2, "means_init": [[0.0], [1.0]], "precisions_init": [25.0] * 2}
    for k in tqdm(range(losses.shape[1]), desc="scikit-learn", unit="class", disable=None):
        for label in (0, 1):
            members = labels[:, k] == label
            value = losses[members, k].double().numpy()[:, None]
            if len(value) < 4 or np.ptp(value) < 1e-6:
                continue
            value = (value - value.min()) / np.ptp(value)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                fit = GaussianMixture(2, **settings, **start).fit(value)
            small = int(fit.means_[:, 0].argmin())
            posterior[members, k] = torch.from_numpy(fit.predict_proba(value)[:, small])
    return posterior


def mixtures(options: argparse.Namespace) -> tuple[str, list[Figure]]:
    """Time refit and posteriors, half of the runs before scikit-learn's loop and half after it.

    The bars are for the size of COCO, which is the default.
    """
    coco = (options.rows, options.classes) == COCO
    losses, labels = noisy_losses(options.rows, options.classes)
    label_posteriors(losses[:1000], labels[:1000])
    found, megabytes = peak_memory(lambda: label_posteriors(losses, labels))
    times = [seconds(lambda: label_posteriors(losses, labels)) for _ in range(options.repeats)]
    start = time.perf_counter()
    expected = one_by_one(losses, labels)
    reference = time.perf_counter() - start
    times += [seconds(lambda: label_posteriors(losses, labels)) for _ in range(options.repeats)]
    own = statistics.median(times)
    fitted = torch.where(labels == 1, found.fitted[1], found.fitted[0])
    difference = torch.where(fitted, found.posterior - expected, 0.0).abs().max()
    title = f"Refit and posteriors of {options.rows:,} × {options.classes} labels, median of {len(times)} runs"
    return title, [
        Figure("seconds", own, "s", at_most=1.0 if coco else None),
        Figure("fastest run", min(times), "s"),
        Figure("slowest run", max(times), "s"),
        Figure("a loop of scikit-learn fits", reference, "s"),
        Figure("times faster than the loop", reference / own, "×", at_least=30.0 if coco else None),
        Figure("largest difference of a posterior", float(difference), "", at_most=1e-3),
        Figure("peak memory beyond losses and labels", megabytes, "MB"),
        Figure("of which posteriors", found.posterior.numel() * 4 / 1e6, "MB"),
    ]


def images(options: argparse.Namespace) -> tuple[str, list[Figure]]:
    """Time the stages between a file and the model."""
    measure = runpy.run_path(str(Path(__file__).with_name("benchmarks_images.py")))["measure"]
    title, found = measure(options)
    return title, [Figure(*figure[:2], unit=figure[2]) for figure in found]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message[:1].upper()}{message[1:]}. {self.prog} --help lists the options.\n")


def _above_zero(word: str) -> int:
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {word!r}")
    return int(word)


def main(words: Sequence[str] | None = None) -> None:
    """Measure what the command line names; a mistake in it ends in one line and exit status 2.

    Args:
        words: By default those of this process.
    """
    style: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = _Parser(description=__doc__, **style)
    commands = parser.add_subparsers(metavar="BENCHMARK", required=True)
    command = commands.add_parser("mixtures", help="mixtures and posteriors at the size of COCO", **style)
    command.add_argument("--rows", type=_above_zero, default=COCO[0], help="images (%(default)s)")
    command.add_argument("--classes", type=_above_zero, default=COCO[1], help="classes (%(default)s)")
    command.add_argument(
        "--repeats", type=_above_zero, default=5, help="runs before, and after, the loop (%(default)s)"
    )
    command.set_defaults(measure=mixtures)
    command = commands.add_parser("images", help="reading, resizing and augmenting images", **style)
    for name, default, text in (
        ("images", 32, "in a batch"),
        ("rounds", 9, "times that each stage is measured"),
        ("image_size", 448, "pixels per side"),
        ("gpu_images_per_second", 1000, "that the GPU trains on, without any method"),
    ):
        command.add_argument(f"--{name}", type=_above_zero, default=default, help=f"{text} (%(default)s)")
    command.set_defaults(measure=images)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print JSON in place of a table")
    options = parser.parse_args(words)
    title, figures = options.measure(options)
    facts = machine()
    if options.json:
        found = [asdict(figure) | {"met": figure.met} for figure in figures]
        print(json.dumps({"title": title, "figures": found, "machine": facts}, indent=1, ensure_ascii=False))
    else:
        print(title, *(figure.line() for figure in figures), sep="\n")
        print(", ".join(f"{name} {value}" for name, value in facts.items()))


if __name__ == "__main__":
    main()
