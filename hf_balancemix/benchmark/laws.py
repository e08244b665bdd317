"""Laws of growth: fitted to measurements and continued, with their standard errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def extrapolate(law: str, sizes: list[float], values: list[float], size: float) -> tuple[float, float]:
    """Fit a law to measurements and continue it.

    Args:
        law: "linear", a + b·n, or "power", c·n^s. Errors are taken as proportional to the value.
        sizes: n of each measurement, at least three, not all the same.
        values: What was measured, above 0.
        size: Where to continue to.

    Returns:
        The value there and its standard error, that of the fitted line.
    """
    n, y = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    if law == "power":
        exponent, error = _least_squares(np.stack([np.ones_like(n), np.log(n)], axis=1), np.log(y))
        ahead = np.array([1.0, math.log(size)])
        value = math.exp(ahead @ exponent)
        return value, value * math.sqrt(ahead @ error @ ahead)
    line, error = _least_squares(np.stack([1 / y, n / y], axis=1), np.ones_like(y))
    ahead = np.array([1.0, size])
    return float(ahead @ line), math.sqrt(ahead @ error @ ahead)


def growth(sizes: list[float], values: list[float]) -> tuple[float, float]:
    """Return the slope of log value over log size, and its standard error."""
    n, y = np.log(np.asarray(sizes, dtype=float)), np.log(np.asarray(values, dtype=float))
    line, error = _least_squares(np.stack([np.ones_like(n), n], axis=1), y)
    return float(line[1]), math.sqrt(error[1, 1])


def _least_squares(design: Any, target: Any) -> tuple[Any, Any]:
    """Coefficients of a linear model and their covariance."""
    coefficients = np.linalg.lstsq(design, target, rcond=None)[0]
    left = ((target - design @ coefficients) ** 2).sum() / (len(target) - design.shape[1])
    return coefficients, left * np.linalg.inv(design.T @ design)
