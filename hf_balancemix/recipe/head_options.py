"""The head's options as a command line or a file gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from hf_balancemix.modeling.heads import build_head, check_head_options

_EXAMPLE = """Write for instance '{"num_heads": 4}', in single quotes."""


def read_head_options(head: str, given: Mapping[str, Any] | str | None) -> dict[str, Any] | None:
    """Return the arguments of a head's class, or None for its defaults.

    Args:
        head: One of ``HEADS``.
        given: A JSON object as text, or a mapping.

    Raises:
        ValueError: For text that is no JSON object, and for options that the head cannot be built with.
    """
    try:
        options = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ValueError(f"Expected JSON as --head_options, found {given!r} ({error}). {_EXAMPLE}") from error
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"Expected names with values as --head_options, found {given!r}. {_EXAMPLE}")
    if not options:
        return None
    if "word_vector_dim" in options:
        raise ValueError(
            "Expected no word_vector_dim in --head_options, found it: the word vectors themselves can be given to "
            "`hf_balancemix.build.build_model` only. Leave it out; a zero-shot checkpoint as --backbone keeps its own."
        )
    check_head_options(head, options)
    with torch.device("meta"):  # a trial that needs neither memory nor data, on a width that C-Tran's heads divide
        build_head(head, options.get("num_heads", 4), 1, **options)
    return dict(options)
