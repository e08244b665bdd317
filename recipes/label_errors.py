"""How well a run of BalanceMix finds label errors, against cleanlab and the loss of plain training, on digits.

    python recipes/label_errors.py --output_dir runs/label_errors

Noise is injected, so every label error is known. Rankings of all training labels are compared: the issue score of
`hf-balancemix audit`; cleanlab's label quality by predictions for images that a model was not trained on (5 folds, BCE
or Mixup); the loss of one model trained on all images (BCE or Mixup). Then the labels are corrected as suggested, and
BCE is trained on them.

Needs: `pip install cleanlab`, which the package itself does not use. Takes about 1½ hours on one core, 4 noises and 3
seeds. The same command goes on where it stopped; several with different --noises may write to one folder at once.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from scipy.special import expit
from sklearn.metrics import average_precision_score
from transformers import TrainerCallback

from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.noise import inject_noise
from hf_balancemix.recipe import RECIPES
from hf_balancemix.recipe.command import Command, read_command
from hf_balancemix.recipe.job import load_job
from hf_balancemix.recipe.options import noise_spec
from hf_balancemix.recipe.run import evaluate, train
from hf_balancemix.reports.corrections import corrected_dataset
from hf_balancemix.reports.label_issues import LabelIssues, find_label_issues
from hf_balancemix.training.balancemix import BalanceMixTrainer
from hf_balancemix.training.multilabel import MultiLabelTrainer

try:
    from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
    from cleanlab.multilabel_classification.rank import get_label_quality_scores_per_class
except ImportError:
    raise SystemExit("error: Expected cleanlab, found none. Install it with `pip install cleanlab`.") from None

NOISES = ("mislabel:0.2", "mislabel:0.4", "flip:0.1", "single_positive")
OPTIONS = ("--use_cpu", "--save_strategy", "no")
FOLDS = 5
PLAIN = "bce loss"
"""The ranking with the least compute, to which that of the others is compared."""


class Cost(TrainerCallback):
    """Counts the images that go through a model, three times where the gradient is computed as well."""

    def __init__(self) -> None:
        self.passes, self.seconds = 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count from here on."""
        kwargs["model"].register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        images = named["pixel_values"] if "pixel_values" in named else inputs[0]
        self.passes += len(images) * (3 if model.training and torch.is_grad_enabled() else 1)


class Cell:
    """One kind of noise with one seed: what is trained, and on what."""

    def __init__(self, noise: str, seed: int, folder: Path) -> None:
        self.words = ["--seed", str(seed), *OPTIONS]
        kind, _, rate = noise.partition(":")
        self.seed, self.folder = seed, folder
        self.noise = ["--noise", kind, *(["--noise_rate", rate] if rate else [])]
        command = self._command("bce", self.noise, "noisy")
        self.job = load_job(RECIPES["digits"], command)
        self.rows = inject_noise(self.job.splits["train"], noise_spec(command.options, seed))
        names = self.job.class_names
        self.labels, self.clean = (encode_labels(self.rows, c, names).labels for c in ("labels", "clean_labels"))

    def _command(self, method: str, noise: Sequence[str], name: str) -> Command:
        words = ["--methods", method, *noise, *self.words, "--output_dir", str(self.folder / name)]
        return read_command(RECIPES["digits"], words)

    def train(
        self,
        method: str,
        cost: Cost,
        name: str,
        rows: Dataset | None = None,
        noise: Sequence[str] = ("--noise", "none"),
    ) -> MultiLabelTrainer:
        """Train on rows as they are, or on the clean ones with noise; return the trainer."""
        command = self._command(method, noise, name)
        splits = self.job.splits if rows is None else DatasetDict({**self.job.splits, "train": rows})
        job = replace(self.job, options=command.options, splits=splits)
        plan = command.plans("digits", job.digest)[0]
        plan.args.eval_strategy = "no"  # its cost would be counted, and none of the rankings needs it
        start = time.perf_counter()
        trainer, _ = train(job, plan, cost)
        cost.seconds += time.perf_counter() - start
        return trainer

    def map_of(self, trainer: MultiLabelTrainer) -> float:
        """Test mAP in points."""
        return evaluate(self.job, trainer).report.map

    def probs(self, trainer: MultiLabelTrainer, rows: Dataset, cost: Cost) -> np.ndarray:
        """(N, K) predictions."""
        start = time.perf_counter()
        logits = np.asarray(trainer.predict(rows).predictions, np.float64)
        cost.seconds += time.perf_counter() - start
        return expit(logits)

    def out_of_sample_probs(self, method: str, cost: Cost) -> np.ndarray:
        """(N, K) predictions for each image by a model that was trained without it."""
        probs = np.empty((len(self.rows), len(self.job.class_names)))
        order = np.random.default_rng(self.seed).permutation(len(self.rows))
        for fold, held_out in enumerate(np.array_split(order, FOLDS)):
            kept = self.rows.select(np.setdiff1d(order, held_out))
            trainer = self.train(method, cost, f"fold{fold}", rows=kept)
            probs[held_out] = self.probs(trainer, self.rows.select(held_out), cost)
        return probs


@dataclass
class Found:
    """What a ranking makes of the labels.

    Attributes:
        scores: (N, K), large is suspicious; None for the run on clean labels, which ranks nothing.
        issues: The suggestions, if it makes any.
        trained: The one model behind it, if it is one.
    """

    scores: np.ndarray | None = None
    issues: LabelIssues | None = None
    trained: MultiLabelTrainer | None = None


def by_balancemix(cell: Cell, cost: Cost) -> Found:
    """The issue score of an audit."""
    trainer = cell.train("balancemix", cost, "balancemix", noise=cell.noise)
    assert isinstance(trainer, BalanceMixTrainer)
    state = trainer.label_state
    assert state.posterior_mean is not None
    return Found(1 - state.posterior_mean.numpy(), find_label_issues(state), trainer)


