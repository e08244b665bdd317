"""The grid of a comparison, from the command line or a YAML file: which methods, noises and seeds, with which options.

A file, one of the user's or a preset of this package by its name, holds blocks; what is no other key of a block is an
option of the recipe, the same for all runs of the block::

    layout: groups            # optional: how the results are laid out
    paper_table: 1            # optional: whose numbers stand beside ours
    grid:
      - methods: [bce, balancemix]
        noises: [none, mislabel:0.2]
        seeds: 3
      - methods: [balancemix]
        noises: [mislabel:0.2]
        label: threshold 0.9
        relabel_threshold: 0.9
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from hf_balancemix.config_file import NODES, NULL, Loader, read_mapping
from hf_balancemix.data.noise import NOISE_KINDS, NoiseSpec
from hf_balancemix.messages import mistake, nearest
from hf_balancemix.reports.comparison import LAYOUTS
from hf_balancemix.reports.paper import paper_results, tables_data
from hf_balancemix.training.methods import METHODS

# What is compared unless told otherwise: the methods of the paper's tables, focal, and Mixup.
_NINE = ("bce", "mixup", "focal", "asl", "co_teaching", "t_estimator", "ll_r", "ll_ct", "balancemix")
_NOISES = ("none", "mislabel:0.2", "mislabel:0.4", "flip:0.2", "flip:0.4", "single_positive")
# Rows of tables: those in their order, the steps of the ablation before the last.
ORDER = (*_NINE[:-1], *(name for name in METHODS if name not in _NINE), _NINE[-1])
_WITH_RATE = ("mislabel", "flip")
_PRESETS = Path(str(files("hf_balancemix"))) / "data_files" / "tables"
_KEYS = ("grid", "layout", "paper_table")
# Said by the grid, or by the comparison itself.
RESERVED = {
    "method": "methods",
    "noise": "noises",
    "noise_rate": "noises, as in mislabel:0.2",
    "resume": None,
    "checkpoint": None,
    "do_train": None,
    "do_eval": None,
    "do_predict": None,
    "push_to_hub": "keep_models, and `hf-balancemix push` for a run that is worth it",
}


@dataclass(frozen=True)
class Noise:
    """A kind of noise and its rate; no rate for the kinds that take none."""

    kind: str
    rate: float | None = None

    @property
    def word(self) -> str:
        """As :func:`parse_noise` reads it."""
        return self.kind if self.rate is None else f"{self.kind}:{self.rate:g}"

    @property
    def words(self) -> list[str]:
        """The recipe's options that inject it."""
        return ["--noise", self.kind, *([] if self.rate is None else ["--noise_rate", repr(self.rate)])]


@dataclass(frozen=True)
class Block:
    """Runs with the same options.

    Attributes:
        methods: Names in ``METHODS``.
        noises: Each with every method.
        seeds: How many, counted up from ``--seed``.
        label: Names the block's row of the tables in place of the method.
        words: Options of all its runs, as words of the recipe's command line.
        method_words: The same by method, for its runs only.
        place: Where it stands, for messages.
    """

    methods: tuple[str, ...]
    noises: tuple[Noise, ...]
    seeds: int = 1
    label: str | None = None
    words: tuple[str, ...] = ()
    method_words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True)
class Grid:
    """The blocks of a comparison, and how to show its results; None where nothing is said about that."""

    blocks: tuple[Block, ...]
    layout: str | None = None
    paper_table: str | None = None


def parse_noise(word: str, place: str = "") -> Noise:
    """Read ``none``, ``single_positive``, ``mislabel:0.2`` or ``flip:0.2``.

    Raises:
        ValueError: For anything else.
    """
    kind, _, text = word.partition(":")
    if kind not in NOISE_KINDS:
        raise mistake(
            f"as noise none, single_positive, mislabel:RATE or flip:RATE{place}",
            f"{word!r}{nearest(kind, NOISE_KINDS)}",
            "Write for instance mislabel:0.2",
        )
    try:
        rate = float(text) if text or kind in _WITH_RATE else None
    except ValueError:
        raise mistake(f"a rate behind {kind}{place}", repr(word), f"Write for instance {kind}:0.2") from None
    try:
        NoiseSpec(kind, rate)
    except ValueError as error:
        raise ValueError(f"{error} ({word!r}{place})") from None
    return Noise(kind, rate)


