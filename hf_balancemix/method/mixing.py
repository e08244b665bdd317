"""Minority-augmented Mixup of two mini-batches (Eq. 5)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def fold_lambda(mix_lambda: Tensor) -> Tensor:
    """Fold mixing coefficients into [½, 1]: max(λ, 1 − λ) (Eq. 5).

    Folding makes the random half the larger part of every mix, which is why its label states hold for the pair.

    Args:
        mix_lambda: Coefficients in [0, 1], any shape.

    Returns:
        Coefficients in [½, 1], same shape and dtype.
    """
    return torch.maximum(mix_lambda, 1 - mix_lambda)


def draw_lambda(mix_alpha: float, seeds: Sequence[int | Sequence[int]], folded: bool = True) -> Tensor:
    """Draw one coefficient λ ~ Beta(α, α) per pair, folded into [½, 1] (Eq. 5) or as it is (plain Mixup).

    Each coefficient depends on its own seed alone: a pair is mixed in the same way whatever batch, process or resumed
    run it falls into. The mean of a folded λ is .75, .6875, .6367, .5982 for α = 1, 2, 4, 8; of another it is ½.

    Args:
        mix_alpha: α ≥ 0. With 0 every λ is 1, the limit of the folded distribution: the minority half then has no
            weight.
        seeds: B seeds for ``numpy.random.default_rng``, one per pair.
        folded: Whether to fold; without it λ is in [0, 1].

    Returns:
        (B,) float64, on the CPU.

    Raises:
        ValueError: `mix_alpha` is negative, infinite or NaN.
    """
    if not (math.isfinite(mix_alpha) and mix_alpha >= 0):
        raise ValueError(f"mix_alpha must be a finite number of at least 0, got {mix_alpha}.")
    if mix_alpha == 0:
        return torch.ones(len(seeds), dtype=torch.float64)
    drawn = [np.random.default_rng(seed).beta(mix_alpha, mix_alpha) for seed in seeds]
    coefficients = torch.tensor(drawn, dtype=torch.float64)
    return fold_lambda(coefficients) if folded else coefficients


def mix(random_half: Tensor, minority_half: Tensor, mix_lambda: Tensor) -> Tensor:
    """Mix pairs: λ · random half + (1 − λ) · minority half (Eq. 5), for pixels and targets alike.

    Args:
        random_half: (B, ...) floating point.
        minority_half: (B, ...) the partners, same shape; row i is mixed with row i.
        mix_lambda: (B,) coefficients, one per pair, of `draw_lambda`.

    Returns:
        (B, ...) in the dtype of `random_half`. Half-precision halves are mixed in float32 and rounded once.

    Raises:
        ValueError: The shapes differ, `mix_lambda` is not (B,), or `random_half` is not floating point.
    """
    if random_half.shape != minority_half.shape:
        raise ValueError(
            f"both halves must have the same shape, got {tuple(random_half.shape)} for the random half "
            f"and {tuple(minority_half.shape)} for the minority half."
        )
    if mix_lambda.shape != random_half.shape[:1]:
        raise ValueError(f"mix_lambda must be {tuple(random_half.shape[:1])}, got {tuple(mix_lambda.shape)}.")
    if not random_half.is_floating_point():
        raise ValueError(f"halves must be floating point to hold a mix, got {random_half.dtype}; convert them first.")
    dtype = torch.promote_types(random_half.dtype, torch.float32)
    share = mix_lambda.to(random_half.device).reshape(-1, *[1] * (random_half.ndim - 1))
    mixed = share.to(dtype) * random_half.to(dtype) + (1 - share).to(dtype) * minority_half.to(dtype)
    return mixed.to(random_half.dtype)
