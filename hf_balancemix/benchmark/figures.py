"""What every benchmark measures and prints: figures beside their bars, time, memory, and the machine."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sklearn
import torch


@dataclass(frozen=True)
class Figure:
    """One measured number, and what it is to reach."""

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    details: dict[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the value reaches its bar; ``None`` without one."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least

    def line(self) -> str:
        """The figure, its bar, and whether it is met."""
        text = f"{self.name:<42}{self.value:>10.3g} {self.unit:<3}"
        if self.met is None:
            return ", ".join([text.rstrip(), *(f"{name} {value:.3g}" for name, value in self.details.items())])
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