def presets() -> list[str]:
    """Return the names of the grids that come with the package."""
    return sorted((path.stem for path in _PRESETS.glob("*.yaml")), key=lambda name: (len(name), name))


def preset_path(name: str) -> str:
    """Return where the file of a preset is."""
    return str(_PRESETS / f"{name}.yaml")


def find_grid(name: str) -> str:
    """Return the path of a grid: of a file, or if there is none of the preset of that name.

    Raises:
        ValueError: If there is neither.
    """
    path, known = Path(name), presets()
    if path.exists() and not path.is_dir():
        return name
    if name.removesuffix(".yaml") in known:
        return preset_path(name.removesuffix(".yaml"))
    near = nearest(path.name.removesuffix(".yaml"), known)
    raise mistake(
        f"as --config a file, or one of {', '.join(known)}", f"{name!r}{near}", "Correct the path, or take such a name"
    )


def default_grid() -> Grid:
    """Return the grid of a comparison without a file: nine methods, six noises, one seed."""
    return Grid((Block(_NINE, tuple(map(parse_noise, _NOISES))),))


def read_grid(path: str) -> Grid:
    """Read a grid from a YAML file; the options of its blocks are checked when the runs are planned.

    Raises:
        ValueError: Naming the file, the line and the remedy.
    """
    found: dict[str, Any] = {}
    for key, place, node in read_mapping(path):
        if key not in _KEYS or key in found:
            what = f"{key} again" if key in found else f"{key!r}{nearest(key, _KEYS)}"
            raise mistake(f"the keys {', '.join(_KEYS)}, each once", f"{what}{place}", "Correct it")
        found[key] = _text(node, key, path) if key != "grid" else node
    layout = found.get("layout")
    if layout is not None and layout not in LAYOUTS:
        near = nearest(layout, LAYOUTS)
        raise mistake(f"as layout in {path} one of {', '.join(LAYOUTS)}", f"{layout!r}{near}", "Choose one")
    table = found.get("paper_table")
    if table is not None and not tables_data(table):
        known = sorted({int(row["table"]) for row in paper_results()})
        raise mistake(
            f"as paper_table in {path} one of {', '.join(map(str, known))}", repr(table), "Choose one, or leave it out"
        )
    node = found.get("grid")
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        what = "an empty list" if isinstance(node, yaml.SequenceNode) else NODES.get(type(node), "none")
        raise mistake(f"a list of blocks under `grid:` in {path}", what, "Begin with - methods")
    return Grid(tuple(_block(block, path) for block in node.value), layout, table)


def restrict(
    grid: Grid, methods: Sequence[str] | None, noises: Sequence[Noise] | None, seeds: int | None, from_file: bool
) -> Grid:
    """Return what the command line's choices make of a grid: of a file they pick out a part.

    Raises:
        ValueError: If nothing is left, or if a file has fewer seeds than are asked for.
    """
    if not from_file:
        (block,) = grid.blocks
        own = tuple(methods or block.methods), tuple(noises or block.noises), seeds or block.seeds
        return replace(grid, blocks=(Block(*own),))
    blocks = [
        replace(
            block,
            methods=tuple(m for m in block.methods if methods is None or m in methods),
            noises=tuple(n for n in block.noises if noises is None or n in noises),
            seeds=block.seeds if seeds is None else min(seeds, block.seeds),
        )
        for block in grid.blocks
    ]
    blocks = [block for block in blocks if block.methods and block.noises]
    most = max((block.seeds for block in grid.blocks), default=0)
    if seeds is not None and seeds > most:
        raise mistake(
            f"--seeds of at most {most}, as in the grid of --config",
            str(seeds),
            "It picks out a part of the file; write more seeds into a copy of it, or leave --config out",
        )
    if not blocks:
        raise mistake(
            "--methods and --noises that occur together in the grid of --config",
            "none such",
            "With a file they pick out a part of its grid; leave out one of the three",
        )
    return replace(grid, blocks=tuple(blocks))


