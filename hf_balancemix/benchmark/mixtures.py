"""Mixtures and posteriors from histograms of losses, beside a loop of scikit-learn's fits."""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from tqdm import tqdm

from hf_balancemix.benchmark.figures import Figure, peak_memory, seconds
from hf_balancemix.method import label_posteriors

COCO = (117_266, 80)
"""Images of train2017 with at least one label, and classes."""


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
