"""Command lines that help: our options first, unknown ones with the nearest known, mistakes in one line."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from hf_balancemix.checks import nearest
from hf_balancemix.training.arguments import BalanceMixTrainingArguments

# Options of the Trainer that the short help shows too.
_SHOWN = (
    "output_dir",
    "seed",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "weight_decay",
    "dataloader_num_workers",
    "bf16",
    "use_cpu",
)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are any, and the description as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class RecipeParser:
    """Parses dataclasses from a command line.

    Args:
        types: Dataclasses whose fields become options.
        defaults: Default values that replace those of the dataclasses.
        description: First lines of the help.
    """

    def __init__(self, types: Sequence[Any], defaults: dict[str, Any], description: str) -> None:
        self.types = list(types)
        self.parser = HfArgumentParser(
            self.types,
            description=description,
            allow_abbrev=False,
            add_help=False,
            formatter_class=_Formatter,
            usage="%(prog)s [options]",
        )
        self.parser.add_argument("-h", "--help", action="store_true", help="Show our options.", default=None)
        self.parser.add_argument("--help-all", action="store_true", help="And the Trainer's options.", default=None)
        self.parser.set_defaults(**defaults)
        new = BalanceMixTrainingArguments.__annotations__.keys() - TrainingArguments.__dataclass_fields__.keys()
        own = {*new, *_SHOWN, "help", "help_all"}
        for kind in types:
            if kind is not BalanceMixTrainingArguments:
                own |= set(kind.__annotations__)
        self.own = own

    def parse(self, argv: list[str]) -> tuple[Any, ...]:
        """Return one instance per dataclass; print the help and leave if asked to.

        Raises:
            ValueError: For an option that does not exist (the message names the nearest one), a word that belongs to
                no option, and for values that the dataclasses refuse.
        """
        if "--help-all" in argv or "--help" in argv or "-h" in argv:
            if "--help-all" not in argv:
                for action in self.parser._actions:
                    if action.dest not in self.own or any(o.startswith("--no_") for o in action.option_strings):
                        action.help = argparse.SUPPRESS
            print(self.parser.format_help())
            raise SystemExit(0)
        known = [option for action in self.parser._actions for option in action.option_strings]
        for word in argv:
            name = word.split("=")[0]
            if name.startswith("--") and name not in known:
                raise ValueError(f"Unknown option {name}{nearest(name, known)}. --help lists the options.")
        try:
            *parsed, rest = self.parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
        except (ValueError, TypeError, ImportError) as error:  # raised by the Trainer's own checks of its options
            raise ValueError(str(error)) from error
        if rest:
            near = nearest(f"-{rest[0]}", known) if rest[0].startswith("-") else ""
            raise ValueError(
                f"Expected only options with two dashes and their values, found {shlex.join(rest)}{near}. --help "
                "lists the options."
            )
        return tuple(parsed[: len(self.types)])


def run_with_clear_errors(job: Callable[[], None]) -> None:
    """Run a command; what our own checks raise becomes one line on stderr and exit status 2.

    Errors from anywhere else keep their traceback: they are not the user's mistake. Ctrl-C ends with status 130.
    """
    try:
        job()
    except KeyboardInterrupt:
        print("\nInterrupted. To go on: the same command and --resume", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
        if not raised_in.startswith("hf_balancemix"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