def by_cleanlab(method: str, cell: Cell, cost: Cost) -> Found:
    """Cleanlab's label quality and its label issues, by out-of-sample predictions."""
    probs = cell.out_of_sample_probs(method, cost)
    lists = [np.flatnonzero(row).tolist() for row in cell.labels]
    flagged = np.asarray(find_multilabel_issues_per_class(lists, probs))
    rows, classes = np.nonzero(flagged)
    empty, names = np.zeros(len(rows), np.float32), [f"row {row}" for row in range(len(probs))]
    given = cell.labels[rows, classes]
    issues = LabelIssues(rows, classes, given, empty, empty, empty, cell.job.class_names, names)
    return Found(1 - np.asarray(get_label_quality_scores_per_class(lists, probs)), issues)


def by_loss(method: str, cell: Cell, cost: Cost) -> Found:
    """The probability of the label that was not given, which grows with the loss of the given one."""
    trainer = cell.train(method, cost, method, rows=cell.rows)
    probs = cell.probs(trainer, cell.rows, cost)
    return Found(np.where(cell.labels == 1, 1 - probs, probs), trained=trainer)


def on_clean_labels(cell: Cell, cost: Cost) -> Found:
    """No ranking: BCE without any label error."""
    return Found(trained=cell.train("bce", cost, "clean"))


RANKINGS: dict[str, Callable[[Cell, Cost], Found]] = {
    "balancemix": by_balancemix,
    "cleanlab, bce": partial(by_cleanlab, "bce"),
    "cleanlab, mixup": partial(by_cleanlab, "mixup"),
    PLAIN: partial(by_loss, "bce"),
    "mixup loss": partial(by_loss, "mixup"),
    "clean labels": on_clean_labels,
}


def measure(cell: Cell, name: str) -> dict[str, Any]:
    """Run one ranking; everything about it in points, as it is written."""
    cost, wrong = Cost(), cell.labels != cell.clean
    found = RANKINGS[name](cell, cost)
    measured: dict[str, Any] = {
        "labels": int(wrong.size),
        "errors": int(wrong.sum()),
        "passes": cost.passes,
        "seconds": round(cost.seconds, 1),
    }
    if found.trained is not None:
        measured["map of the model"] = cell.map_of(found.trained)
    if found.scores is not None:
        first = np.argsort(-found.scores.ravel(), kind="stable")[: wrong.sum()]
        measured["average precision"] = 100 * average_precision_score(wrong.ravel(), found.scores.ravel())
        measured["precision at errors"] = 100 * wrong.ravel()[first].mean()
    if found.issues is not None:
        right = wrong[found.issues.rows, found.issues.classes].sum()
        corrected = corrected_dataset(cell.rows, found.issues, "labels")
        measured["suggested"] = len(found.issues)
        measured["suggested, right"] = 100 * right / max(1, len(found.issues))
        measured["errors, found"] = 100 * right / wrong.sum()
        measured["map of bce on corrected"] = cell.map_of(cell.train("bce", Cost(), "after", rows=corrected))
    return measured


def read_results(path: Path) -> dict[tuple[str, int, str], dict[str, Any]]:
    """Finished runs by noise, seed and ranking."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {(run["noise"], run["seed"], run["ranking"]): run for run in map(json.loads, lines)}


def show(results: dict[tuple[str, int, str], dict[str, Any]]) -> None:
    """Print the tables: means over the seeds, with standard errors."""
    noises = [noise for noise in NOISES if any(key[0] == noise for key in results)]

    def cell(noise: str, name: str, quantity: str) -> str:
        runs = [run for (kind, _, ranking), run in results.items() if (kind, ranking) == (noise, name)]
        values = [run[quantity] for run in runs if quantity in run]
        error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
        return f"{np.mean(values):.1f}{error}" if values else "–"

    quantities = (
        *("average precision", "precision at errors", "suggested, right", "errors, found"),
        *("map of the model", "map of bce on corrected"),
    )
    for quantity in quantities:
        names = [
            name for name in RANKINGS if any(quantity in results.get(key, {}) for key in results if key[2] == name)
        ]
        print(f"\n| {quantity} | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
        for noise in noises:
            print(f"| {noise} | {' | '.join(cell(noise, name, quantity) for name in names)} |")
    print(f"\nImages through a model (a training step counts 3), as multiples of that of {PLAIN!r}")
    for name in RANKINGS:
        of = [key for key in results if key[2] == name and (*key[:2], PLAIN) in results]
        ratios = [results[key]["passes"] / results[(*key[:2], PLAIN)]["passes"] for key in of]
        print(f"{name}: {np.mean(ratios):.2f}" if ratios else f"{name}: not run yet")


def main() -> None:
    """Measure what is missing, then show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/label_errors", help="Where the results go (%(default)s).")
    parser.add_argument("--noises", nargs="+", choices=NOISES, default=NOISES, help="Kinds of noise.")
    parser.add_argument("--seeds", type=int, default=3, help="Number of seeds (%(default)s).")
    options = parser.parse_args()
    path = Path(options.output_dir) / "results.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = [(noise, seed, name) for seed in range(options.seeds) for noise in options.noises for name in RANKINGS]
    for noise, seed, name in wanted:
        if (noise, seed, name) in read_results(path):
            continue
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(Cell(noise, seed, Path(folder)), name)
        line = json.dumps({"noise": noise, "seed": seed, "ranking": name, **measured})
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        print(line, flush=True)
    show(read_results(path))


if __name__ == "__main__":
    main()
