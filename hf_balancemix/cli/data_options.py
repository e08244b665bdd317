"""Options of the commands that read labelled data as the recipes do."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from hf_balancemix.messages import mistake, nearest
from hf_balancemix.recipe import RECIPES

# By the names that the loaders of the recipes have for them.
_OF_DATA = {
    "data_dir": "Folder of the data, or of the validation images alone.",
    "dataset": "Name of a data set on the Hub.",
    "dataset_config": "Its configuration, if it has several.",
    "image_column": "Found unless given.",
    "label_column": "Found unless given.",
    "label_delimiter": "What separates labels in a text; found unless given.",
    "year": "Of the COCO or VOC data, as in their recipes.",
}


def add_data_options(parser: argparse.ArgumentParser, **others: str) -> None:
    """Add the options that name the data, and ``--recipe``.

    Args:
        parser: Of the command.
        **others: More options that a loader takes, or other texts: the help by name.
    """
    for name, text in (_OF_DATA | others).items():
        parser.add_argument(f"--{name}", metavar=name.rpartition("_")[2].upper(), help=text)
    parser.add_argument(
        "--recipe",
        default="folder",
        metavar="NAME",
        help=f"Whose data they are: {', '.join(RECIPES)} (default: %(default)s).",
    )


def given_data_options(options: argparse.Namespace, *others: str) -> dict[str, Any]:
    """Return the options that were given, as arguments of the loader of ``options.recipe``.

    Args:
        options: Of the command line.
        *others: Names that :func:`add_data_options` had.

    Raises:
        ValueError: For an unknown recipe, and for options that its data do not have.
    """
    given = {name: value for name in (*_OF_DATA, *others) if (value := getattr(options, name)) is not None}
    if options.recipe not in RECIPES:
        found = f"{options.recipe!r}{nearest(options.recipe, RECIPES)}"
        raise mistake(f"as --recipe one of {', '.join(RECIPES)}", found, "Leave it out for your own images")
    recipe = RECIPES[options.recipe]
    own = {field.name for field in fields(recipe.data)} if recipe.data else set()
    if odd := sorted(given.keys() - own - set(recipe.trainer_options)):
        raise mistake(f"no --{odd[0]} with the data of the recipe {options.recipe}", "it", "Leave it out")
    return given
