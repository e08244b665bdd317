"""The words of errors: what was expected, what was found, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

_SHOWN = 10


def mistake(expected: str, found: str, remedy: str) -> ValueError:
    """Return the error for something that a user can set right."""
    return ValueError(f"Expected {expected}, found {found}. {remedy}.")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest known name, or nothing."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def some(values: Sequence[Any]) -> str:
    """List the first ten values, and how many more there are."""
    more = f" and {len(values) - _SHOWN} more" if values[_SHOWN:] else ""
    return (", ".join(map(repr, values[:_SHOWN])) or "none") + more
