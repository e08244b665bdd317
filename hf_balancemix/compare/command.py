"""The command line of a comparison: its own options; all others are those of the data set's recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from tqdm.auto import tqdm

from hf_balancemix.compare.grid import (
    RESERVED,
    Grid,
    Noise,
    check_methods,
    default_grid,
    find_grid,
    parse_noise,
    presets,
    read_grid,
    restrict,
)
from hf_balancemix.messages import mistake, nearest
from hf_balancemix.recipe import RECIPES, Recipe
from hf_balancemix.recipe.command import recipe_parser
from hf_balancemix.reports.comparison import LAYOUTS
from hf_balancemix.reports.formats import FORMATS

DESCRIPTION = "Compare methods under label noise on a data set: a grid of runs, resumable, and tables of its results."
EXAMPLE = """\
examples:
  hf-balancemix compare digits --methods bce mixup balancemix --noises none mislabel:0.4 --seeds 3
  hf-balancemix compare coco --data_dir DIR --config table1 --dry_run
  hf-balancemix compare digits --show --format markdown > table.md

The same command goes on after Ctrl-C, a kill or a crash: finished runs are kept, a broken-off one resumes from its
last checkpoint, a changed setting is a new run."""


@dataclass(frozen=True)
class Options:
    """A command line of the comparison.

    Attributes:
        recipe: Of the data set.
        dataset: Its name.
        grid: What to run.
        from_file: Whether the grid stands in a file.
        methods: Those that were asked for, if any were.
        noises: The same.
        seeds: The same.
        words: The options of the recipe.
    """

    recipe: Recipe
    dataset: str
    grid: Grid
    from_file: bool
    methods: tuple[str, ...] | None
    noises: tuple[Noise, ...] | None
    seeds: int | None
    words: list[str]
    parallel: int
    dry_run: bool
    show: bool
    format: str
    layout: str | None
    keep_models: bool


# Options that the comparison and its recipes both have.
_OWN = ("methods", "seeds", "config", "help", "help_all")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise mistake("each option with its value", message.removeprefix("argument "), "--help lists the options")


def read_options(words: Sequence[str]) -> Options:
    """Read a command line.

    Raises:
        ValueError: For everything that is wrong with the comparison's own options.
        SystemExit: After the help.
    """
    parser = comparison_parser()
    own = [option for action in parser._actions for option in action.option_strings]
    dataset, rest = (words[0], list(words[1:])) if words and not words[0].startswith("-") else ("", list(words))
    helps = {"-h", "--help", "--help-all"} & set(rest)
    if helps and dataset not in RECIPES:
        parser.print_help()
        raise SystemExit(0)
    if dataset not in RECIPES:
        found = f"{dataset!r}{nearest(dataset, RECIPES)}" if dataset else "none"
        raise mistake(
            f"a data set, one of {', '.join(RECIPES)}", found, "Name it first, as in: compare digits --seeds 3"
        )
    recipe = RECIPES[dataset]
    if helps:
        parser.print_help()
        _print_recipe_help(recipe, dataset, sorted(helps))
    _check_names(rest, own, recipe)
    options, of_recipe = parser.parse_known_args(rest)
    grid = default_grid() if options.config is None else read_grid(find_grid(options.config))
    methods = None if options.methods is None else check_methods(options.methods, " in --methods")
    noises = None if options.noises is None else _noises(options.noises)
    grid = restrict(grid, methods, noises, options.seeds, options.config is not None)
    return Options(
        recipe=recipe,
        dataset=dataset,
        grid=grid,
        from_file=options.config is not None,
        methods=methods,
        noises=noises,
        seeds=options.seeds,
        words=of_recipe,
        parallel=options.parallel,
        dry_run=options.dry_run,
        show=options.show,
        format=options.format,
        layout=options.layout or grid.layout,
        keep_models=options.keep_models,
    )


def _print_recipe_help(recipe: Recipe, dataset: str, helps: list[str]) -> None:
    """Print the help of a data set's recipe, without what a comparison says otherwise or not at all, and leave."""
    tqdm.write(f"\nEvery run is one of the recipe {dataset}, whose other options can be given too:\n")
    parser = recipe_parser(recipe)
    for action in parser.parser._actions:
        if action.dest in {*RESERVED, *_OWN}:
            action.help = argparse.SUPPRESS
    parser.parser.set_defaults(output_dir=f"runs/compare/{dataset}")
    parser.parse(helps)


def _check_names(words: Sequence[str], own: Sequence[str], recipe: Recipe) -> None:
    """Refuse options that do not exist, and those that the grid says."""
    theirs = [option for action in recipe_parser(recipe).parser._actions for option in action.option_strings]
    for word in words:
        name = word.split("=")[0]
        if not name.startswith("--"):
            continue
        plain = name.removeprefix("--").replace("-", "_")
        if plain in RESERVED:
            said = RESERVED[plain]
            remedy = f"Use --{said}" if said else "Leave it out: every run is trained, and resumed by itself"
            raise mistake(f"no {name} in a comparison", "it", remedy)
        if name not in own and name not in theirs:
            known = [option for option in [*own, *theirs] if option[2:].replace("-", "_") not in RESERVED]
            raise ValueError(f"Unknown option {name}{nearest(name, known)}. --help lists the options.")


def _noises(words: Sequence[str]) -> tuple[Noise, ...]:
    noises = tuple(parse_noise(word, " in --noises") for word in words)
    if len(set(noises)) < len(noises):
        raise mistake("--noises, each once", " ".join(words), "For repeats use --seeds")
    return noises


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def comparison_parser() -> argparse.ArgumentParser:
    """Return the parser of the comparison's own options."""
    parser = _Parser(
        prog="compare",
        usage="%(prog)s DATASET [options] [options of the data set's recipe]",
        description=f"{DESCRIPTION}\n\nDATASET is one of {', '.join(RECIPES)}. Results go to --output_dir, which is "
        "runs/compare/DATASET unless set.",
        epilog=EXAMPLE,
        allow_abbrev=False,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--methods", nargs="+", metavar="NAME", help="Methods to compare; nine unless set.")
    add(
        "--noises",
        nargs="+",
        metavar="NOISE",
        help="none, single_positive, mislabel:RATE, flip:RATE; both rates 0.2 and 0.4 and the others unless set.",
    )
    add("--seeds", type=_count, metavar="N", help="Seeds of each run, counted up from --seed; 1 unless set.")
    add(
        "--config",
        metavar="FILE.yaml|NAME",
        help="A grid from a file, or one that comes with the package; the three above then pick out a part of it. "
        f"Names: {', '.join(presets())}.",
    )
    add(
        "--parallel",
        type=_count,
        default=1,
        metavar="N",
        help="Run N at a time, each on a GPU of its own if there are.",
    )
    add(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="Only say what would be run, and the steps, disk and hours it takes.",
    )
    add("--show", action="store_true", help="Only print the tables of the results that are there; needs no data.")
    add("--format", choices=tuple(FORMATS), default="text", help="Of the tables [text].")
    add("--layout", choices=tuple(LAYOUTS), help="Of the tables; all that there are runs for unless set.")
    add(
        "--keep_models",
        "--keep-models",
        action="store_true",
        help="Keep the model of every run; else only its results stay.",
    )
    add("-h", "--help", action="store_true", help="Show this, and with a DATASET the options of its recipe.")
    add("--help-all", action="store_true", help="The same with all options of the Trainer.")
    return parser
