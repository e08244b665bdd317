"""Labels as bits and probabilities as codes of a few bits: how a :class:`LabelState` holds them."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch


def packed_bits(labels: torch.Tensor) -> torch.Tensor:
    """Return (N, ⌈K/8⌉) uint8 bits of labels (N, K)."""
    return torch.from_numpy(np.packbits(labels.numpy() != 0, axis=1))


def code_mask(steps: int) -> int:
    """Bits that the codes 0 to ``steps`` take, all set."""
    return (1 << steps.bit_length()) - 1


def encoded(values: torch.Tensor, steps: int, threshold: float) -> torch.Tensor:
    """Return the int32 codes of probabilities; those beyond a threshold, or its opposite, stay so."""
    values = values.float().clamp(0, 1)
    code = values.double().sqrt_().asin_().mul_(2 / math.pi * steps).round_().int()
    rounded = decoded_values(steps)[code.long()]
    above = (values > threshold).int() - (rounded > threshold).int()
    below = (rounded < 1 - threshold).int() - (values < 1 - threshold).int()
    return code + above + below


@functools.cache
def decoded_values(steps: int) -> torch.Tensor:
    """Return (steps + 1,) float32 what each code stands for: sin², whose steps are finest next to 0 and 1."""
    return (torch.arange(steps + 1, dtype=torch.float64) * (math.pi / 2 / steps)).sin().square().float()
