"""Which checkpoints of a run are complete. A killed or failed save leaves a folder that must not be resumed from."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path

from transformers.utils import logging

from hf_balancemix.label_state import FILE_NAME, LabelState

logger = logging.get_logger(__name__)

_NAME = re.compile(r"^checkpoint-(\d+)$")


def missing_parts(checkpoint: Path) -> list[str]:
    """Return what a checkpoint lacks for an exact resume; nothing if it is complete.

    The Trainer writes ``trainer_state.json`` after everything else of the first process, so a readable one vouches
    for the rest; the other processes' random states are looked at one by one.
    """
    missing = []
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        missing.append("trainer_state.json")
    try:
        world_size = LabelState.read_run(checkpoint)["world_size"]
    except ValueError:
        return [*missing, f"a readable {FILE_NAME}"]
    states = [f"rng_state_{rank}.pth" for rank in range(world_size)] if world_size > 1 else ["rng_state.pth"]
    return missing + [name for name in states if not zipfile.is_zipfile(checkpoint / name)]


def complete_checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """Return the complete checkpoints below ``output_dir``, oldest first."""
    return [path for path in _checkpoints(Path(output_dir)) if not missing_parts(path)]


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str:
    """Return the newest complete checkpoint; warn of newer ones that are passed over.

    Raises:
        ValueError: If there is none; the message lists incomplete ones.
    """
    partial: list[str] = []
    for path in reversed(_checkpoints(Path(output_dir))):
        missing = missing_parts(path)
        if not missing:
            for line in partial:
                logger.warning(f"Passing over an incomplete checkpoint: {line}.")
            return str(path)
        partial.append(f"{path.name} lacks {', '.join(missing)}")
    raise ValueError(
        f"Expected a complete checkpoint in {output_dir}, found "
        + (f"only incomplete ones ({'; '.join(partial)})" if partial else "none")
        + ". Start the run without resuming."
    )


def check_complete(checkpoint: Path) -> None:
    """Refuse a checkpoint that cannot be resumed from.

    Raises:
        ValueError: Naming the missing files and a complete checkpoint beside it, if there is one.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"Expected a checkpoint folder, found nothing at {checkpoint}. Check the path.")
    missing = missing_parts(checkpoint)
    if missing:
        others = complete_checkpoints(checkpoint.parent)
        raise ValueError(
            f"Expected a complete checkpoint, found that {checkpoint} lacks {', '.join(missing)}. "
            + (f"Resume from {others[-1]}." if others else "Start the run without resuming.")
        )


def _checkpoints(folder: Path) -> list[Path]:
    numbered = [(int(m.group(1)), p) for p in folder.glob("checkpoint-*") if (m := _NAME.match(p.name))]
    return [path for _, path in sorted(numbered)]
