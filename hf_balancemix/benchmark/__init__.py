"""Benchmarks: `recipes/benchmark.py` is the door to them."""

from hf_balancemix.benchmark.command import main

__all__ = ["main"]
