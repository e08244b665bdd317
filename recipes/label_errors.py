"""How well a run of BalanceMix finds label errors, against cleanlab and the loss of plain training, on digits.

    python recipes/label_errors.py --output_dir runs/label_errors

Noise is injected, so every label error is known. Three rankings of all training labels are compared: the issue score
of `hf-balancemix audit`; cleanlab's label quality by the predictions of BCE models for images that they were not
trained on (5 folds); the loss of one BCE model. Then the labels are corrected as suggested and BCE is trained on them.

Needs: `pip install cleanlab`, which the package itself does not use. Takes 1 to 2 hours on one core, 4 noises and 3
seeds; the same command goes on where it stopped. Only `--noises` and `--seeds` pick out a part.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
from cleanlab.multilabel_classification.rank import get_label_quality_scores_per_class
from datasets import Dataset, DatasetDict
from scipy.special import expit
from sklearn.metrics import average_precision_score
from transformers import TrainerCallback

from hf_balancemix.data.noise import inject_noise
from hf_balancemix.recipe import RECIPES
from hf_balancemix.recipe.command import Command, read_command
from hf_balancemix.recipe.job import Job, load_job, write_json
from hf_balancemix.recipe.options import noise_spec
from hf_balancemix.recipe.run import evaluate, train
from hf_balancemix.reports.corrections import corrected_dataset
from hf_balancemix.reports.label_issues import LabelIssues, find_label_issues
from hf_balancemix.training.balancemix import BalanceMixTrainer
from hf_balancemix.training.multilabel import MultiLabelTrainer

NOISES = ("mislabel:0.2", "mislabel:0.4", "flip:0.1", "single_positive")
FOLDS = 5
RANKINGS = ("balancemix", "cleanlab", "bce loss")


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
        self.words = ["--seed", str(seed), "--use_cpu", "--save_strategy", "no"]
        kind, _, rate = noise.partition(":")
        self.seed, self.folder = seed, folder
        self.noise = ["--noise", kind, *(["--noise_rate", rate] if rate else [])]
        command = self._command("bce", self.noise, "noisy")
        self.job = load_job(RECIPES["digits"], command)
        self.rows = inject_noise(self.job.splits["train"], noise_spec(command.options, seed))

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

    def out_of_sample_probs(self, cost: Cost) -> np.ndarray:
        """(N, K) predictions for each image by a model that was trained without it."""
        probs = np.empty((len(self.rows), len(self.job.class_names)))
        order = np.random.default_rng(self.seed).permutation(len(self.rows))
        for fold, held_out in enumerate(np.array_split(order, FOLDS)):
            kept = self.rows.select(np.setdiff1d(order, held_out))
            trainer = self.train("bce", cost, f"fold{fold}", rows=kept)
            probs[held_out] = self.probs(trainer, self.rows.select(held_out), cost)
        return probs


def issues_of(flagged: np.ndarray, labels: np.ndarray, job: Job) -> LabelIssues:
    """Label issues of a (N, K) table of flags."""
    rows, classes = np.nonzero(flagged)
    empty = np.zeros(len(rows), np.float32)
    names = [f"row {row}" for row in range(len(labels))]
    return LabelIssues(rows, classes, labels[rows, classes], empty, empty, empty, job.class_names, names)


def quality(scores: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Average precision, and precision at the number of errors, in points, of (N, K) scores: large is suspicious."""
    scores, wrong = scores.ravel(), wrong.ravel()
    first = np.argsort(-scores, kind="stable")[: wrong.sum()]
    return {"ap": 100 * average_precision_score(wrong, scores), "precision": 100 * wrong[first].mean()}


def correction(issues: LabelIssues, wrong: np.ndarray) -> dict[str, float]:
    """How many labels are changed, and what share of the changes is right and of the errors is mended, in points."""
    right = wrong[issues.rows, issues.classes].sum()
    return {
        "changed": len(issues),
        "precision": 100 * right / max(1, len(issues)),
        "recall": 100 * right / wrong.sum(),
    }


