"""`recipes/digits.py` as a user runs it: results, resume, help, mistakes, two processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from hf_balancemix.recipe import main
from hf_balancemix.recipe.command import read_command
from recipes.digits import RECIPE
from tests.distributed.launch import ROOT, environment

SCRIPT = str(ROOT / "recipes" / "digits.py")
QUICK = ["--num_train_epochs", "2", "--warmup_epochs", "1", "--use_cpu"]


def run(*options, launcher=(sys.executable,), check=True):
    done = subprocess.run(
        [*launcher, SCRIPT, *options], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["runs"]


@pytest.mark.slow
def test_results_snippet_and_resume(tmp_path):
    out = tmp_path / "out"
    done = run(*QUICK, "--output_dir", str(out))
    runs = results(out)
    assert [(r["method"], r["seed"], r["noise"], r["noise_rate"]) for r in runs] == [
        (method, 0, "mislabel", 0.4) for method in ("bce", "mixup", "balancemix")
    ]
    for entry in runs:
        assert 0 < entry["map"] <= 100
        assert entry["map"] == pytest.approx(sum(entry["per_class_ap"].values()) / 17)
        rare = [entry["per_class_ap"][name] for name in ("six", "seven", "eight", "nine")]
        assert entry["groups"] == {"rare": pytest.approx(sum(rare) / 4)}
        assert [epoch["epoch"] for epoch in entry["epochs"]] == [1, 2]
        assert entry["epochs"][-1]["map"] == pytest.approx(entry["map"])
        assert {"torch", "transformers", "hf-balancemix"} <= set(entry["versions"])
        assert entry["settings"]["augmentation"] == "affine"
    assert 0 < runs[2]["epochs"][-1]["label_precision"] <= 1
    assert "label_precision" not in runs[0]["epochs"][-1]
    assert (out / "map_over_epochs.png").stat().st_size > 5000
    for method in ("bce", "mixup", "balancemix"):
        assert f"\n{method} " in done.stdout
    snippet = "\n".join(line.strip() for line in done.stdout.splitlines()[-3:])
    printed = subprocess.run(
        [sys.executable, "-c", snippet], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert printed.returncode == 0, snippet + printed.stderr
    assert printed.stdout.count("'score'") == 5

    again = run(*QUICK, "--output_dir", str(out), check=False)
    assert again.returncode == 2
    assert again.stderr.count("error:") == 1
    assert "--resume" in again.stderr
    assert "Traceback" not in again.stderr
    kept = run(*QUICK, "--output_dir", str(out), "--resume", "--seeds", "2", "--methods", "bce")
    assert "bce, seed 0: finished earlier, kept" in kept.stdout + kept.stderr
    assert results(out)[:3] == runs
    assert [(r["method"], r["seed"]) for r in results(out)[3:]] == [("bce", 1)]


@pytest.mark.slow
def test_ctrl_c_and_resume_give_the_run_that_was_left_alone(tmp_path):
    options = [
        "--method",
        "balancemix",
        "--num_train_epochs",
        "6",
        "--warmup_epochs",
        "2",
        "--use_cpu",
        "--save_steps",
        "5",
    ]
    run(*options, "--output_dir", str(tmp_path / "alone"))
    broken = tmp_path / "broken"
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *options, "--output_dir", str(broken)],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(broken.glob("balancemix-seed0/checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 130, errors
    assert "Kept:" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert not (broken / "results.json").exists()
    run(*options, "--output_dir", str(broken), "--resume")
    alone, resumed = results(tmp_path / "alone")[0], results(broken)[0]
    assert resumed["resumed"]
    assert not alone["resumed"]
    assert resumed["per_class_ap"] == alone["per_class_ap"]
    assert len(resumed["epochs"]) == 6


@pytest.mark.slow
def test_resume_with_other_settings(tmp_path, capsys):
    """A broken-off run is not gone on with under other settings; a finished one stays beside the new one, apart."""
    options = ["--method=bce", "--num_train_epochs=2", "--use_cpu", f"--output_dir={tmp_path}"]
    main(RECIPE, options)
    (first,) = results(tmp_path)
    with pytest.raises(SystemExit):
        main(RECIPE, [*options, "--resume", "--learning_rate=0.001", "--image_size=8"])
    errors = capsys.readouterr().err
    assert "learning_rate was '0.005', is now '0.001'" in errors
    assert "image_size was 16, is now 8" in errors
    assert results(tmp_path) == [first]
    main(RECIPE, [*options, "--resume", "--seed=1", "--noise=flip", "--noise_rate=0.1"])
    assert [run["noise"] for run in results(tmp_path)] == ["mislabel", "flip"]
    table = capsys.readouterr().out
    assert "flip 10%" in table
    assert "1 seed\n" in table


@pytest.mark.slow
def test_two_processes(tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29617")
    out = tmp_path / "out"
    # Not told to use the CPU: the recipe finds out. Else each process would train alone, into one folder.
    run(*QUICK[:-1], "--method", "balancemix", "--output_dir", str(out), launcher=torchrun)
    (entry,) = results(out)
    # The total batch is divided: a step is the same as with one process.
    assert entry["settings"]["images_per_step"] == 64
    assert len(entry["epochs"]) == 2


def test_help_is_short_and_ours_first():
    short, long = run("--help").stdout, run("--help-all").stdout
    assert short.splitlines()[2].startswith("BCE, Mixup and BalanceMix on 1,797 handwritten digits")
    assert len(short.splitlines()) < 160
    assert len(long.splitlines()) > 400
    for name in ("--method", "--noise_rate", "--backbone", "--image_size", "--relabel_threshold", "--warmup_epochs"):
        assert name in short
    assert "--deepspeed" not in short
    assert "--deepspeed" in long


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nois", "flip"], "--nois.*--noise"),
        (["--relabel_treshold=0.9"], "--relabel_treshold.*--relabel_threshold"),
        (["--noise", "mislabel", "--noise_rate", "1.4"], "rate from 0 to 1.*1.4"),
        (["--backbone", "resnet5"], "resnet5.*did you mean"),
        (["--relabel_threshold", "0.4"], "relabel_threshold.*between 0.5 and 1.*0.4"),
        (["-noise", "flip"], "two dashes.*-noise flip.*did you mean '--noise'"),
        (["flip"], "two dashes.*found flip"),
        (["--backbone", "./no/such"], "checkpoint folder.*no folder ./no/such"),
        (["--seeds", "0"], "seeds above 0, found 0"),
        (["--seed", "-1"], "`seed` from 0.*found -1"),
        (["--num_train_epochs", "0"], "num_train_epochs above 0"),
        (["--per_device_train_batch_size", "0"], "`per_device_train_batch_size` of at least 1, found 0"),
        (["--learning_rate", "-1"], "learning_rate above 0"),
        (["--image_size", "0"], "image_size.*at least 8 pixels, found 0"),
        (["--eval_strategy", "no"], "eval_strategy epoch, found no"),
        (["--methods", "bce", "bce"], "each once, found bce bce"),
        (["--method", "bce", "--methods", "mixup"], "--method or --methods"),
        (["--num-train-epochs", "20"], "warmup_epochs below the 20.*found 30: balancemix"),
        (["--methods", "bce", "mixup", "--refinement", "full"], "refinement none with method mixup.*found full"),
        (["--load_best_model_at_end", "True"], "Save strategy"),
        (["--load_best_model_at_end", "True", "--save_strategy", "epoch"], "load_best_model_at_end unset.*flatter"),
        (["--eval_delay", "3"], "eval_delay unset"),
        (["--noise", "none", "--noise_rate", "0.2"], "--noise mislabel or --noise flip with --noise_rate"),
        (["--noise", "flip", "--noise_rate", "nan"], "rate from 0 to 1.*nan"),
        (["--learning_rate", "inf"], "learning_rate above 0, found inf"),
        (["--do_train", "False"], "step to do, found --do_train switched off"),
        (["--label_column", "digit"], "no --label_column with digits"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        main(RECIPE, [*options, "--output_dir", str(tmp_path / "x"), "--use_cpu"])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("error:"))
    assert sum(line.startswith("error:") for line in lines) == 1
    assert re.search(message, " ".join(lines[start:]))
    assert not (tmp_path / "x" / "results.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "mixup", "--num_train_epochs", "2"],
        ["--method", "mixup", "--num_train_epochs", "2", "--refinement", "none"],
        ["--method", "balancemix", "--num_train_epochs", "2", "--max_steps", "9"],
        ["--method", "minority", "--num_train_epochs", "2"],
    ],
)
def test_what_the_options_allow_is_not_refused(tmp_path, options):
    """Warm-up counts only for methods that refine, and not against `max_steps`."""
    command = read_command(RECIPE, [*options, "--output_dir", str(tmp_path), "--use_cpu"])
    assert len(command.plans("digits")) == 1


def test_an_output_dir_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit) as stopped:
            main(RECIPE, ["--output_dir", str(folder), "--use_cpu"])
        assert stopped.value.code == 2
        assert re.match(r"error: Expected an --output_dir that can be written to.*file", capsys.readouterr().err)


def test_an_unknown_choice_names_the_choices(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(RECIPE, ["--method", "balancemiks", "--output_dir", str(tmp_path)])
    assert stopped.value.code == 2
    assert "balancemix" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
