"""`hf-balancemix push`, as a user types it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from hf_balancemix.cli.main import main
from hf_balancemix.hub import push as push_module
from tests.distributed.launch import ROOT, environment
from tests.hub import conftest
from tests.hub.server import Fault
from tests.hub.test_push import MODEL, paths, trainer_for

hub = conftest.hub


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, with a quotation mark and a space in its name, and a checkpoint in it."""
    folder = tmp_path_factory.mktemp("runs") / "Jane's run"
    trainer = trainer_for(folder, push_to_hub=False, num_train_epochs=1, warmup_epochs=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    return folder


def fails(capsys, *words):
    with pytest.raises(SystemExit) as left:
        main(["push", *words])
    errors = capsys.readouterr().err
    assert left.value.code == 2
    assert errors.count("error:") == 1
    assert "Traceback" not in errors
    return errors


def test_a_run_and_a_checkpoint(hub, trained, capsys):
    main(["push", str(trained), "tester/it", "--private"])
    repository = hub.model("tester/it")
    assert capsys.readouterr().out == f"pushed: {hub.url}/tester/it/commit/{repository.commits[-1][0]}\n"
    assert repository.private
    assert paths(repository.files) == MODEL
    assert 'model="tester/it"' in repository.files["README.md"].decode()
    main(["push", str(trained / "checkpoint-6"), "it", "--revision", "early"])
    assert len(repository.branches) == 2
    assert paths(repository.branches["early"][2]) == MODEL  # it began as a copy of the main branch
    assert (
        repository.branches["early"][2]["model.safetensors"]
        == (trained / "checkpoint-6" / "model.safetensors").read_bytes()
    )
    main(["push", str(trained), "tester/it", "--revision=early"])  # a branch that is there
    main(["push", str(trained), "tester/all", "--hub_strategy", "all_checkpoints"])
    assert {path.split("/")[0] for path in hub.model("tester/all").files} >= {"checkpoint-6", "config.json"}
    main(["push", str(trained / "checkpoint-6"), "tester/last", "--hub_strategy", "checkpoint"])
    last = paths(hub.model("tester/last").files)
    assert last >= {"last-checkpoint/trainer_state.json", "last-checkpoint/optimizer.pt", "config.json"}
    assert "last-checkpoint/training_args.bin" not in last
    assert repository.files["config.json"] == repository.branches["early"][2]["config.json"]


def test_mistakes(hub, trained, capsys, tmp_path, monkeypatch):
    assert "found no folder" in fails(capsys, str(tmp_path / "nothing"), "tester/it")
    assert "found none in" in fails(capsys, str(tmp_path), "tester/it")
    errors = fails(capsys, str(trained.parent), "tester/it")
    assert "Name one of its folders: Jane's run." in errors
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert "config.json and weights" in fails(capsys, str(tmp_path), "tester/it")
    (tmp_path / "model.safetensors").write_bytes(b"")
    for broken in ("{", "[1]", ""):
        (tmp_path / "config.json").write_text(broken, encoding="utf-8")
        assert "configuration in JSON" in fails(capsys, str(tmp_path), "tester/it")
    for name in ("a/b/c", "with space", "x" * 100, "me/..it", ""):
        assert "Expected a name on the Hub" in fails(capsys, str(trained), name)
    assert "required: REPO_ID" in fails(capsys, str(trained))
    assert "--revision" in fails(capsys, str(trained), "tester/it", "--revison", "x")
    assert not hub.requests
    monkeypatch.setattr(push_module, "get_token", lambda: None)
    monkeypatch.setenv("HF_TOKEN", "")
    assert "there is none (401" in fails(capsys, str(trained), "tester/it")
    monkeypatch.undo()


def test_the_hub_says_no(hub, trained, capsys):
    for status, said in ((403, "does not accept"), (404, "Check name and branch"), (500, "Try again later")):
        hub.faults = [Fault("POST", "/api/repos/create", status)]
        assert said in fails(capsys, str(trained), "other/it")


@pytest.mark.slow
def test_ctrl_c_ends_it_and_its_upload(hub, trained):
    hub.faults = [Fault("PUT", "^/lfs/", "hang", 99)]
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_balancemix", "push", str(trained), "tester/it"],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal sends it to the whole group
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not any(path.startswith("/lfs/") for _, path in hub.requests):
        assert process.poll() is None
        time.sleep(0.02)
    uploads = psutil.Process(process.pid).children()
    assert len(uploads) == 1
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "To make sure: the same command again" in errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(uploads, timeout=10)
    assert not alive
    assert paths(hub.model("tester/it").files) == set()