def run_cell(noise: str, seed: int, folder: Path) -> dict[str, Any]:
    """Everything about one cell, as it is written."""
    cell = Cell(noise, seed, folder)
    costs = {name: Cost() for name in RANKINGS}
    ours = cell.train("balancemix", costs["balancemix"], "balancemix", noise=cell.noise)
    assert isinstance(ours, BalanceMixTrainer)
    state = ours.label_state
    labels, wrong = state.labels.numpy(), state.labels.numpy() != ours.clean_labels.numpy()
    plain = cell.train("bce", costs["bce loss"], "bce", rows=cell.rows)
    in_sample = cell.probs(plain, cell.rows, costs["bce loss"])
    held_out = cell.out_of_sample_probs(costs["cleanlab"])

    lists = [np.flatnonzero(row).tolist() for row in labels]
    flagged = np.asarray(find_multilabel_issues_per_class(lists, held_out))  # (N, K), as the scores
    scores = {
        "balancemix": 1 - state.posterior_mean.numpy(),
        "cleanlab": 1 - np.asarray(get_label_quality_scores_per_class(lists, held_out)),
        "bce loss": np.where(labels == 1, 1 - in_sample, in_sample),  # grows with the loss
    }
    found = {"balancemix": find_label_issues(state), "cleanlab": issues_of(flagged, labels, cell.job)}
    maps = {"as given": cell.map_of(plain), "balancemix itself": cell.map_of(ours)}
    for name, issues in found.items():
        corrected = corrected_dataset(cell.rows, issues, "labels")
        maps[name] = cell.map_of(cell.train("bce", Cost(), f"after {name}", rows=corrected))
    maps["clean"] = cell.map_of(cell.train("bce", Cost(), "clean"))
    return {
        "noise": noise,
        "seed": seed,
        "labels": int(labels.size),
        "errors": int(wrong.sum()),
        "rankings": {name: quality(table, wrong) for name, table in scores.items()},
        "corrections": {name: correction(issues, wrong) for name, issues in found.items()},
        "bce map": maps,
        "passes": {name: cost.passes for name, cost in costs.items()},
        "seconds": {name: round(cost.seconds, 1) for name, cost in costs.items()},
    }


def show(cells: Sequence[dict[str, Any]]) -> None:
    """Print the tables, means over the seeds."""

    def mean(of: Sequence[dict[str, Any]], *keys: str) -> str:
        values = []
        for cell in of:
            value: Any = cell
            for key in keys:
                value = value[key]
            values.append(value)
        error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        return f"{np.mean(values):.1f}" + (f" ± {error:.1f}" if len(values) > 1 else "")

    kinds = {noise: of for noise in NOISES if (of := [cell for cell in cells if cell["noise"] == noise])}
    print("\nFinding the errors: average precision / precision at the number of errors")
    print(f"| noise | errors | {' | '.join(RANKINGS)} |\n|---|---|---|---|---|")
    for noise, of in kinds.items():
        values = [f"{mean(of, 'rankings', n, 'ap')} / {mean(of, 'rankings', n, 'precision')}" for n in RANKINGS]
        print(f"| {noise} | {np.mean([cell['errors'] for cell in of]):.0f} | {' | '.join(values)} |")
    print("\nCompute: forward passes of an image (3 for a training step), seconds")
    for name in RANKINGS:
        passes = np.mean([c["passes"][name] / c["passes"]["bce loss"] for c in cells])
        seconds = np.mean([c["seconds"][name] / c["seconds"]["bce loss"] for c in cells])
        print(f"{name}: {passes:.2f} and {seconds:.2f} times those of one BCE run")
    print("\nSuggestions that are right / errors that are found")
    for noise, of in kinds.items():
        both = [
            f"{n} {mean(of, 'corrections', n, 'precision')} / {mean(of, 'corrections', n, 'recall')}"
            for n in ("balancemix", "cleanlab")
        ]
        print(f"{noise}: {'; '.join(both)}")
    print("\nTest mAP of BCE on labels")
    columns = list(cells[0]["bce map"])
    print(f"| noise | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for noise, of in kinds.items():
        print(f"| {noise} | {' | '.join(mean(of, 'bce map', column) for column in columns)} |")


def main() -> None:
    """Run the cells that are missing, then show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/label_errors", help="Where the results go (%(default)s).")
    parser.add_argument("--noises", nargs="+", choices=NOISES, default=NOISES, help="Kinds of noise.")
    parser.add_argument("--seeds", type=int, default=3, help="Number of seeds (%(default)s).")
    options = parser.parse_args()
    cells = []
    for seed in range(options.seeds):
        for noise in options.noises:
            path = Path(options.output_dir) / f"{noise.replace(':', '')}-seed{seed}.json"
            if not path.exists():
                with tempfile.TemporaryDirectory() as folder:
                    cell = run_cell(noise, seed, Path(folder))
                write_json(path, cell)
                print(f"{path}: {json.dumps(cell['rankings'])}", flush=True)
            cells.append(json.loads(path.read_text(encoding="utf-8")))
    show(cells)


if __name__ == "__main__":
    main()