def check_methods(methods: Sequence[str], place: str = "") -> tuple[str, ...]:
    """Return the methods if all exist, each once.

    Raises:
        ValueError: Naming the first that does not, and the nearest one.
    """
    for name in methods:
        if name not in METHODS:
            known = ", ".join(METHODS)
            raise ValueError(f"Expected one of {known} as method{place}, found {name!r}{nearest(name, METHODS)}.")
    if not methods or len(set(methods)) < len(methods):
        raise mistake(f"methods, each once{place}", " ".join(methods) or "none", "For repeats use seeds")
    return tuple(methods)


def _block(node: Any, path: str) -> Block:
    place = f" in {path}, line {node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        raise mistake(
            f"a block{place} with methods and noises", NODES.get(type(node), "a word"), "Begin with - methods:"
        )
    keys = [key.value for key, _ in node.value]
    if again := [key for key in keys if keys.count(key) > 1]:
        raise mistake(f"each key once in the block{place}", f"{again[0]} again", "Remove one of the two")
    Loader("").flatten_mapping(node)  # what `<<: *anchor` stands for comes first, and the block's own keys count
    items = {key.value: value for key, value in node.value}
    missing = [key for key in ("methods", "noises") if key not in items]
    if missing:
        raise mistake(f"methods and noises in the block{place}", f"no {missing[0]}", "Add it")
    seeds = _text(items.pop("seeds"), "seeds", path) if "seeds" in items else "1"
    if not seeds.isdecimal() or int(seeds) < 1:
        raise mistake(f"a whole number of at least 1 as seeds in the block{place}", repr(seeds), "Write seeds: 3")
    methods = check_methods(_texts(items.pop("methods"), "methods", path), place)
    noises = tuple(parse_noise(word, place) for word in _texts(items.pop("noises"), "noises", path))
    if not noises or len(set(noises)) < len(noises):
        found = " ".join(noise.word for noise in noises) or "none"
        raise mistake(
            f"noises, each once{place}", found, "For repeats use seeds; the labels as they are are called none"
        )
    label = _text(items.pop("label"), "label", path) if "label" in items else None
    own = items.pop("method_options", None)
    if own is not None and not isinstance(own, yaml.MappingNode):
        raise mistake(f"methods with their options under method_options{place}", "none", "Write ll_r: {option: value}")
    by_method = {key.value: _words(value, path) for key, value in own.value} if own is not None else {}
    if strange := [name for name in by_method if name not in methods]:
        raise mistake(f"methods of the block under method_options{place}", repr(strange[0]), "Add it to methods")
    words = [word for key, value in items.items() for word in _option(key, value, path)]
    return Block(methods, noises, int(seeds), label, tuple(words), by_method, place)


def _words(node: Any, path: str) -> list[str]:
    if not isinstance(node, yaml.MappingNode):
        place = f" in {path}, line {node.start_mark.line + 1}"
        raise mistake(f"options with their values{place}", NODES.get(type(node), "a word"), "Write {option: value}")
    return [word for key, value in node.value for word in _option(key.value, value, path)]


def _option(key: str, node: Any, path: str) -> list[str]:
    """Return the words of the command line for an option of a block."""
    name = key.replace("-", "_")
    if name in RESERVED or name == "output_dir":
        said = "--output_dir, for all blocks" if name == "output_dir" else RESERVED[name]
        remedy = f"Say it with {said}" if said else "Leave it out: every run is trained, and resumed by itself"
        raise mistake(f"no {key} in a block of {path}", f"it in line {node.start_mark.line + 1}", remedy)
    if isinstance(node, yaml.MappingNode):
        return [f"--{name}={json.dumps(Loader('').construct_document(node), ensure_ascii=False, default=str)}"]
    if isinstance(node, yaml.SequenceNode):
        return [f"--{name}", *_texts(node, key, path)]
    return [f"--{name}={_text(node, key, path)}"]


def _texts(node: Any, key: str, path: str) -> list[str]:
    return [_text(item, key, path) for item in (node.value if isinstance(node, yaml.SequenceNode) else [node])]


def _text(node: Any, key: str, path: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag == NULL:
        found = NODES.get(type(node), "null")
        raise mistake(f"a single value as {key} in {path}, line {node.start_mark.line + 1}", found, "Give one")
    return str(node.value)
