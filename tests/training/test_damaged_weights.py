"""Weights of a checkpoint that are missing, damaged or another model's: one clear error, nothing drawn at random."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from hf_balancemix import MultiLabelTrainer
from hf_balancemix.training.co_teaching import CoTeachingTrainer
from hf_balancemix.training.network_pair import SECOND_NETWORK
from tests import tiny

WEIGHTS = "model.safetensors"


def make(folder, cls):
    second = "batch" if cls is CoTeachingTrainer else "none"
    args = tiny.arguments(folder, second_sampler=second, save_strategy="steps", save_steps=2, max_steps=3)
    return cls(tiny.tiny_vit(), args, train_dataset=tiny.tiny_dataset(16), processing_class=tiny.processor())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folders = {}
    for cls in (MultiLabelTrainer, CoTeachingTrainer):
        folders[cls] = tmp_path_factory.mktemp(cls.__name__)
        make(folders[cls], cls).train()
    return folders


def without_weights(folder):
    (folder / WEIGHTS).unlink()


def truncated(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:300])


def bad_config(folder):
    (folder / "config.json").write_text("{", encoding="utf-8")


def without_a_tensor(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["classifier.bias"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def other_size(folder):
    tiny.tiny_vit(num_labels=3).save_pretrained(folder)


def other_model(folder):
    tiny.tiny_resnet().save_pretrained(folder)


DAMAGES = (without_weights, truncated, bad_config, without_a_tensor, other_size, other_model)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("cls", [MultiLabelTrainer, CoTeachingTrainer])
def test_resuming(tmp_path, checkpoints, cls, damage):
    checkpoint = tmp_path / "größe 'x'" / "checkpoint-2"
    shutil.copytree(checkpoints[cls] / "checkpoint-2", checkpoint)
    folder = checkpoint / SECOND_NETWORK if cls is CoTeachingTrainer else checkpoint
    damage(folder)
    parts = ("weights of this ViTForImageClassification in", f"{folder}, found none", "another checkpoint")
    tiny.refused(ValueError, parts, make(checkpoint.parent, cls).train, checkpoint)


def test_resuming_without_a_second_network(tmp_path, checkpoints):
    shutil.copytree(checkpoints[CoTeachingTrainer] / "checkpoint-2", tmp_path / "checkpoint-2")
    shutil.rmtree(tmp_path / "checkpoint-2" / SECOND_NETWORK)
    parts = (f"with a network in {SECOND_NETWORK}/", "not complete")
    tiny.refused(ValueError, parts, make(tmp_path, CoTeachingTrainer).train, tmp_path / "checkpoint-2")
