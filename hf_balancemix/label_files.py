"""The file of a :class:`LabelState`: safetensors, written whole or not at all; nothing is unpickled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FILE_NAME = "label_state.safetensors"
FORMAT = "2"


def write_file(folder: str | os.PathLike[str], tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write the file into an existing folder; a reader sees the old file or the new one, never half."""
    path = Path(folder) / FILE_NAME
    temporary = path.with_suffix(".tmp")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def opened_file(folder: str | os.PathLike[str]) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open the file of ``folder``; turn whatever is wrong with it into one ``ValueError`` with a remedy."""
    path = Path(folder) / FILE_NAME
    remedy = (
        "Resume from another checkpoint of the same run, or start a new run (load the checkpoint's weights with "
        "`from_pretrained` to keep them)."
    )
    if not path.is_file():
        raise ValueError(
            f"Expected {FILE_NAME} in {folder} (given labels, sampling probabilities, posteriors), found none: the "
            f"checkpoint was written by another trainer, with `save_only_model=True`, or is incomplete. {remedy}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata["format"] not in ("1", FORMAT):
                raise ValueError(f"format {metadata['format']!r}, expected {FORMAT!r}")
            yield file, metadata
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}). {remedy}") from error
