"""The comparison of methods: a grid of methods × noises × seeds on one data set, and the tables of its results."""

from hf_balancemix.compare.main import main

__all__ = ["main"]
