"""How long an epoch of BalanceMix takes beside one of plain BCE, and what its own work in a step costs."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from hf_balancemix.benchmark.figures import Figure
from hf_balancemix.build import build_model
from hf_balancemix.data.pairs import Item, PairDataset, PairSampler
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.balancemix import BalanceMixTrainer
from hf_balancemix.training.multilabel import MultiLabelTrainer

CLASSES = 20
SCHEDULES: dict[str, dict[str, Any]] = {
    "bce": {"second_sampler": "none", "mix_alpha": 0.0},
    "warm-up": {"warmup_epochs": 9},
    "carry": {"relabel_views": "carry", "warmup_epochs": 0},  # its first pass predicts two views
    "reuse": {"relabel_views": "reuse"},
    "epoch": {"relabel_views": "epoch"},
    "step": {"relabel_views": "step"},
    "stream": {"relabel_views": "stream"},
}
BARS: dict[str, float] = {"warm-up": 1.40, "carry": 1.40, "reuse": 1.75, "epoch": 2.15, "step": 2.8}
FLOORS = {"warm-up": 4 / 3, "carry": 4 / 3, "reuse": 5 / 3, "epoch": 2.0, "step": 8 / 3, "stream": 3.0}
"""Forwards of an epoch over those of BCE, a backward counted as two."""
OWN_BAR = 3.0  # percent of a step
OWN = ("targets and losses", "sampling", "reading")


class Clock(TrainerCallback):
    """Seconds of whole epochs, refresh included, and of the parts of each.

    Attributes:
        epochs: A dict (part → seconds) for each epoch; "whole" is all of it. A part within another counts for itself
            alone.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self._start = 0.0
        self._running = False
        self._inner = [0.0]  # of each part that is running, the seconds of the parts within it

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        self.epochs.append({})
        self._running = True
        self._start = time.perf_counter()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop."""
        self.epochs[-1]["whole"] = time.perf_counter() - self._start
        self._running = False  # the refresh after the last epoch is of none

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens within it as this part."""
        self._inner.append(0.0)
        start = time.perf_counter()
        yield
        seconds, within = time.perf_counter() - start, self._inner.pop()
        self._inner[-1] += seconds
        if self._running:
            self.epochs[-1][name] = self.epochs[-1].get(name, 0.0) + seconds - within

    def count(self, owner: Any, method: str, name: str) -> None:
        """Count the calls of a method of this object as a part."""
        function = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        setattr(owner, method, timed)


class _Timed:
    """A sampler whose draws are counted as a part."""

    def __init__(self, sampler: PairSampler, clock: Clock) -> None:
        self.sampler, self.clock = sampler, clock

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Item]:
        items = iter(self.sampler)
        while True:
            with self.clock.part("sampling"):
                item = next(items, None)
            if item is None:
                return
            yield item


def epoch(options: argparse.Namespace) -> tuple[str, list[Figure]]:
    """Time an epoch of each schedule and of BCE in turn, several rounds; medians.

    The bars are for ResNet-18 at 96 pixels, which is the default. A step's own work is what is neither the model's
    nor the images': targets and losses, sampling, look-ups; the loss itself, which BCE has too, is in it.
    """
    dataset = pictures(options.images, options.size)
    default = (options.backbone, options.size) == ("resnet18", 96)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SCHEDULES}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # two epochs on noise: what seems to go wrong is no news
    try:
        for name in tqdm([*SCHEDULES] * options.rounds, desc="epochs", disable=None):
            found[name].append(epoch_parts(name, dataset, options))
    finally:
        logging.set_verbosity(verbosity)
    figures = []
    for name, epochs in found.items():
        ratio = statistics.median(mine["whole"] / bce["whole"] for mine, bce in zip(epochs, found["bce"], strict=True))
        if name == "bce":
            figures.append(Figure("BCE, an epoch", statistics.median(e["whole"] for e in epochs), "s"))
        else:
            note = f" (floor {FLOORS[name]:.2f})"
            figures.append(Figure(f"{name} over BCE{note}", ratio, "×", at_most=BARS.get(name) if default else None))
    for name, epochs in found.items():
        for part in sorted({part for e in epochs for part in e} - {"whole"}):
            share = statistics.median(100 * e.get(part, 0.0) / e["whole"] for e in epochs)
            figures.append(Figure(f"{name}: {part}", share, "%"))
    own = [100 * sum(e.get(part, 0.0) for part in OWN) / e["whole"] for e in found["reuse"]]
    bar = OWN_BAR if default else None
    figures.append(Figure("reuse: own work of the steps", statistics.median(own), "%", at_most=bar))
    title = (
        f"Epochs of {options.images} images of {options.size} px with {options.backbone}, batches of {options.batch}"
    )
    return f"{title}, median of {options.rounds} rounds", figures


def pictures(rows: int, size: int) -> datasets.Dataset:
    """Random blobs (rows, size, size) with random labels of ``CLASSES`` classes."""
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((size, size)) for _ in range(rows)
    ]
    labels = [rng.choice(CLASSES, 3, replace=False).tolist() for _ in range(rows)]
    names = [str(k) for k in range(CLASSES)]
    features = datasets.Features(
        {"image": datasets.Image(), "labels": datasets.List(datasets.ClassLabel(names=names))}
    )
    return datasets.Dataset.from_dict({"image": images, "labels": labels}, features=features)


def epoch_parts(schedule: str, dataset: datasets.Dataset, options: Any) -> dict[str, float]:
    """Train for two epochs and return the parts of the second one, in seconds."""
    model, processor = build_model(
        options.backbone, tuple(str(k) for k in range(CLASSES)), image_size=options.size, pretrained=False
    )
    with tempfile.TemporaryDirectory() as folder:
        args = BalanceMixTrainingArguments(
            output_dir=folder,
            use_cpu=True,
            num_train_epochs=2,
            per_device_train_batch_size=options.batch,
            per_device_eval_batch_size=options.batch,
            optim="sgd",
            learning_rate=1e-3,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            cache_images=True,
            **{"warmup_epochs": 1, **SCHEDULES[schedule]},
        )
        trainer_class = MultiLabelTrainer if schedule == "bce" else BalanceMixTrainer
        trainer = trainer_class(model, args, train_dataset=dataset, processing_class=processor)
        trainer.remove_callback(PrinterCallback)
        clock = Clock()
        trainer.callback_handler.callbacks.insert(0, clock)  # its epochs begin before they are prepared
        clock.count(trainer, "_logits", "forwards")
        clock.count(trainer.accelerator, "backward", "backwards")
        clock.count(trainer.transform, "augment", "augmentation")
        clock.count(trainer.transform, "views", "augmentation")  # on a device
        clock.count(trainer.transform, "finish", "augmentation")
        clock.count(trainer, "prepare_epoch", "statistics")
        clock.count(trainer, "compute_loss", "targets and losses")
        sampler, pairs = trainer._train_sampler, trainer._pair_dataset

        def timed_pairs(images: Any) -> PairDataset:
            made = pairs(images)
            clock.count(made, "__getitems__", "reading")
            return made

        trainer._train_sampler = lambda data: _Timed(sampler(data), clock)  # type: ignore
        trainer._pair_dataset = timed_pairs  # type: ignore[method-assign]
        trainer.train()
    return clock.epochs[1]
