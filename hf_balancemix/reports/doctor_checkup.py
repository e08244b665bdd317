"""All that the doctor found, before it is shown."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_balancemix.reports.doctor import Settings, SplitLabels, Together
from hf_balancemix.reports.doctor_images import Duplicate, Example, SplitImages


@dataclass(frozen=True)
class Estimate:
    """What training would take.

    Attributes:
        steps_per_epoch: ⌊N / batch⌋ optimiser steps.
        reads_per_epoch: Images read in an epoch of BalanceMix: two a pair, and all once for the refresh.
        reading_seconds: That one process needs for these, as measured.
        state_bytes: Of the label state in memory.
        cache_bytes: Of all decoded training images in memory (``--cache_images``).
        device: On which the model was measured, with small batches; a GPU is faster with large ones.
        model_seconds: Of the model in an epoch: a mixed image of each pair forward and backward, two views of every
            image forward for the refresh (``relabel_views="reuse"``).
        model_bytes: Activations of a batch of pairs, weights, gradients and what AdamW keeps of them, in float32. What
            is needed for a moment comes on top: a ResNet-18 with 32 images of 224 px took 1,210 MB for 891.
    """

    steps_per_epoch: int
    reads_per_epoch: int
    reading_seconds: float
    state_bytes: int
    cache_bytes: int
    device: str
    model_seconds: float
    model_bytes: int


@dataclass(frozen=True)
class Checkup:
    """All that the doctor found.

    Attributes:
        source: What was looked at, for people.
        backbone: The untrained model's.
        class_names: K names.
        labels: Of each split, "train" first.
        images: Of each split.
        together: Pairs of classes in training.
        shared: (C, C) training images that two classes share, most frequent class first.
        duplicates: Images with the same pixels, among those that were read.
        examples: Training images as the model sees them.
        input_shape: Of a batch, (B, 3, H, W).
        input_range: Smallest and largest number that the model is given.
        loss: Of the untrained model.
        chance_loss: Of a model that gives every class one half.
        pull: Of ``minority_pull``.
        estimate: Of time and memory.
        settings: What the recipe would train with.
        advice: Sentences.
    """

    source: str
    backbone: str
    class_names: tuple[str, ...]
    labels: dict[str, SplitLabels]
    images: dict[str, SplitImages]
    together: Together
    shared: npt.NDArray[np.int64]
    duplicates: list[Duplicate]
    examples: list[Example]
    input_shape: tuple[int, ...]
    input_range: tuple[float, float]
    loss: float
    chance_loss: float
    pull: dict[str, float]
    estimate: Estimate
    settings: Settings
    advice: list[str]

    def numbers(self) -> dict[str, Any]:
        """Return everything but the pictures, JSON-able; what is infinite or undefined is None."""
        images = {}
        for name, found in self.images.items():
            sizes = [{"width": w, "height": h, "images": n} for (w, h), n in found.sizes.most_common()]
            images[name] = {
                "num_images": found.num_images,
                "sampled": len(found.sampled),
                "read": found.num_read,
                "missing": found.missing,
                "unreadable": found.unreadable,
                "sizes": sizes,
                "modes": dict(found.modes),
                "images_per_second": found.images_per_second,
            }
        return _finite(
            {
                "source": self.source,
                "backbone": self.backbone,
                "class_names": list(self.class_names),
                "labels": {
                    name: asdict(split)
                    | {"chance_map": split.chance_map(), "class_frequency_loss": split.frequency_loss()}
                    for name, split in self.labels.items()
                },
                "images": images,
                "co_occurrence": asdict(self.together),
                "duplicates": [asdict(one) for one in self.duplicates],
                "input": {"shape": list(self.input_shape), "range": list(self.input_range)},
                "untrained_loss": self.loss,
                "chance_loss": self.chance_loss,
                "minority_pull": self.pull,
                "estimate": asdict(self.estimate),
                "settings": asdict(self.settings),
                "advice": self.advice,
            }
        )


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
