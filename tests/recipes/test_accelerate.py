"""The configurations for `accelerate launch`: accelerate takes each, and starts what its first lines say."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate"
# The launcher, processes per machine, and machines.
STARTS = {
    "cpu.yaml": ("multi_gpu", 2, 1),
    "ddp.yaml": ("multi_gpu", 8, 1),
    "ddp_machines.yaml": ("multi_gpu", 8, 2),
    "fsdp2.yaml": ("use_fsdp", 8, 1),
    "deepspeed_zero2.yaml": ("use_deepspeed", 8, 1),
}


def test_every_file_is_known():
    assert {path.name for path in FOLDER.iterdir()} == set(STARTS)


@pytest.mark.parametrize("name", STARTS)
def test_accelerate_starts_what_the_file_says(name, monkeypatch):
    path = FOLDER / name
    assert isinstance(load_config_from_file(str(path)), ClusterConfig)  # which refuses unknown keys
    assert f"recipes/accelerate/{name}" in path.read_text(encoding="utf-8")
    words = ["--config_file", str(path), "recipes/digits.py", "--use_cpu"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    launcher, processes, machines = STARTS[name]
    kinds = ("multi_gpu", "use_fsdp", "use_deepspeed", "cpu", "tpu")
    assert [kind for kind in kinds if getattr(args, kind)] == [launcher]
    assert (args.num_processes, args.num_machines) == (processes * machines, machines)
    assert args.training_script_args == ["--use_cpu"]
    if launcher == "use_deepspeed":
        assert (args.zero_stage, args.offload_optimizer_device) == (2, "none")
        return
    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)
    env = prepare_multi_gpu_env(args)
    assert args.nproc_per_node == str(processes)
    if launcher == "use_fsdp":
        wanted = {"VERSION": "2", "AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "STATE_DICT_TYPE": "FULL_STATE_DICT"}
        assert {key: env[f"FSDP_{key}"] for key in wanted} == wanted
