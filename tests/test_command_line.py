"""Options from the command line and from a YAML file, the help, and errors in one line."""

import itertools
import re
from dataclasses import dataclass, field

import pytest
import torch
from transformers.integrations import INTEGRATION_TO_CALLBACK

from hf_balancemix import command_line
from hf_balancemix.command_line import RecipeParser, run_with_clear_errors
from hf_balancemix.losses import weighted_bce
from hf_balancemix.training.arguments import BalanceMixTrainingArguments


@dataclass
class Data:
    """Options of the data."""

    data_dir: str | None = field(default=None, metadata={"help": "Folder. The best."})
    class_names: list[str] | None = field(default=None, metadata={"help": "Names."})


@dataclass
class Options:
    """Options of the recipe."""

    method: str | None = field(default=None, metadata={"help": "One.", "choices": ["bce", "mixup"]})
    methods: list[str] = field(
        default_factory=lambda: ["bce"], metadata={"help": "Some.", "choices": ["bce", "mixup"]}
    )
    total_batch_size: int | None = field(default=None, metadata={"help": "All."})
    image_size: int | None = field(default=None, metadata={"help": "Side."})
    pretrained: bool = field(default=True, metadata={"help": "Load."})
    resume: bool = field(default=False, metadata={"help": "Go on."})


def parser(**defaults):
    defaults = {"output_dir": "out", "use_cpu": True, **defaults}
    return RecipeParser([Data, Options, BalanceMixTrainingArguments], defaults, "The description")


@pytest.fixture
def parse(tmp_path):
    """Parse a text as configuration file, and words after it; everything as one dict."""

    def run(text="", *words, **defaults):
        path = tmp_path / "my options.yaml"
        path.write_text(text, encoding="utf-8")
        it = parser(**defaults)
        merged = {}
        for part in it.parse([*(["--config", str(path)] if text else []), *words]):
            merged |= vars(part)
        return it, merged

    return run


@pytest.mark.parametrize(("recipe", "file", "typed"), itertools.product((False, True), repeat=3))
def test_precedence(parse, recipe, file, typed):
    defaults = {"learning_rate": 0.1, "image_size": 1} if recipe else {}
    text = "learning_rate: 0.2\nimage-size: 2" if file else "seed: 0"
    words = ["--learning_rate", "0.3", "--image-size=3"] if typed else []
    it, found = parse(text, *words, **defaults)
    level = 3 if typed else 2 if file else 1 if recipe else 0
    assert found["learning_rate"] == (5e-5, 0.1, 0.2, 0.3)[level]
    assert found["image_size"] == (None, 1, 2, 3)[level]
    both = {"learning_rate", "image_size"}
    assert it.given == (both if file or typed else set()) | (set() if file else {"seed"})


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("learning-rate: 2", "learning_rate", 2.0),
        ("seed: 7", "seed", 7),
        ("max_steps: -1", "max_steps", -1),
        ("adam_epsilon: '1e-9'", "adam_epsilon", 1e-9),
        ("data_dir: -strange", "data_dir", "-strange"),
        ("data_dir: --seed", "data_dir", "--seed"),
        ("data_dir: 007", "data_dir", "007"),
        ("data_dir: 2024-01-02", "data_dir", "2024-01-02"),
        ("data_dir: yes", "data_dir", "yes"),
        ("data_dir: 'null'", "data_dir", "null"),
        ("data_dir: ''", "data_dir", ""),
        ('data_dir: "Bilder: \\"grün\\" <1>\\n*[x]"', "data_dir", 'Bilder: "grün" <1>\n*[x]'),
        ("data_dir: 写真/a b", "data_dir", "写真/a b"),
        ("data_dir: |-\n  one\n  two", "data_dir", "one\ntwo"),
        ("resume: true", "resume", True),
        ("resume: on", "resume", True),
        ("pretrained: false", "pretrained", False),
        ("pretrained: Off", "pretrained", False),
        ("pretrained: 'no'", "pretrained", False),
        ("eval_strategy: no", "eval_strategy", "no"),
        ("eval_strategy: off", "eval_strategy", "no"),
        ("eval_strategy: epoch", "eval_strategy", "epoch"),
        ("methods: [mixup, bce]", "methods", ["mixup", "bce"]),
        ("methods: mixup", "methods", ["mixup"]),
        ("methods: []", "methods", []),
        ("class_names:\n- -x\n- no\n- 08\n- 'null'\n- a, b", "class_names", ["-x", "no", "08", "null", "a, b"]),
        ("optim_args: momentum=0.9", "optim_args", "momentum=0.9"),
        (
            "lr_scheduler_kwargs: {min_lr: 1e-6, n: 2, name: ü, use: true}",
            "lr_scheduler_kwargs",
            {"min_lr": 1e-6, "n": 2, "name": "ü", "use": True},
        ),
        ("lr_scheduler_kwargs: '{\"min_lr\": 0.5}'", "lr_scheduler_kwargs", {"min_lr": 0.5}),
        (
            "gradient_checkpointing_kwargs:\n  use_reentrant: no",
            "gradient_checkpointing_kwargs",
            {"use_reentrant": False},
        ),
        ("image_size: null", "image_size", None),
        ("image_size:", "image_size", None),
        ("methods: ~", "methods", ["bce"]),
        ("weight_decay: null", "weight_decay", 0.0),
    ],
)
def test_values(parse, line, name, value):
    it, found = parse(f"# a comment\n{line}\n", image_size=64, methods=["mixup"], weight_decay=0.5)
    found = getattr(found[name], "value", found[name])
    assert found == value
    assert type(found) is type(value)
    unset = line.endswith((":", "null", "~"))
    assert it.given == (set() if unset else {name})


