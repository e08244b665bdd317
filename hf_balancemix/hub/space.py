"""A demo of a model for Hugging Face Spaces: a folder with a Gradio app that needs nothing of this package."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import jinja2
from huggingface_hub import SpaceCardData

from hf_balancemix.hub.card import escaped
from hf_balancemix.hub.contents import CARD, RESULTS, model_contents
from hf_balancemix.messages import mistake
from hf_balancemix.thresholds import DEFAULT_THRESHOLD

# The version that the demo was tried with.
GRADIO = "6.31.0"
_REQUIREMENTS = f"""\
gradio>={GRADIO.partition(".")[0]}
transformers>=5.23,<6
timm>=1.0.31
torch>=2.6
torchvision
pillow>=10
"""
_README = """
# {title}

Upload a picture and see the score of every class. The labels of the picture are the classes whose score reaches their
decision threshold; the model's `config.json` holds these as `decision_thresholds`, or there are none and 0.5 counts.

On your own machine:

```bash
pip install -r requirements.txt
python app.py
```

As a Space:

```bash
hf repos create USER/NAME --type space --space-sdk gradio
hf upload USER/NAME . --type space
```
"""
_AUDIT = "audit"  # its folder in the Space
_APP = (files("hf_balancemix.hub") / "space_app.py.j2").read_text(encoding="utf-8")


def write_space(
    checkpoint: str, out: str | os.PathLike[str], remote_code: bool, audit: Mapping[str, str] | None = None
) -> list[str]:
    """Write the folder of a Space: ``app.py``, ``requirements.txt``, ``README.md`` and a copy of a model in a folder.

    Args:
        checkpoint: Folder of a trained model, which is copied, or its name on the Hub, which the app loads.
        out: Folder; made if it does not exist.
        remote_code: Whether the model loads without this package only by its own code.
        audit: Files of the page of a label audit, which the demo links: their place beside the page and their path.

    Returns:
        The files, relative to ``out``, in order.

    Raises:
        ValueError: If there is no model in the folder, or ``out`` is not empty or cannot be written.
    """
    target, copied = Path(out), os.path.isdir(checkpoint)
    contents = model_contents(checkpoint) if copied else None
    check_empty(target)
    name = os.path.basename(os.path.abspath(checkpoint)) if copied else checkpoint.rpartition("/")[2]
    texts = {
        "app.py": _app(checkpoint, name, copied, remote_code, bool(audit)),
        "requirements.txt": _REQUIREMENTS,
        "README.md": _readme(name, None if copied else checkpoint),
    }
    sources = {f"{_AUDIT}/{path}": source for path, source in (audit or {}).items()}
    if contents is not None:
        unwanted = (CARD, RESULTS)
        own = [path for path in (*contents.files, *contents.texts) if "/" not in path and path not in unwanted]
        texts |= {f"model/{path}": contents.texts[path] for path in own if path in contents.texts}
        sources |= {f"model/{path}": contents.files[path] for path in own if path in contents.files}
    try:
        for path, text in texts.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_text(text, encoding="utf-8")
        for path, source in sources.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / path)
    except OSError as error:
        found = f"{str(target)!r} ({error.strerror})"
        raise mistake("a folder for the Space that can be written", found, "Choose another one with --out") from error
    return sorted([*texts, *sources])


def check_empty(folder: Path) -> None:
    """Refuse a folder in which there is something.

    Raises:
        ValueError: Also if it is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = f"{'files in' if folder.is_dir() else 'the file'} {str(folder)!r}"
        raise mistake("an empty folder for the Space, or none", found, "Choose another one with --out, or empty it")


def _app(checkpoint: str, name: str, copied: bool, remote_code: bool, audit: bool) -> str:
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_APP).render(
        copied=copied,
        model='str(Path(__file__).parent / "model")' if copied else repr(checkpoint),
        title=repr(name),
        default=DEFAULT_THRESHOLD,
        remote_code=remote_code,
        audit=_AUDIT if audit else None,
    )


def _readme(name: str, hub_name: str | None) -> str:
    metadata = SpaceCardData(
        title=name,
        emoji="🔎",
        colorFrom="blue",
        colorTo="green",
        sdk="gradio",
        sdk_version=GRADIO,
        app_file="app.py",
        models=[hub_name] if hub_name else None,
        pinned=False,
    )
    return f"---\n{metadata.to_yaml()}\n---\n{_README.format(title=escaped(name))}"
