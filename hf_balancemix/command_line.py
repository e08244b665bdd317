"""Command lines that help: our options first, unknown ones with the nearest known, mistakes in one line.

The same options can stand in a YAML file, ``--config FILE.yaml``: one ``option: value`` a line, for instance::

    method: balancemix
    learning_rate: 1e-4
    lr_scheduler_kwargs: {min_lr: 1e-6}

What counts: the command line, else the file, else the recipe's defaults, else those of the dataclasses.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import MISSING, Field, fields
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from hf_balancemix.config_file import NODES, NULL, Loader, as_word, no_yaml, read_mapping
from hf_balancemix.messages import nearest
from hf_balancemix.training.arguments import FIELDS_OF_OTHERS, BalanceMixTrainingArguments

# Options of the Trainer that the short help shows too.
_SHOWN = (
    ("output_dir", "do_train", "do_eval", "do_predict", "seed", "num_train_epochs"),
    ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    ("learning_rate", "lr_scheduler_type", "optim", "optim_args", "weight_decay", "max_grad_norm"),
    ("dataloader_num_workers", "bf16", "fp16", "use_cpu", "report_to"),
    ("push_to_hub", "hub_model_id"),
)
# Options of the trainer that say how data are read. Data sets whose columns are known need none of them.
DATA_OPTIONS = ("image_column", "label_column", "label_delimiter")
# Options of the method that are seldom needed: only the long help shows them.
_SELDOM = ("augment_on",)
# Two ways to say one thing: what the command line says takes the place of what the file says.
_EXCLUSIVE = (("method", "methods"), ("total_batch_size", "per_device_train_batch_size"))
_KINDS = {int: "a whole number", float: "a number", string_to_bool: "true or false"}
_METAVARS = {int: "N", float: "X", string_to_bool: "[BOOL]"}
# Longer lists of choices would fill a screen of the help; a wrong choice is answered with the list.
_MOST_CHOICES = 8
_UNSET = object()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are any, the description as it is written, and one spelling of each option."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return f"{action.help}{'' if action.default is None or action.default is False else ' [%(default)s]'}"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        spellings = [s for s in action.option_strings if "-" not in s.lstrip("-")] or action.option_strings
        if action.nargs == 0:
            return ", ".join(spellings)
        value = self._metavar_formatter(action, "")(1)[0] + (" ..." if action.nargs == "+" else "")
        return f"{', '.join(spellings)} {value}"


class _Parser(HfArgumentParser):
    """Raises ValueError for mistakes."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(
            f"Expected each option with its value, found {message.removeprefix('argument ')}. --help lists the "
            "options."
        )

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        return _convert(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Leave the choices to ``_convert``."""


def _convert(action: argparse.Action, word: str, place: str = "") -> Any:
    """Return the value that a word of the command line, or of the place named, stands for."""
    name = f"{action.option_strings[0]}{place}"
    convert: Any = action.type or str
    try:
        value = convert(word)
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        kind = _KINDS.get(convert, f"a {getattr(convert, '__name__', 'value')}")
        raise ValueError(f"Expected {kind} as {name}, found {word!r}.") from error
    if action.choices is not None and value not in action.choices:
        choices = [str(choice) for choice in action.choices]
        raise ValueError(f"Expected one of {', '.join(choices)} as {name}, found {word!r}{nearest(word, choices)}.")
    return value


class RecipeParser:
    """Parses dataclasses from a command line and a YAML file.

    Args:
        types: Dataclasses whose fields become options; the last one is :class:`BalanceMixTrainingArguments`.
        defaults: Default values that replace those of the dataclasses.
        description: First lines of the help.
        data_options: Those of ``DATA_OPTIONS`` that the recipe takes; the help has them beside those of its data.

    Attributes:
        given: After :meth:`parse`, the names of the options that stood on the command line or in the file. ``null`` in
            the file does not count: it unsets an option.
    """

    def __init__(
        self, types: Sequence[Any], defaults: dict[str, Any], description: str, data_options: Sequence[str] = ()
    ) -> None:
        self.types, self.data_options = list(types), list(data_options)
        self.given: set[str] = set()
        style: dict[str, Any] = {"add_help": False, "allow_abbrev": False, "formatter_class": _Formatter}
        self.parser = _Parser(self.types, description=description, usage="%(prog)s [options]", **style)
        self.parser.add_argument(
            "--config",
            action="append",
            metavar="FILE.yaml",
            help="Options from a file, one `option: value` a line; the command line overrides them.",
        )
        self.parser.add_argument("-h", "--help", action="store_true", help="Show our options, with [defaults].")
        self.parser.add_argument(
            "--help-all", action="store_true", help="Show those of the other methods and of the Trainer too."
        )
        self.parser.set_defaults(**defaults)
        self.fields: dict[str, Field] = {f.name: f for kind in self.types for f in fields(kind) if f.init}
        # A field may have two actions, and the second of them (`--no_x`) takes no value.
        self.actions = {a.dest: a for a in reversed(self.parser._actions)}
        self.of_mappings = {  # on the command line they take JSON
            name
            for kind in self.types
            for name, hint in get_type_hints(kind).items()
            if dict in {get_origin(part) or part for part in get_args(hint)}
        }
        self.actions["report_to"].choices = ["none", "all", *INTEGRATION_TO_CALLBACK]
        for action in self.parser._actions:
            if action.choices is None:
                action.metavar = action.metavar or _METAVARS.get(action.type, "TEXT")  # type: ignore[call-overload]
            elif len(list(action.choices)) > _MOST_CHOICES:
                action.metavar = "NAME"

    def parse(self, argv: list[str]) -> tuple[Any, ...]:
        """Return one instance per dataclass; print the help and leave if asked to.

        Raises:
            ValueError: For an option that does not exist (the message names the nearest one), a word that belongs to
                no option, a file that is no flat mapping from options to values, and for values that do not fit their
                option or that the dataclasses refuse.
        """
        if "--help-all" in argv or "--help" in argv or "-h" in argv:
            print(self._help(everything="--help-all" in argv))
            raise SystemExit(0)
        namespace = self._read_words(argv)
        typed = {name: v for name in self.fields if (v := getattr(namespace, name)) is not _UNSET}
        filed, unset = self._read_file(namespace.config)
        for pair in _EXCLUSIVE:
            if typed.keys() & pair:
                filed = {name: value for name, value in filed.items() if name not in pair}
        self.given = {*typed, *filed}
        values = vars(self.parser.parse_known_args([])[0]) | unset | filed | typed
        try:
            parsed = tuple(kind(**{f.name: values[f.name] for f in fields(kind) if f.init}) for kind in self.types)
        except (ValueError, TypeError, ImportError) as error:  # raised by the Trainer's own checks of its options
            raise ValueError(str(error)) from error
        # The Trainer finds out only after loading; transformers has no such test for the last two.
        absent = set(parsed[-1].report_to) - {*get_available_reporting_integrations(), "azure_ml", "flyte"}
        if absent:
            raise ValueError(
                f"Expected an installed package behind --report_to {', '.join(absent)}, found none. Install it, or "
                "leave the option out."
            )
        return parsed

    def _read_words(self, argv: list[str]) -> argparse.Namespace:
        known = [option for action in self.parser._actions for option in action.option_strings]
        for word in argv:
            name = word.split("=")[0]
            if name.startswith("--") and name not in known:
                raise ValueError(f"Unknown option {name}{nearest(name, known)}. --help lists the options.")
        namespace, rest = self.parser.parse_known_args(argv, argparse.Namespace(**dict.fromkeys(self.fields, _UNSET)))
        if rest:
            near = nearest(f"-{rest[0]}", known) if rest[0].startswith("-") else ""
            raise ValueError(
                f"Expected only options with two dashes and their values, found {shlex.join(rest)}{near}. --help "
                "lists the options."
            )
        return namespace

    def _read_file(self, paths: list[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the values of a configuration file, and the dataclasses' own defaults for what it unsets."""
        if not paths:
            return {}, {}
        if len(paths) > 1:
            raise ValueError(f"Expected --config once, found it with {shlex.join(paths)}. Merge the files into one.")
        path, filed, unset = paths[0], dict[str, Any](), dict[str, Any]()
        for key, place, node in read_mapping(path):
            name = key.replace("-", "_")
            if name not in self.fields:
                raise ValueError(f"Unknown option {key}{place}{nearest(name, self.fields)}. --help lists the options.")
            if name in filed or name in unset:
                raise ValueError(f"Expected each option once, found {key} again{place}. Remove one of the two.")
            if node.tag == NULL:
                field = self.fields[name]
                default = field.default_factory() if field.default_factory is not MISSING else field.default
                unset[name] = None if default is MISSING else default
            else:
                filed[name] = self._value(self.actions[name], node, path)
        return filed, unset

    def _value(self, action: argparse.Action, node: Any, path: str) -> Any:
        """Convert the value of an option as its words on the command line would be."""
        if isinstance(node, yaml.MappingNode) and action.dest in self.of_mappings:
            try:
                return json.dumps(Loader("").construct_document(node), ensure_ascii=False, default=str)
            except (yaml.YAMLError, ValueError, TypeError) as error:  # a date that does not exist, or as a key
                raise no_yaml(path, error) from error
        many = action.nargs == "+"
        items = node.value if many and isinstance(node, yaml.SequenceNode) else [node]
        values = []
        for item in items:
            place = f" in {path}, line {item.start_mark.line + 1}"
            if not isinstance(item, yaml.ScalarNode) or item.tag == NULL:
                raise ValueError(
                    f"Expected {'single values' if many else 'a single value'} as {action.option_strings[0]}{place}, "
                    f"found {NODES.get(type(item), 'null')}. Give values, in quotes where YAML reads them otherwise."
                )
            values.append(_convert(action, as_word(action, item), place))
        return values if many else values[0]

    def _help(self, everything: bool) -> str:
        """Return the help: the recipe's options, the method's, the Trainer's most used or all, and the parser's."""
        names = {
            (kind.__doc__ or kind.__name__).splitlines()[0].rstrip("."): [f.name for f in fields(kind) if f.init]
            for kind in self.types[:-1]
        }
        if self.data_options:
            names[next(iter(names))] += self.data_options
        own = BalanceMixTrainingArguments.__annotations__.keys() - TrainingArguments.__dataclass_fields__.keys()
        own -= {*DATA_OPTIONS, *FIELDS_OF_OTHERS, *_SELDOM}
        names["Options of the method"] = [name for name in self.fields if name in own]
        used_most = [name for group in _SHOWN for name in group]
        names["Options of the Trainer used most"] = used_most
        if everything:
            names["Options of the compared methods and their training scripts"] = list(FIELDS_OF_OTHERS)
            seen = {name for section in names.values() for name in section}
            names["Other options of the Trainer"] = [name for name in self.fields if name not in seen]
        names["Configuration and help"] = ["config", "help", "help_all"]
        available = self.parser._actions if everything else list(self.actions.values())
        formatter = self.parser._get_formatter()
        formatter.add_usage(self.parser.usage, [], [])
        formatter.add_text(self.parser.description)
        for title, section in names.items():
            formatter.start_section(title)
            shown = [copy(a) for name in section for a in available if a.dest == name]
            for action in shown:
                if isinstance(action.default, list):
                    action.default = " ".join(map(str, action.default))
                if action.dest in used_most and not everything:  # the Trainer's texts are long
                    action.help = str(action.help).split(". ")[0]
            formatter.add_arguments(shown)
            formatter.end_section()
        return formatter.format_help()


def run_with_clear_errors(job: Callable[[], None], hint: str = "To go on: the same command and --resume") -> None:
    """Run a command; what our own checks raise becomes one line on stderr and exit status 2.

    Errors from anywhere else keep their traceback: they are not the user's mistake. Ctrl-C ends with status 130.

    Args:
        job: The command.
        hint: What to do after Ctrl-C.
    """
    try:
        job()
    except KeyboardInterrupt:
        print(f"\nInterrupted. {hint}", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if not _is_ours(error):
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_ours(error: Exception) -> bool:
    """Say whether an error is of a class of this package or was raised in it."""
    package = __name__.partition(".")[0]
    if type(error).__module__.partition(".")[0] == package:
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    expected = isinstance(error, ValueError | TypeError | OSError | FloatingPointError)
    return expected and raised_in.partition(".")[0] == package


def _message(error: Exception) -> str:
    """Return the message alone; an error from a DataLoader worker comes back with the worker's traceback in front."""
    text = str(error)
    if text.startswith("Caught "):
        text = text.rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2].rstrip()
    return text
