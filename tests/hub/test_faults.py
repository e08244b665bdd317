"""What goes wrong on the way to the Hub never goes wrong in the training, and can be made good later."""

import logging
import math
import shlex
import shutil
import socket
import time

import pytest

from hf_balancemix.cli.main import main
from hf_balancemix.hub import push as push_module
from hf_balancemix.hub.contents import Contents
from hf_balancemix.hub.push import Destination, PushError, Upload, push
from tests.hub.server import Fault
from tests.hub.test_push import MODEL, RESUMING, paths, trainer_for
from tests.tiny import refused, same_weights, weights_of

ALWAYS = math.inf
CREATE, UPLOAD, COMMIT = "/api/repos/create", "^/lfs/", "/commit/"
# What goes wrong for good, and what the user is told of it.
FAULTS = {
    "no token": ([Fault("POST", CREATE, 401, ALWAYS)], "does not accept the access token"),
    "forbidden": ([Fault("POST", COMMIT, 403, ALWAYS)], "403"),
    "rate limit": ([Fault("POST", COMMIT, 429, ALWAYS)], "the Hub answered 429"),
    "server error": ([Fault("POST", CREATE, 500, ALWAYS)], "the Hub answered 500"),
    "server error later": ([Fault("PUT", UPLOAD, 503, ALWAYS)], "after 4 seconds (HTTP Error 503"),
    "cut": ([Fault("PUT", UPLOAD, "cut", ALWAYS)], "thrown while requesting PUT"),
    "no answer": ([Fault("POST", CREATE, "hang", ALWAYS)], "it was not done after 4 seconds."),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of the same run without a Hub."""
    trainer = trainer_for(tmp_path_factory.mktemp("undisturbed"), push_to_hub=False)
    trainer.train()
    return weights_of(trainer.model)


def commands(caplog):
    """The commands in what was logged."""
    lines = [line.strip() for record in caplog.records for line in record.getMessage().splitlines()]
    return [line for line in lines if line.startswith("hf-balancemix push")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_for_good(hub, impatient, tmp_path, undisturbed, caplog, kind, capsys):
    hub.faults, said = FAULTS[kind][0].copy(), FAULTS[kind][1]
    start = time.monotonic()
    trainer = trainer_for(tmp_path / "model", hub_strategy="checkpoint", hub_model_id="tester/model")
    trainer.pushing.final_follows = True  # one report, not two
    trainer.train()
    assert trainer.push_to_hub() is None
    assert time.monotonic() - start < 30
    assert same_weights(undisturbed, weights_of(trainer.model))
    warnings = [record.getMessage() for record in caplog.records if "on the Hub" in record.getMessage()]
    assert len(warnings) == 1, warnings
    assert "The training goes on" in warnings[0]
    assert said in trainer.pushing.unpushed
    assert said in warnings[0]
    command = shlex.split(trainer.pushing.unpushed.splitlines()[-1])
    words = [str(tmp_path / "model"), "tester/model", "--hub_strategy", "checkpoint"]
    assert command == ["hf-balancemix", "push", *words]
    assert {f"checkpoint-{step}" for step in (6, 12)} <= {path.name for path in (tmp_path / "model").iterdir()}
    hub.faults = []
    main(command[1:])
    assert capsys.readouterr().out.splitlines()[-1].startswith("pushed: http")
    files = hub.model("tester/model").files
    assert paths(files) == MODEL | {f"last-checkpoint/{name}" for name in RESUMING | MODEL - {"README.md"}}
    assert files["model.safetensors"] == (tmp_path / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "fault",
    [Fault("POST", CREATE, 500), Fault("PUT", UPLOAD, "cut"), Fault("POST", COMMIT, 429), Fault("POST", "preup", 401)],
    ids=lambda fault: f"{fault.kind} {fault.path}",
)
def test_a_fault_that_passes_is_made_good_by_the_end(hub, tmp_path, fault):
    hub.faults = [fault]
    trainer = trainer_for(tmp_path / "model")
    trainer.train()
    local = tmp_path / "model" / "checkpoint-12" / "model.safetensors"
    assert hub.model("tester/model").files["model.safetensors"] == local.read_bytes()
    assert trainer.pushing.unpushed is None


def test_without_a_final_push_the_report_comes_after_training(hub, tmp_path, caplog):
    hub.faults = [Fault("POST", CREATE, 500, ALWAYS)]
    trainer = trainer_for(tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        trainer.train()
    first, *_, last = [record.getMessage() for record in caplog.records if "Hub" in record.getMessage()]
    assert "The training goes on" in first
    assert f"The model is in {tmp_path / 'model' / 'checkpoint-12'}, but not on the Hub" in last
    assert commands(caplog) == [f"hf-balancemix push {tmp_path / 'model' / 'checkpoint-12'} model"]


def test_no_network(hub, tmp_path, monkeypatch, undisturbed):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        start = time.monotonic()
        trainer = trainer_for(tmp_path / "model", hub_strategy="end")
        trainer.train()
        assert trainer.push_to_hub() is None
    assert time.monotonic() - start < 15
    assert same_weights(undisturbed, weights_of(trainer.model))
    assert "Check the connection to http://127.0.0.1:" in trainer.pushing.unpushed
    assert trainer.pushing.unpushed.endswith(f"hf-balancemix push {tmp_path / 'model'} model")  # nobody said whose


def test_a_disk_that_is_full(hub, tmp_path, monkeypatch):
    trainer = trainer_for(tmp_path / "model", hub_strategy="end")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    assert trainer.push_to_hub() is None
    assert "No space left on device" in trainer.pushing.unpushed


def test_a_card_that_the_hub_refuses_is_named(hub, tmp_path):
    trainer = trainer_for(tmp_path / "model", push_to_hub=False)
    assert trainer.push_to_hub(license="Apache") is None
    assert 'refuses the card (Invalid metadata in README.md. - "license" must be one of' in trainer.pushing.unpushed
    assert "Correct the lines at the top of its README.md" in trainer.pushing.unpushed


def test_files_that_are_removed_meanwhile_end_no_training(hub, tmp_path, monkeypatch, undisturbed):
    """Another trainer in the same folder takes the linked files for left-overs."""
    trainer = trainer_for(tmp_path / "model", hub_always_push=True)
    run = Upload.run

    def removed(self, contents, *args):
        for folder in (tmp_path / "model").glob("_push-*"):
            shutil.rmtree(folder)
        return run(self, contents, *args)

    monkeypatch.setattr(Upload, "run", removed)
    trainer.train()
    assert same_weights(undisturbed, weights_of(trainer.model))
    assert trainer.push_to_hub() is None
    assert "it broke off" in trainer.pushing.unpushed


def test_a_repository_of_another_name_has_a_card_that_names_it(hub, tmp_path):
    hub.faults = [Fault("POST", CREATE, 403, ALWAYS)]
    trainer = trainer_for(tmp_path / "model", hub_model_id="someone/else")
    trainer.train()
    command = shlex.split(trainer.pushing.unpushed.splitlines()[-1])
    hub.faults = []
    main([*command[1:3], "tester/own"])
    assert 'model="tester/own"' in hub.model("tester/own").files["README.md"].decode()


def test_no_token_and_a_wrong_one(hub, monkeypatch):
    monkeypatch.setattr(push_module, "get_token", lambda: None)
    monkeypatch.setenv("HF_TOKEN", "")
    nothing = Contents({}, {"README.md": "text"})
    refused(
        PushError, ["wants an access token, and there is none", "hf auth login"], push, nothing, Destination("m"), "m"
    )
    wrong = Destination("m", token="hf_wrong")
    refused(PushError, ["does not accept the access token (401", "HF_TOKEN"], push, nothing, wrong, "m")


def test_offline_mode_counts_if_the_user_set_it(hub, monkeypatch):
    nothing = Contents({}, {"README.md": "text"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as `prepare_hub` does where the Hub did not answer at the start
    assert push(nothing, Destination("m"), "m").repo_id == "tester/m"
    monkeypatch.setattr(push_module, "_OFFLINE", "1")
    refused(PushError, ["offline mode"], push, nothing, Destination("m"), "m")
