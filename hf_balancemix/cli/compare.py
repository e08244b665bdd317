"""``hf-balancemix compare``: a grid of methods, noises and seeds on a data set, and the tables of its results."""

from __future__ import annotations

from collections.abc import Sequence

from hf_balancemix.compare import main
from hf_balancemix.compare.command import DESCRIPTION

__all__ = ["DESCRIPTION", "run_words"]


def run_words(words: Sequence[str]) -> None:
    """Run the command; it reads its words itself, for most of its options are those of a recipe."""
    main(words)
