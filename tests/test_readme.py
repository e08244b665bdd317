"""What the README says can be run: its ten lines, its options, its file names."""

import argparse
import re
import subprocess

import datasets
from accelerate.commands.launch import launch_command_parser
from datasets import load_dataset  # noqa: F401 - the README's code imports it
from torch.distributed.run import get_args_parser as torchrun_parser

from hf_balancemix import BalanceMixTrainingArguments
from hf_balancemix.benchmark.command import benchmark_parser
from hf_balancemix.cli.main import _COMMANDS
from hf_balancemix.command_line import RecipeParser
from hf_balancemix.compare.command import comparison_parser
from hf_balancemix.modeling.heads import HEADS
from hf_balancemix.recipe.options import RecipeArguments
from hf_balancemix.training.methods import METHODS
from recipes import coco, folder, voc
from tests import tiny
from tests.distributed.launch import ROOT, environment

README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_ten_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.tiny_resnet(2).save_pretrained("backbone")
    tiny.processor().save_pretrained("backbone")
    rows = tiny.tiny_dataset(40)
    names = rows.features["labels"].feature
    pictures = rows.cast_column("image", datasets.Image(decode=True))
    for split, part in (("train", range(24)), ("test", range(24, 40))):
        folder = tmp_path / "my_pictures" / split
        folder.mkdir(parents=True)
        lines = []
        for i in part:
            pictures[i]["image"].save(folder / f"{i}.png")
            labels = ", ".join(f'"{names.int2str(k)}"' for k in rows[i]["labels"])
            lines.append(f'{{"file_name": "{i}.png", "labels": [{labels}]}}')
        (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    lines, noise = code_blocks("python")
    assert len([line for line in lines.splitlines() if line]) <= 12
    lines = lines.replace("microsoft/resnet-50", str(tmp_path / "backbone")).replace("=12", f"={len(tiny.NAMES)}")
    lines = lines.replace("num_train_epochs=40, warmup_epochs=8", "num_train_epochs=2, warmup_epochs=1, use_cpu=True")
    lines = lines.replace('"out"', '"out", report_to="none"')
    scope = {}
    exec(compile(lines, "README", "exec"), scope)
    assert (tmp_path / "my_model" / "model.safetensors").is_file()
    assert scope["trainer"].state.global_step == 6
    assert scope["trainer"].state.log_history[-1]["epoch"] == 2
    exec(compile(noise, "README", "exec"), scope)
    assert sum(map(sum, scope["noisy"]["noise_mask"])) > 0


def test_options_methods_and_files_exist():
    fields = BalanceMixTrainingArguments.__dataclass_fields__
    for name in re.findall(r"`(\w+)=", README):
        assert name in fields or name in ("resume_from_checkpoint", "trust_remote_code"), name
    for first in ("| Mixup, ablation", "| compared methods"):
        row = next(line for line in README.splitlines() if line.startswith(first))
        for name in re.findall(r"`(?:--method )?(\w+)`", row):
            assert name in METHODS, name
    section = README.split("## Methods and heads")[1].split("\n## ")[0]
    tables = {"method": list(METHODS), "head": list(HEADS)}
    for flag, names in tables.items():
        rows = section.split(f"| `--{flag}` |")[1].split("\n\n")[0].splitlines()[2:]
        assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])) == sorted(names)
    for path in re.findall(r"`((?:method|training|data)/\w+\.py|losses|metrics\.py)`", README):
        assert (ROOT / "hf_balancemix" / path.removesuffix(".py")).with_suffix(".py").is_file(), path


def test_every_option_in_the_documents_exists():
    known = {"nodes", "ntasks_per_node", "gpus_per_node", "cpus_per_task", "time", "requeue"}  # of SLURM
    benchmarks = benchmark_parser()._subparsers._group_actions[0].choices.values()
    for other in (torchrun_parser(), launch_command_parser(), *benchmarks):
        known |= {action.dest for action in other._actions}
    for recipe in (coco.RECIPE, voc.RECIPE, folder.RECIPE):
        kinds = [recipe.data, RecipeArguments, BalanceMixTrainingArguments]
        known |= {a.dest for a in RecipeParser(kinds, recipe.defaults, "").parser._actions}
    for command in _COMMANDS.values():
        parser = argparse.ArgumentParser()
        command.add_options(parser)
        known |= {action.dest for action in parser._actions}
    known |= {action.dest for action in comparison_parser()._actions}
    documents = README + (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    named = {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z0-9_-]+)", documents)}
    assert named >= {"data_dir", "noise", "config", "on_bad_image"}
    assert named <= known, named - known


def test_ci_runs_what_the_readme_says():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'pip install -e ".[test]"' in README
    assert '-e ".[test]"' in ci
    assert "python -m pytest" in README
    assert "python -m pytest" in ci
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True, env=environment())
