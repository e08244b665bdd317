"""What a push to the Hub holds: of a folder, what makes a model's repository, and nothing else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from hf_balancemix.messages import mistake

CARD = "README.md"
RESULTS = "results.json"
# The averaged model and the second network of Co-teaching: models of their own.
_INSIDE = ("ema", "second_network")
_PARTS = re.compile(
    r"config\.json|generation_config\.json|(pre)?processor_config\.json"
    r"|(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)|(model\.safetensors|pytorch_model\.bin)\.index\.json"
)
_CHECKPOINT = re.compile(r"checkpoint-\d+")
# It holds paths of this machine, the Hub's token if one was given as an option, and nothing that a resume reads.
_ARGUMENTS = "training_args.bin"
_SECONDS_PER_BYTE = 1e-6
_SECONDS = 120.0


@dataclass(frozen=True)
class Contents:
    """What a push holds, by path in the repository: files, and texts that take the place of files."""

    files: dict[str, str]
    texts: dict[str, str] = field(default_factory=dict)

    def seconds(self) -> float:
        """Return how long a run that is over waits for the upload: two minutes, and one second for each megabyte."""
        return _SECONDS + _SECONDS_PER_BYTE * sum(os.path.getsize(path) for path in self.files.values())


def model_contents(folder: str | os.PathLike[str]) -> Contents:
    """Return what makes a folder a model's repository.

    These are configuration, weights, image processor, the code that the configuration names, card and results; the
    same of an averaged model and of a second network. Everything else stays at home: what is only of use for resuming,
    predictions, and other files that happen to be there.

    Args:
        folder: A run's folder or a checkpoint.

    Raises:
        ValueError: If there is no model in the folder.
    """
    root = Path(folder)
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    if "config.json" not in names or not any(_is_weights(name) for name in names):
        inside = sorted(path.parent.name for path in root.glob("*/config.json"))
        raise mistake(
            "a folder with a model (config.json and weights)",
            f"none in {str(root)!r}" if root.is_dir() else f"no folder {str(root)!r}",
            f"Name one of its folders: {', '.join(inside[:8])}" if inside else "Check the path",
        )
    files, texts = dict[str, str](), dict[str, str]()
    for part in (root, *(root / name for name in _INSIDE)):
        prefix = "" if part == root else f"{part.name}/"
        config = part / "config.json"
        if not config.is_file():
            continue
        try:
            content = dict(json.loads(config.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            found = f"{str(config)!r}, which is none ({error})"
            raise mistake("a model's configuration in JSON", found, "Save the model anew") from error
        own = {path.name for path in part.iterdir() if _PARTS.fullmatch(path.name)} | _code_files(part, content)
        files |= {f"{prefix}{name}": str(part / name) for name in own}
        texts[f"{prefix}config.json"] = _without_folder(content, "_name_or_path")
    # A checkpoint has none of its own, but its run does.
    beside = root.absolute().parent / CARD if _CHECKPOINT.fullmatch(root.name) else root / CARD
    if card := next((path for path in (root / CARD, beside) if path.is_file()), None):
        texts[CARD] = card.read_text(encoding="utf-8")
    if (root / RESULTS).is_file():
        files[RESULTS] = str(root / RESULTS)
    return Contents({name: path for name, path in files.items() if name not in texts}, texts)


def checkpoint_contents(checkpoint: str | os.PathLike[str], path_in_repo: str) -> Contents:
    """Return all of a checkpoint, for resuming elsewhere: weights, optimiser, label state, but no machine's paths.

    Args:
        checkpoint: Its folder.
        path_in_repo: Where it goes, ``last-checkpoint`` for instance.
    """
    root = Path(checkpoint)
    files = {
        f"{path_in_repo}/{path.relative_to(root).as_posix()}": str(path)
        for path in root.rglob("*")
        if path.is_file() and path.name != _ARGUMENTS
    }
    name = f"{path_in_repo}/trainer_state.json"
    state = json.loads(Path(files.pop(name)).read_text(encoding="utf-8"))
    return Contents(files, {name: _without_folder(state, "best_model_checkpoint")})


def without_folder(text: str) -> str:
    """Return ``path/to/NAME`` for an absolute path, whatever kind of machine it is from, and other text as it is."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute() and kind(text).name:
            return f"path/to/{kind(text).name}"
    return text


def _without_folder(content: dict[str, Any], key: str) -> str:
    """Return a file's content as JSON, without the folder that one of its entries names, if it does."""
    if isinstance(content.get(key), str):
        content = content | {key: without_folder(content[key])}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _is_weights(name: str) -> bool:
    return bool(_PARTS.fullmatch(name)) and name.endswith((".safetensors", ".bin"))


def _code_files(folder: Path, config: Mapping[str, Any]) -> set[str]:
    """Return the modules that a configuration names, and those that they import, without other code beside them."""
    named = {str(name).rpartition("--")[2].split(".")[0] for name in config.get("auto_map", {}).values()}
    modules = [folder / f"{name}.py" for name in sorted(named) if (folder / f"{name}.py").is_file()]
    imported = [Path(path) for module in modules for path in get_relative_import_files(module)]
    return {path.name for path in (*modules, *imported) if path.is_file()}