def test_nested_numbers_are_numbers(parse):
    _, found = parse("accelerator_config: {dispatch_batches: false, gradient_accumulation_kwargs: {num_steps: 1}}")
    assert found["accelerator_config"].dispatch_batches is False
    assert found["accelerator_config"].gradient_accumulation_kwargs == {"num_steps": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nnoice_rate: 2", "Unknown option noice_rate in {file}, line 2. --help"),
        ("learning-rat: 2", "Unknown option learning-rat in {file}, line 1 (did you mean 'learning_rate'?)."),
        ("--seed: 2", "Unknown option --seed in {file}, line 1 (did you mean 'seed'?)."),
        ("config: x.yaml", "Unknown option config in {file}, line 1"),
        ("[a, b]: c", "Unknown option [a, b] in {file}, line 1"),
        ("seed: 1\n\nseed: 2", "each option once, found seed again in {file}, line 3."),
        ("image-size: 1\nimage_size: null", "each option once, found image_size again in {file}, line 2."),
        ("- seed: 1", "one `option: value` a line in {file}, found a list."),
        ("seed=1", "found only text."),
        ("seed:1", "found only text. Mind the blank"),
        ("# nothing", "Expected one `option: value` a line in {file}, found nothing."),
        ("seed: 1\nmethods: [bce", "Expected YAML in {file}, line 2, found an error: expected ',' or ']'"),
        ("seed: 1\n\tlearning_rate: 2", "Expected YAML in {file}, line 2, found an error: found character"),
        ("a: 1\n---\nb: 2", "Expected YAML in {file}, line 2, found an error: but found another document"),
        ("seed: \x07", "Expected YAML in {file}, found an error: special characters are not allowed"),
        ("seed: {a: 1}", "Expected a single value as --seed in {file}, line 1, found a mapping."),
        ("output_dir:\n  a: 1", "Expected a single value as --output_dir in {file}, line 2, found a mapping."),
        ("seed: [1]", "Expected a single value as --seed in {file}, line 1, found a list."),
        ("methods:\n- bce\n- [mixup]", "Expected single values as --methods in {file}, line 3, found a list."),
        ("class_names:\n- a\n- null", "Expected single values as --class_names in {file}, line 3, found null."),
        ("seed: much", "Expected a whole number as --seed in {file}, line 1, found 'much'."),
        ("seed: 1.5", "Expected a whole number as --seed in {file}, line 1, found '1.5'."),
        ("learning_rate: fast", "Expected a number as --learning_rate in {file}, line 1, found 'fast'."),
        ("resume: maybe", "Expected true or false as --resume in {file}, line 1, found 'maybe'."),
        (
            "method: mixip",
            "Expected one of bce, mixup as --method in {file}, line 1, found 'mixip' (did you mean 'mixup'?).",
        ),
        ("methods:\n  - bce\n  - yes", "Expected one of bce, mixup as --methods in {file}, line 3, found 'yes'"),
        ("eval_strategy: on", "Expected one of no, steps, epoch as --eval_strategy in {file}, line 1, found 'on'"),
        ("report_to: wandbb", "as --report_to in {file}, line 1, found 'wandbb' (did you mean 'wandb'?)."),
        (
            "lr_scheduler_kwargs: {a: 1, b: {c: 1, c: 2}}",
            "Expected YAML in {file}, line 1, found an error: a key that comes twice",
        ),
        ("lr_scheduler_kwargs: {a: 2024-13-40}", "Expected YAML in {file}, found an error: month must be"),
        ("lr_scheduler_kwargs: {a: !odd 1}", "Expected YAML in {file}, line 1, found an error: could not determine"),
        ("relabel_threshold: 0.4", "`relabel_threshold` between 0.5 and 1"),
    ],
)
def test_a_mistake_in_the_file_is_one_message(parse, tmp_path, text, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse(text)
    assert message.replace("{file}", str(tmp_path / "my options.yaml")) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("data_dir: ü".encode("latin-1"))
    (tmp_path / "bom.yaml").write_text("seed: 3", encoding="utf-8-sig")
    for name, reason in (("none.yaml", "No such file"), (".", "directory"), ("latin.yaml", "no UTF-8 text")):
        with pytest.raises(ValueError, match=rf"YAML file as --config, found '.*' \(.*{reason}.*\)\. Check"):
            parser().parse(["--config", str(tmp_path / name)])
    assert parser().parse([f"--config={tmp_path / 'bom.yaml'}"])[2].seed == 3
    with pytest.raises(ValueError, match=r"--config once, found it with a\.yaml b\.yaml"):
        parser().parse(["--config", "a.yaml", "--config", "b.yaml"])


@pytest.mark.parametrize(
    ("text", "words", "given", "method", "methods"),
    [
        ("method: mixup", ["--methods", "bce", "mixup"], {"methods"}, None, ["bce", "mixup"]),
        ("methods: [bce, mixup]", ["--method", "bce"], {"method"}, "bce", ["bce"]),
        ("method: mixup", ["--method", "bce"], {"method"}, "bce", ["bce"]),
        ("method: mixup\nmethods: [bce]", [], {"method", "methods"}, "mixup", ["bce"]),
        ("seed: 1", ["--method=bce", "--methods=mixup"], {"method", "methods", "seed"}, "bce", ["mixup"]),
    ],
)
def test_of_two_exclusive_options_the_command_line_wins(parse, text, words, given, method, methods):
    it, found = parse(text, *words)
    assert it.given == given
    assert (found["method"], found["methods"]) == (method, methods)


def test_batch_sizes_are_exclusive_too(parse):
    it, found = parse("total_batch_size: 64", "--per_device_train_batch_size", "4")
    assert (found["total_batch_size"], found["per_device_train_batch_size"]) == (None, 4)
    assert it.given == {"per_device_train_batch_size"}
    it, found = parse("per_device_train_batch_size: 4", "--total_batch_size", "64")
    assert (found["total_batch_size"], found["per_device_train_batch_size"]) == (64, 8)


def test_what_was_given_is_known_by_one_name():
    it = parser()
    it.parse(["--no-pretrained", "--learning-rate", "1", "--resume"])
    assert it.given == {"pretrained", "learning_rate", "resume"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sede", "1"], r"Unknown option --sede \(did you mean '--seed'\?\)"),
        (["--method", "bze"], r"Expected one of bce, mixup as --method, found 'bze' \(did you mean 'bce'\?\)\."),
        (["--seed", "x"], "Expected a whole number as --seed, found 'x'"),
        (["--seed"], "each option with its value, found --seed: expected one argument"),
        (["--config"], "each option with its value, found --config: expected one argument"),
        (
            ["--report_to", "wandbb"],
            r"none, all, .*tensorboard.* as --report_to, found 'wandbb' \(did you mean 'wandb'",
        ),
        (["word"], "only options with two dashes and their values, found word"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(words, message):
    with pytest.raises(ValueError, match=message):
        parser().parse(words)


def test_a_word_that_belongs_to_no_option_is_not_taken_for_the_files_last_list(parse):
    with pytest.raises(ValueError, match="only options with two dashes and their values, found mixup"):
        parse("methods: [bce]", "mixup")


def test_report_to_takes_what_is_installed(monkeypatch):
    monkeypatch.setattr(command_line, "get_available_reporting_integrations", lambda: ["tensorboard"])
    assert parser().parse(["--report_to", "tensorboard"])[2].report_to == ["tensorboard"]
    assert parser().parse(["--report_to", "none"])[2].report_to == []
    with pytest.raises(ValueError, match="installed package behind --report_to mlflow, found none"):
        parser().parse(["--report_to", "mlflow"])
    assert "mlflow" in INTEGRATION_TO_CALLBACK


def test_the_help_goes_from_the_recipe_to_the_trainer(capsys, tmp_path):
    for words in (["--help"], ["-h", "--config", str(tmp_path / "none.yaml")], ["--sede", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            parser(image_size=32).parse(words)
        assert stopped.value.code == 0
    shown = capsys.readouterr().out
    names = re.findall(r"^  (?:-h, )?--(\w[\w-]*)", shown[: len(shown) // 3], flags=re.MULTILINE)
    trainer = names.index("output_dir")
    assert names[:2] == ["data_dir", "class_names"]
    assert names[2:8] == ["method", "methods", "total_batch_size", "image_size", "pretrained", "resume"]
    assert {"relabel_threshold", "warmup_epochs", "mix_alpha"} <= set(names[8:trainer])
    used_most = {"do_train", "do_eval", "do_predict", "optim", "optim_args", "lr_scheduler_type", "max_grad_norm"}
    used_most |= {"per_device_eval_batch_size", "fp16", "bf16", "report_to", "seed", "learning_rate"}
    assert used_most <= set(names[trainer:])
    assert names[-3:] == ["config", "help", "help-all"]
    assert "deepspeed" not in names
    assert "Folder. The best." in shown
    assert "Side. [32]" in shown
    assert "--methods {bce,mixup} ..." in shown


def test_the_whole_help_shows_each_option_once(capsys):
    with pytest.raises(SystemExit):
        parser().parse(["--help-all"])
    names = re.findall(r"^  (?:-h, )?--(\w[\w-]*)", capsys.readouterr().out, flags=re.MULTILINE)
    assert len(names) == len(set(names))
    assert {"deepspeed", "no_pretrained", "remove_unused_columns", "data_dir"} <= set(names)


class OursError(RuntimeError):
    """Stands for an error class of the package: the module says where it belongs."""

    __module__ = "hf_balancemix.checks"


class Broken(torch.utils.data.Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise self.error


def load(error, workers):
    list(torch.utils.data.DataLoader(Broken(error), num_workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_ours_is_one_line_wherever_it_was_raised(capsys, monkeypatch, workers):
    monkeypatch.setattr("hf_balancemix.checks.OursError", OursError, raising=False)  # workers send it by name
    with pytest.raises(SystemExit) as stopped:
        run_with_clear_errors(lambda: load(OursError("Expected a picture, found 'a\nb'. Look: at it."), workers))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: Expected a picture, found 'a\nb'. Look: at it.\n"
    with pytest.raises(RuntimeError, match="not ours"):
        run_with_clear_errors(lambda: load(RuntimeError("not ours"), workers))


def test_a_builtin_error_is_ours_if_it_was_raised_in_the_package(capsys):
    with pytest.raises(SystemExit):
        run_with_clear_errors(lambda: weighted_bce(torch.zeros(2, 3), torch.zeros(2, 3), class_reduction="median"))
    assert "median" in capsys.readouterr().err
    with pytest.raises(ValueError, match="invalid literal"):
        run_with_clear_errors(lambda: int("x"))


def test_ctrl_c(capsys):
    def interrupted():
        raise KeyboardInterrupt

    for options, hint in (({}, "To go on: the same command and --resume"), ({"hint": "Try again."}, "Try again.")):
        with pytest.raises(SystemExit) as stopped:
            run_with_clear_errors(interrupted, **options)
        assert stopped.value.code == 130
        assert capsys.readouterr().err == f"\nInterrupted. {hint}\n"
