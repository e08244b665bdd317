"""The page of a label audit: one HTML file in which a person accepts or rejects suggested labels, offline."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from io import BytesIO
from multiprocessing.pool import ThreadPool
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import PIL.Image
from tqdm.auto import tqdm

from hf_balancemix.data.transforms import as_rgb
from hf_balancemix.messages import mistake
from hf_balancemix.reports.label_issues import MISSING_POSITIVE, WRONG_POSITIVE, LabelIssues

_PAGE = "index.html"
THUMBNAIL_SIZE = 128
"""Longer side of a thumbnail in pixels, at most."""
INLINE_LIMIT = 20 * 2**20
"""Bytes of thumbnails inside of the page; those of the less suspicious images go to files of their own."""
THUMBNAILS = "thumbnails"
"""Their folder, beside the page; a thousand rows share a folder in it."""
# Smaller images are shown enlarged: lossy compression would show, too.
_LOSSLESS_SIZE = 64
_TEMPLATE, _STYLE, _SCRIPT = (
    (files("hf_balancemix.reports") / name).read_text(encoding="utf-8")
    for name in ("audit_page.html.j2", "audit_page.css", "audit_page.js")
)


def write_page(issues: LabelIssues, images: Callable[[int], PIL.Image.Image] | None, out: Path, title: str) -> Path:
    """Write ``index.html``: the gallery of the M issues, which works without a network and without a server.

    Decisions stay in the browser, separately for each list of issues, until they are exported as CSV with the columns
    ``index,image,class,given,suggested,decision``: row of the training set, its image's name, class name, 0 or 1, 0
    or 1, and ``accept`` or ``reject``. It is written as ``label_issues.csv`` is: UTF-8 with a byte order mark (read it
    as ``utf-8-sig``), and ``'`` before names that a spreadsheet would take for a formula: those that begin with ``=``,
    ``+``, ``-``, ``@``, a tab or a line break, also after other ``'``. Who reads the file takes one ``'`` away.

    Args:
        issues: What is shown, in this order.
        images: Gives the image of a training row; called once for each row with issues, from several threads.
            None: no pictures.
        out: Folder; made if it does not exist. An older page in it is replaced.
        title: Heading of the page, for instance the name of the run.

    Returns:
        The path of the page.

    Raises:
        ValueError: If ``out`` cannot be written, and whatever ``images`` raises.
    """
    first, image_of = _by_appearance(issues.rows)
    rows = issues.rows[first].tolist()
    path = out / _PAGE
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):  # before minutes go into thumbnails
            pass
    except OSError as error:
        found = f"{str(out)!r} ({error.strerror})"
        raise mistake("a folder for the audit page that can be written", found, "Choose another one") from error
    for older in (out / THUMBNAILS).glob("*/*.webp"):
        older.unlink()
    inline = [] if images is None else _thumbnails(rows, images, out / THUMBNAILS)
    data = {
        "key": f"label-audit-{_digest(issues)}",
        "kinds": [MISSING_POSITIVE, WRONG_POSITIVE],  # by given label
        "classes": issues.class_names,
        "pictures": images is not None,
        "rows": rows,
        "names": [issues.image_ids[row] for row in rows],
        "image": image_of.tolist(),
        "class": issues.classes.tolist(),
        "given": issues.given.tolist(),
        "score": _rounded(issues.scores),
        "posterior": _rounded(issues.posteriors),
        "confidence": _rounded(issues.confidences),
    }
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode("utf-8")).digest()).decode("ascii")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_TEMPLATE).stream(
        title=title, style=_STYLE, script=_SCRIPT, script_digest=digest, data=_json(data), inline=_json(inline)
    )
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.writelines(page)
    return path


def page_files(folder: Path) -> dict[str, str]:
    """Return the files of an audit's page, by their place in its folder: what is copied to show it elsewhere.

    Raises:
        ValueError: If there is no page.
    """
    if not (folder / _PAGE).is_file():
        remedy = "`hf-balancemix audit RUN --out FOLDER` writes one"
        raise mistake("the folder of a label audit", f"no {_PAGE} in {str(folder)!r}", remedy)
    pages = [folder / _PAGE, *sorted((folder / THUMBNAILS).glob("*/*.webp"))]
    return {page.relative_to(folder).as_posix(): str(page) for page in pages}


def _by_appearance(rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where each different row appears first, in order, and for each of the (M,) rows its place among them."""
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[inverse]


def _thumbnails(rows: Sequence[int], images: Callable[[int], PIL.Image.Image], folder: Path) -> list[str]:
    """Return the first thumbnails in base64, as many as ``INLINE_LIMIT`` allows; write the others to ``folder``."""
    inline: list[str] = []
    size = 0
    with ThreadPool() as pool:  # reading and compressing release the GIL
        contents = pool.imap(lambda row: _thumbnail(images(row)), rows)
        bar = tqdm(contents, total=len(rows), desc="thumbnails", unit="image", leave=False, delay=1)
        for row, content in zip(rows, bar, strict=True):
            text = base64.b64encode(content).decode("ascii")
            size += len(text)
            if size <= INLINE_LIMIT:
                inline.append(text)
                continue
            path = folder / str(row // 1000) / f"{row}.webp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return inline


def _thumbnail(image: PIL.Image.Image) -> bytes:
    small = as_rgb(image).copy()  # the caller's image stays as it is
    small.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=70, method=2, lossless=max(small.size) <= _LOSSLESS_SIZE)
    return buffer.getvalue()


def _digest(issues: LabelIssues) -> str:
    """Name this list of issues: kept decisions belong to it, and to its order."""
    parts = [array.tobytes() for array in (issues.rows, issues.classes, issues.given)]
    names = json.dumps([issues.class_names, [issues.image_ids[row] for row in issues.rows]])
    return hashlib.sha256(b"".join([*parts, names.encode("ascii")])).hexdigest()[:32]


def _rounded(values: npt.NDArray[np.float32]) -> list[float | None]:
    """Round to the digits that are shown; NaN, which JSON does not know, becomes None."""
    return [None if value != value else round(value, 3) for value in values.tolist()]


def _json(data: Any) -> str:
    """Return ASCII that stays one JSON text inside of a script element: without ``<``, ``>`` and ``&``."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
