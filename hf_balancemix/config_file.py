"""Options in a YAML file, as text that goes the way of the command line's words."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from transformers.hf_argparser import string_to_bool

NULL, _BOOL, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "float"))
NODES = {yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list"}


class Loader(yaml.SafeLoader):
    """Reads ``1e-4`` as a number, as YAML 1.2 does, and refuses keys that come twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping, as the base class does."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.MarkedYAMLError(problem="a key that comes twice", problem_mark=node.start_mark)
        return mapping


Loader.add_implicit_resolver(_FLOAT, re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), [*"-+0123456789"])


def read_mapping(path: str) -> Iterator[tuple[str, str, Any]]:
    """Yield each key of a YAML mapping, where it stands, and its value as a node, which holds the text as written."""
    try:
        root: Any = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ValueError(f"Expected a YAML file as --config, found {path!r} ({reason}). Check the path.") from error
    except yaml.YAMLError as error:
        raise no_yaml(path, error) from error
    if not isinstance(root, yaml.MappingNode):
        found = "nothing" if root is None else NODES.get(type(root), "only text")
        raise ValueError(
            f"Expected one `option: value` a line in {path}, found {found}. Mind the blank: `seed: 1`, not `seed:1`."
        )
    for key, value in root.value:
        text = key.value if isinstance(key, yaml.ScalarNode) else yaml.serialize(key).strip()
        yield text, f" in {path}, line {key.start_mark.line + 1}", value


def no_yaml(path: str, error: Exception) -> ValueError:
    """Return the error for a file that is no YAML, with its line."""
    mark = getattr(error, "problem_mark", None)
    line = f", line {mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return ValueError(f"Expected YAML in {path}{line}, found an error: {problem}. Write one `option: value` a line.")


def as_word(action: argparse.Action, node: Any) -> str:
    """Return the text of a value as the command line would have it."""
    if node.tag == _BOOL:  # `no` and `off` as well
        true = node.value.lower() in ("true", "yes", "on")
        if action.type is string_to_bool:
            return str(true)
        if not true and "no" in (action.choices or ()):
            return "no"
    return str(node.value)
