"""``hf-balancemix COMMAND ...``: finds the command and reads its options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from hf_balancemix.cli import compare, export, figures, predict, push, space, thresholds
from hf_balancemix.command_line import run_with_clear_errors
from hf_balancemix.messages import nearest
from hf_balancemix.version import __version__

# Each has DESCRIPTION, EXAMPLE, add_options(parser) and run(options).
_COMMANDS = {
    "predict": predict,
    "thresholds": thresholds,
    "export": export,
    "push": push,
    "space": space,
    "figures": figures,
}
# Each has DESCRIPTION and run_words(words): most of their options are those of a recipe.
_OF_RECIPES = {"compare": compare}

# What to do after Ctrl-C.
_HINT = "What was written so far is kept. To start anew: the same command and --overwrite"
_HINTS = {
    "export": "No file was written. To export: the same command again",
    "push": "It may or may not have arrived. To make sure: the same command again",
    "figures": "What was drawn is kept. To draw all: the same command again",
    "thresholds": "The checkpoint is as it was. To tune: the same command again",
    "space": "To start anew: delete the folder and give the same command",
}


class _Parser(argparse.ArgumentParser):
    """Raises ValueError for mistakes, and names the nearest option."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise ValueError(f"{message[:1].upper()}{message[1:]}. {self.prog} --help lists the options.")

    def check(self, words: Sequence[str]) -> None:
        """Refuse options that do not exist."""
        known = list(self._option_string_actions)
        for word in words[: words.index("--")] if "--" in words else words:
            name = word.split("=")[0]
            if name.startswith("-") and len(name) > 1 and name not in known and not name[1].isdigit():
                self.error(f"unknown option {name}{nearest(name, known)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; every user mistake ends in one line and exit status 2.

    Args:
        argv: The words behind ``hf-balancemix``; by default those of this process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in _OF_RECIPES:
        _OF_RECIPES[words[0]].run_words(words[1:])
        return
    run_with_clear_errors(lambda: _main(words), hint=_HINTS.get(" ".join(words[:1]), _HINT))


def _main(words: list[str]) -> None:
    style: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = _Parser(prog="hf-balancemix", description="BalanceMix for Hugging Face.", **style)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    parsers = {}
    for name, command in _COMMANDS.items():
        text = command.DESCRIPTION
        about = {"help": text.splitlines()[0], "description": text, "epilog": command.EXAMPLE}
        parsers[name] = commands.add_parser(name, **about, **style)
        command.add_options(parsers[name])
    for name, other in _OF_RECIPES.items():
        commands.add_parser(name, help=other.DESCRIPTION)
    if not words:
        parser.print_help()
    elif words[0] in _COMMANDS:
        parsers[words[0]].check(words[1:])
        # Options may stand before, between and behind the arguments.
        _COMMANDS[words[0]].run(parsers[words[0]].parse_intermixed_args(words[1:]))
    elif words[0].startswith("-"):
        parser.check(words[:1])
        parser.parse_args(words)
    else:
        near = nearest(words[0], [*_COMMANDS, *_OF_RECIPES])
        raise ValueError(f"Expected a command, found {words[0]!r}{near}. hf-balancemix --help lists them.")
