"""What the doctor found, as one HTML page that needs no other file, and as JSON."""

from __future__ import annotations

import errno
import json
import math
import os
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np

from hf_balancemix.messages import mistake
from hf_balancemix.metrics import class_groups
from hf_balancemix.reports.doctor_checkup import Checkup
from hf_balancemix.reports.doctor_figures import draw_figures

PAGE, NUMBERS = "doctor.html", "doctor.json"
_SHOWN = 100


def check_folder(out: Path) -> None:
    """Make the folder of the results, before anything else is done.

    Raises:
        ValueError: If it cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only")
    except OSError as error:
        found = f"{str(out)!r} ({error.strerror})"
        raise mistake("a folder that can be written to as --out", found, "Choose another one") from error


def write_doctor(checkup: Checkup, out: Path) -> None:
    """Write ``doctor.html`` and ``doctor.json`` into an existing folder."""
    numbers = json.dumps(checkup.numbers(), indent=1, ensure_ascii=False, allow_nan=False)
    (out / NUMBERS).write_text(_encodable(numbers), encoding="utf-8")
    (out / PAGE).write_text(_encodable(render_page(checkup)), encoding="utf-8")


def render_page(checkup: Checkup) -> str:
    """Return the page; every name in it is escaped."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = (files("hf_balancemix.reports") / "doctor.html.j2").read_text(encoding="utf-8")
    own = checkup.settings
    group = {}
    if not own.own_groups:
        found = class_groups(checkup.labels["train"].positives, (own.medium_shot_from, own.many_shot_from))
        group = {int(k): name for name, members in found.items() for k in members}
    order = np.argsort(-np.array(checkup.labels["train"].positives), kind="stable").tolist()
    return environment.from_string(template).render(
        c=checkup,
        order=order,
        group=group,
        shown=_SHOWN,
        figures=draw_figures(checkup),
        ratio=shown_ratio,
        time=shown_time,
    )


def shown_time(seconds: float) -> str:
    """Write a time in seconds, or from two minutes on in minutes."""
    return f"{seconds / 60:,.1f} min" if seconds >= 120 else f"{seconds:.1f} s"


def shown_ratio(number: float) -> str:
    """Write a ratio with three digits; what is infinite as ∞, what is undefined as a dash."""
    if math.isnan(number):
        return "–"
    return "∞" if math.isinf(number) else f"{number:,.1f}" if number >= 10 else f"{number:.2f}"


def _encodable(text: str) -> str:
    """Mark the bytes of file names that are no UTF-8, which Python reads as lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
