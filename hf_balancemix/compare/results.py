"""The results of a comparison on disk: one line of JSON per finished cell, and apart from it what a run took."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_balancemix.compare.cells import cell_id
from hf_balancemix.data.noise import NOISE_KINDS
from hf_balancemix.messages import mistake

Line = dict[str, Any]
# Diagnostics are kept at these parts of a run, mAP after every epoch.
_PARTS = 20


class Results:
    """``results.jsonl`` and ``times.jsonl`` of a comparison.

    ``results.jsonl`` holds what depends on settings and versions alone, sorted, so that the file is the same whatever
    the order of the runs and however often they were broken off. ``times.jsonl`` holds what differs each time. Both
    are replaced as a whole, in one step, whenever a run is finished.

    Args:
        folder: Of the comparison.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.times_path = folder / "results.jsonl", folder / "times.jsonl"

    def read(self) -> list[Line]:
        """Return the finished runs.

        A last line that is not complete, as a kill or a full disk leaves it, does not count: its run is repeated.

        Raises:
            ValueError: If another line is no result.
        """
        return _read(self.path, wrong_in_result, "Remove the line; its run is repeated")

    def read_times(self) -> list[Line]:
        """Return what the finished runs took.

        Raises:
            ValueError: As :meth:`read` does.
        """
        return _read(
            self.times_path, _wrong_in_times, "Remove the line, or the file: it only serves to tell the time left"
        )

    def add(self, result: Line, times: Line) -> None:
        """Note a finished run; an earlier result of the same settings is replaced."""
        own = cell_id(result["settings"])
        lines = [line for line in self.read() if cell_id(line["settings"]) != own]
        _write_lines(self.path, sorted([*lines, result], key=_order))
        _write_lines(self.times_path, [*(line for line in self.read_times() if line.get("cell") != own), times])


def _order(line: Line) -> tuple[Any, ...]:
    settings = line["settings"]
    named = (settings["data"].get("recipe"), settings["noise"], settings["noise_rate"] or 0, settings["method"])
    return (*map(str, named), int(settings["seed"]), cell_id(settings))


def _read(path: Path, wrong: Callable[[Line], str], remedy: str) -> list[Line]:
    """Read JSON lines; a last line that is broken off is dropped with a word on stderr.

    Args:
        path: Of a file, which need not be there.
        wrong: Says what a line lacks, if anything.
        remedy: For a line that lacks something.
    """
    try:
        texts = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise mistake(f"results that can be read in {path}", str(error.strerror), "Check the file") from error
    texts = texts[:-1] if texts and not texts[-1] else texts
    lines = []
    for number, text in enumerate(texts, start=1):
        line = _parsed(text)
        if line is None and number == len(texts):
            tqdm.write(f"{path}: the last line is not complete and does not count", file=sys.stderr)
        elif line is None:
            raise mistake(f"one JSON object a line in {path}", f"none in line {number}", remedy)
        elif lacks := wrong(line):
            raise mistake(f"{lacks} in line {number} of {path}", "something else", remedy)
        else:
            lines.append(line)
    return lines


def wrong_in_result(line: Line) -> str:
    """Return what a result lacks that tables need."""
    settings = line.get("settings")
    if not isinstance(settings, dict) or not isinstance(settings.get("data"), dict):
        return "settings, with those of the data,"
    for part in (line, settings):
        if not isinstance(part.get("method"), str) or part.get("noise") not in NOISE_KINDS:
            return "a method and a known noise"
        if not isinstance(part.get("seed"), int) or not isinstance(part.get("noise_rate", ""), int | float | None):
            return "a seed and a noise rate"
    if not isinstance(line.get("map"), int | float) or not isinstance(line.get("groups"), dict):
        return "mAP, and that of the class groups,"
    epochs = line.get("epochs")
    return "" if isinstance(epochs, list) and all(isinstance(epoch, dict) for epoch in epochs) else "a list of epochs"


def _wrong_in_times(line: Line) -> str:
    """Return what a line of times lacks."""
    texts, numbers = ("cell", "method", "work"), ("steps", "seconds")
    right = all(isinstance(line.get(name), str) for name in texts)
    right = right and all(isinstance(line.get(name), int | float) for name in numbers)
    return "" if right else f"{', '.join((*texts, *numbers))}"


def _parsed(text: bytes) -> Line | None:
    """Return the object in a line, or None if there is none."""
    try:
        found = json.loads(text)
    except ValueError:  # no UTF-8 either
        return None
    return found if isinstance(found, dict) else None


def _write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Replace a file in one step, on the disk before its name is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def result_line(settings: Line, record: Line, training: Line) -> Line:
    """Return the line of a finished run: what depends on its settings and the versions alone.

    Args:
        settings: Of its plan.
        record: ``map``, ``groups`` and ``per_class_ap`` (:meth:`Evaluation.record`).
        training: What :func:`hf_balancemix.recipe.run.train` says of it.
    """
    named = {name: settings[name] for name in ("method", "noise", "noise_rate", "seed")}
    kept = {name: training[name] for name in ("images", "unreadable_images", "versions")}
    return {
        "cell": cell_id(settings),
        **named,
        **_rounded(record),
        "epochs": _rounded(_thinned(training["epochs"])),
        **kept,
        "settings": settings,
    }


def _thinned(epochs: Sequence[Line]) -> list[Line]:
    """Keep mAP of every epoch, and the rest at each twentieth of the run; nothing that differs from run to run.

    In one order: the entries of a resumed run come back from a checkpoint, whose file has its own.
    """
    kept = {-(-len(epochs) * part // _PARTS) for part in range(1, _PARTS + 1)}
    return [
        {
            key: value
            for key, value in sorted(epoch.items())
            if not key.endswith("seconds") and (number in kept or key == "epoch" or "map" in key)
        }
        for number, epoch in enumerate(epochs, start=1)
    ]


def _rounded(value: Any) -> Any:
    """Six decimals tell more than any table shows."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value
