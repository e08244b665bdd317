"""What training a model takes, in time and memory, measured on a few images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hf_balancemix.losses import weighted_bce

_REPEATS = 3


@dataclass(frozen=True)
class ModelCost:
    """Of one image, but for the weights.

    Attributes:
        device: It was measured on: "cpu" or the name of a GPU.
        batch: Images at a time; a GPU takes less time for each of many.
        forward_seconds: Without gradient.
        training_seconds: Forward and backward.
        activation_bytes: Kept from the forward to the backward pass.
        weight_bytes: Of all parameters.
    """

    device: str
    batch: int
    forward_seconds: float
    training_seconds: float
    activation_bytes: float
    weight_bytes: int


def measure_model(model: Any, shape: tuple[int, ...], num_labels: int) -> ModelCost:
    """Measure a model on black images, on the GPU if there is one.

    The statistics of its batch normalisation change.

    Args:
        model: Its output has ``logits``.
        shape: Of a batch, (B, 3, H, W).
        num_labels: K.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train(shape[0] > 1)  # statistics of a batch of one would be zero
    pixels, targets = torch.zeros(shape, device=device), torch.zeros(shape[0], num_labels, device=device)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        weighted_bce(model(pixel_values=pixels).logits, targets).backward()
        model.zero_grad()

    def forward() -> None:
        with torch.no_grad():
            model(pixel_values=pixels)

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    training_seconds, forward_seconds = _seconds(step, device), _seconds(forward, device)
    model.to("cpu")
    return ModelCost(
        device=torch.cuda.get_device_name() if device == "cuda" else device,
        batch=shape[0],
        forward_seconds=forward_seconds / shape[0],
        training_seconds=training_seconds / shape[0],
        activation_bytes=sum(kept.values()) / shape[0],
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
    )


def _seconds(run: Callable[[], None], device: str) -> float:
    """Return the median of a few runs, after one that does not count."""
    taken = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
