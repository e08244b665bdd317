"""The house rules: who may import whom, how long files and functions may be."""

import ast
import statistics
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_balancemix"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
# From the top down: a module may import what stands in its own line or below it.
LAYERS = (
    ("__init__", "__main__"),
    ("cli",),
    ("compare", "benchmark"),
    ("recipe",),
    ("command_line",),
    ("config_file",),
    ("training",),
    ("predict",),
    ("reports", "hub", "export"),
    ("export_formats",),
    ("data", "build", "evaluate_metric"),
    ("backbones", "modeling"),
    ("label_state",),
    ("report", "thresholds"),
    ("method", "losses", "metrics", "label_files", "label_packing"),
    ("checks", "argument_checks", "connection", "drawing"),
    ("messages",),
    ("version",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
PURE = {"torch", "numpy", "sklearn"}
# pandas comes with datasets, is slow to import, and one method needs it; onnxruntime is of an optional extra; drawing
# imports matplotlib, which a report without a plot does not need.
ALLOWED_INSIDE = {"pandas", "onnxruntime", "hf_balancemix.drawing"}


def imports(path):
    """(module, inside a function?) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            if room(path) == "modeling" and node.level == 1:
                continue  # these files travel with a checkpoint, side by side and without the package
            assert node.level == 0, f"{path}: relative import"
            # `from hf_balancemix import checks` means the module
            whole = node.module == "hf_balancemix"
            for module in [f"{node.module}.{alias.name}" for alias in node.names] if whole else [node.module]:
                yield module, id(node) in inside


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_its_place():
    assert {room(path) for path in FILES} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    for module, inside in imports(path):
        top = module.split(".")[0]
        if top == "hf_balancemix":
            parts = module.split(".")
            assert len(parts) > 1, f"{path.name} imports the package itself"
            target = parts[1]
            allowed = target == room(path) or LEVEL[target] > LEVEL[room(path)]
            assert allowed, f"{path.name} imports {module}, which stands above it"
        assert not inside or module in ALLOWED_INSIDE, f"{path.name} imports {module} inside a function"


@pytest.mark.parametrize(
    "path", [p for p in FILES if room(p) in ("method", "losses", "metrics")], ids=lambda p: p.name
)
def test_pure_rooms_import_no_framework(path):
    import sys

    for module, _ in imports(path):
        top = module.split(".")[0]
        assert top in PURE | {"hf_balancemix"} | set(sys.stdlib_module_names), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", [p for p in FILES if room(p) == "modeling"], ids=lambda p: p.name)
def test_modeling_imports_nothing_of_ours(path):
    assert not [module for module, _ in imports(path) if module.startswith("hf_balancemix")]


def test_files_are_short():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert max(lengths.values()) <= 350, [str(p) for p, n in lengths.items() if n > 350]
    assert statistics.median(n for n in lengths.values() if n > 3) <= 150


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_fit_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno - body[0].lineno + 1) if body else 0
            assert length <= 60, f"{path.name}: {node.name} has {length} lines"


def test_trainers_override_at_most_ten_methods():
    from transformers import Trainer

    from hf_balancemix import BalanceMixTrainer, CoTeachingTrainer, MultiLabelTrainer, TEstimatorTrainer
    from hf_balancemix.training.resumable import ResumableTrainer

    for trainer in (ResumableTrainer, MultiLabelTrainer, BalanceMixTrainer, CoTeachingTrainer, TEstimatorTrainer):
        own = [name for name, value in vars(trainer).items() if callable(value) and name in dir(Trainer)]
        own = [name for name in own if name not in ("__init__", "__module__", "__doc__")]
        assert len(own) <= 10, own
    assert BalanceMixTrainer.__mro__[3] is Trainer
