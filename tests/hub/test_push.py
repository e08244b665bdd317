"""Pushes of a trainer to the stand-in Hub, through the real client: what is there after each commit."""

import json
import re
import subprocess
import sys
import threading

import pytest
from huggingface_hub import ModelCard
from transformers import TrainerCallback

from hf_balancemix import BalanceMixTrainer, CoTeachingTrainer, MultiLabelTrainer
from hf_balancemix.build import build_model
from hf_balancemix.hub.contents import Contents, model_contents
from hf_balancemix.hub.push import Destination
from hf_balancemix.training.pushing import Pushing
from tests.distributed.launch import ROOT, environment
from tests.tiny import NAMES, SIZE, arguments, processor, refused, same_weights, tiny_dataset, tiny_resnet, weights_of

MODEL = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
CODE = {"configuration_balancemix.py", "heads.py", "layers.py", "modeling_balancemix.py"}
RESUMING = {"label_state.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


def trainer_for(folder, kind=BalanceMixTrainer, model=None, image_processor=None, **changes):
    options = {"push_to_hub": True, "save_strategy": "epoch", "eval_strategy": "epoch", "logging_strategy": "epoch"}
    return kind(
        tiny_resnet() if model is None else model,
        arguments(folder, **(options | changes)),
        train_dataset=tiny_dataset(),
        eval_dataset=tiny_dataset(seed=1),
        processing_class=image_processor or processor(),
    )


class _StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.step


def paths(files):
    return set(files) - {".gitattributes"}


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_every_strategy(hub, tmp_path, strategy):
    trainer = trainer_for(tmp_path / "model", hub_strategy=strategy, hub_always_push=True)
    trainer.train()
    commit = trainer.push_to_hub()
    repository = hub.model("tester/model")
    _, *commits = repository.commits
    assert commit.oid == commits[-1][0]
    during = [] if strategy == "end" else [f"Training in progress, epoch {epoch}" for epoch in (1, 2)]
    assert [message for _, message, _ in commits] == [*during, "End of training"]
    wholes = {
        "end": [[]],
        "every_save": [[], [], []],
        "checkpoint": [["last-checkpoint"]] * 3,
        "all_checkpoints": [["checkpoint-6"], ["checkpoint-6", "checkpoint-12"], ["checkpoint-6", "checkpoint-12"]],
    }[strategy]
    for (_, message, files), folders in zip(commits, wholes, strict=True):
        resuming = {f"{folder}/{name}" for folder in folders for name in RESUMING | MODEL - {"README.md"}}
        assert paths(files) == MODEL | resuming, message
    local = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert repository.files["model.safetensors"] == local
    if strategy != "end":  # the pushes were of other states
        assert commits[0][2]["model.safetensors"] != local
        assert "The model after 1 of 2 planned epochs." in commits[0][2]["README.md"].decode()
    assert "planned epochs" not in repository.files["README.md"].decode()
    contents = b"\n".join(repository.files.values())
    assert str(tmp_path).encode() not in contents
    assert not list((tmp_path / "model").glob("_push-*"))


def test_the_last_checkpoint_of_the_hub_resumes_as_the_local_one_does(hub, tmp_path):
    alone = trainer_for(tmp_path / "alone", push_to_hub=False, num_train_epochs=3)
    alone.train()
    trainer = trainer_for(tmp_path / "first", hub_strategy="checkpoint", num_train_epochs=3, max_steps=18)
    trainer.add_callback(_StopAfter(12))
    trainer.train()
    assert trainer.state.global_step == 12
    elsewhere = tmp_path / "elsewhere"
    for name, content in hub.model("tester/first").files.items():
        if name.startswith("last-checkpoint/"):
            (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
            (elsewhere / name).write_bytes(content)
    resumed = trainer_for(tmp_path / "resumed", push_to_hub=False, num_train_epochs=3)
    resumed.train(resume_from_checkpoint=str(elsewhere / "last-checkpoint"))
    assert resumed.state.global_step == 18
    assert same_weights(weights_of(alone.model), weights_of(resumed.model))


def test_checkpoints_that_are_replaced_and_removed_meanwhile(hub, tmp_path):
    """With one checkpoint kept, the training removes that of a push under way; the push holds it all the same."""
    trainer = trainer_for(
        tmp_path / "model",
        hub_strategy="all_checkpoints",
        save_total_limit=1,
        hub_always_push=True,
        num_train_epochs=4,
    )
    trainer.train()
    assert [path.name for path in (tmp_path / "model").glob("checkpoint-*")] == ["checkpoint-24"]
    trainer.push_to_hub()
    pushed = {name.partition("/")[0] for name in hub.model("tester/model").files if name.startswith("checkpoint")}
    assert pushed == {"checkpoint-6", "checkpoint-12", "checkpoint-18", "checkpoint-24"}


def test_without_a_final_push_the_last_state_is_on_the_hub(hub, tmp_path):
    """The stock Trainer passes over saves while a push is under way, be it the last one."""
    trainer = trainer_for(tmp_path / "model", num_train_epochs=5)
    trainer.train()
    local = tmp_path / "model" / "checkpoint-30" / "model.safetensors"
    assert hub.model("tester/model").files["model.safetensors"] == local.read_bytes()


def test_the_best_model_has_its_own_scores_on_the_card_and_is_on_the_hub(hub, tmp_path):
    options = {"load_best_model_at_end": True, "metric_for_best_model": "map", "greater_is_better": False}
    trainer = trainer_for(tmp_path / "model", num_train_epochs=4, save_total_limit=1, **options)
    trainer.train()
    maps = {log["step"]: log["eval_map"] for log in trainer.state.log_history if "eval_map" in log}
    best = trainer.state.best_global_step
    assert maps[best] == min(maps.values()) < maps[24]
    local = tmp_path / "model" / f"checkpoint-{best}" / "model.safetensors"
    assert hub.model("tester/model").files["model.safetensors"] == local.read_bytes()
    trainer.push_to_hub()
    card = ModelCard(hub.model("tester/model").files["README.md"].decode())
    assert card.data.eval_results[0].metric_value == round(maps[best], 2)


def test_save_model_pushes_as_the_stock_trainer_does(hub, tmp_path):
    trainer = trainer_for(tmp_path / "model", hub_strategy="end", hub_model_id="tester/other", hub_private_repo=True)
    trainer.save_model()
    repository = hub.model("tester/other")
    assert repository.private
    assert paths(repository.files) == MODEL
    assert repository.commits[-1][1] == "Model save"


def test_a_script_that_does_not_wait_still_pushes(hub, tmp_path):
    script = "\n".join(
        (
            "from pathlib import Path",
            "from tests.hub.test_push import trainer_for",
            f"trainer = trainer_for(Path({str(tmp_path / 'model')!r}), push_to_hub=False)",
            "trainer.push_to_hub(blocking=False)",
        )
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment(), check=True, capture_output=True)
    assert paths(hub.model("tester/model").files) == MODEL


def test_a_push_is_not_held_by_workers_that_start_meanwhile(hub, tmp_path):
    """A process that is started while a thread starts the upload would inherit the upload's pipes."""
    begun = []
    start = subprocess.Popen.__init__

    def noted(self, *args, **kwargs):
        begun.append(threading.current_thread())
        start(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", noted)
        trainer_for(tmp_path / "model", hub_always_push=True).train()
    assert len(begun) == 3  # the repository and two checkpoints
    assert set(begun) == {threading.main_thread()}


def test_push_without_the_option_and_without_waiting(hub, tmp_path):
    trainer = trainer_for(tmp_path / "model", push_to_hub=False)
    future = trainer.push_to_hub("By hand", blocking=False, revision="try", license="mit", tags="mine")
    assert future.result(60).repo_id == "tester/model"
    _, (_, message, files) = hub.model("tester/model").commits
    assert message == "By hand"
    card = ModelCard(files["README.md"].decode()).data
    assert card.license == "mit"
    assert "mine" in card.tags
    assert paths(hub.model("tester/model").files) == set()  # of the main branch
    assert paths(hub.model("tester/model").branches["try"][2]) == MODEL


def test_code_of_a_head_second_network_and_average_travel(hub, tmp_path):
    model, image_processor = build_model("small_resnet", NAMES, SIZE, pretrained=False, head="ml_decoder")
    trainer = trainer_for(
        tmp_path / "decoder", MultiLabelTrainer, model, image_processor, second_sampler="none", num_train_epochs=1
    )
    trainer.train()
    assert paths(hub.model("tester/decoder").commits[1][2]) == MODEL | CODE
    pair = trainer_for(tmp_path / "pair", CoTeachingTrainer, second_sampler="none", ema_decay=0.5, num_train_epochs=1)
    pair.train()
    pair.push_to_hub()
    inner = MODEL - {"README.md"}
    files = paths(hub.model("tester/pair").files)
    assert MODEL | {f"second_network/{name}" for name in inner - {"preprocessor_config.json"}} <= files
    assert {f"ema/{name}" for name in inner} <= files
    assert not [name for name in files if "label" in name or "optimizer" in name]


def test_names_that_cannot_be_on_the_hub_are_refused_before_training(hub, tmp_path):
    for folder in ("mein Modell", "模型"):
        refused(ValueError, ["a name on the Hub", folder, "hub_model_id"], trainer_for, tmp_path / folder)
    assert not hub.requests


def test_only_what_makes_a_model_is_pushed(tmp_path):
    """Other scripts, results of predictions and folders of the user stay at home."""
    trainer_for(tmp_path, push_to_hub=False).save_model()
    for name in ("train.py", "predictions.csv", "notes.txt", "label_state.safetensors", "secret.json"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
    (tmp_path / "README.md").write_text('model="." and text', encoding="utf-8")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config |= {"_name_or_path": str(tmp_path / "start"), "id2label": {"0": "/m/01g317"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    contents = model_contents(tmp_path)
    assert contents.files.keys() | contents.texts.keys() == MODEL
    assert json.loads(contents.texts["config.json"]) == config | {"_name_or_path": "path/to/start"}


def test_the_wait_grows_with_the_size_and_the_command_can_be_pasted(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(3_000_000))
    contents = Contents({"weights": str(tmp_path / "weights")})
    assert contents.seconds() == pytest.approx(123)
    command = Destination("me/it", private=True, revision="b").command("a folder/it's")
    assert command == """hf-balancemix push 'a folder/it'"'"'s' me/it --private --revision b"""
    assert Destination("me/it").command("a", "every_save") == "hf-balancemix push a me/it"
    command = Destination("me/it").command("a", "all_checkpoints")
    assert command == "hf-balancemix push a me/it --hub_strategy all_checkpoints"
    assert "hf_secret" not in repr(Destination("me/it", token="hf_secret"))


def test_the_token_reaches_neither_files_nor_command_lines(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    trainer = trainer_for(tmp_path / "model", hub_token="hf_stand_in", hub_strategy="end")
    trainer.train()
    trainer.push_to_hub()
    files = hub.model("tester/model").files
    assert paths(files) == MODEL
    assert not re.search(rb"hf_stand_in", b"".join(files.values()))


def test_left_overs_of_a_killed_push_are_removed(hub, tmp_path):
    left = tmp_path / "model" / "_push-abc"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"x")
    trainer = trainer_for(tmp_path / "model")
    assert isinstance(trainer.pushing, Pushing)
    assert not left.exists()
