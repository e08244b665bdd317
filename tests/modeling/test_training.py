"""Models with a head of ours under the trainers: steps, checkpoints, a resumed run, what decays, what is frozen."""

import shutil

import pytest
import torch

from hf_balancemix import BalanceMixForImageClassification, BalanceMixTrainer
from hf_balancemix.predict import load_checkpoint, predict_probs
from tests import tiny
from tests.modeling.test_heads import SMALL
from tests.modeling.test_modeling import timm_backbone, vit_backbone

TRAIN = tiny.tiny_dataset(24)
BACKBONES = {"resnet (timm)": lambda: timm_backbone("test_resnet"), "vit (HF)": vit_backbone}


def make(folder, name="vit (HF)", head="ml_decoder", **changes):
    torch.manual_seed(0)
    model = BalanceMixForImageClassification.from_backbone(BACKBONES[name](), tiny.NAMES, tiny.SIZE, head, SMALL[head])
    values = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01, **changes}
    return BalanceMixTrainer(
        model, tiny.arguments(folder, **values), train_dataset=TRAIN, processing_class=tiny.processor()
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), [*((name, "ml_decoder") for name in BACKBONES), ("vit (HF)", "c_tran")])
def test_a_resumed_run_is_the_same_run(tmp_path, name, head):
    """Six steps in two epochs; dropout is active, so the random states have to be right as well."""
    trainer = make(tmp_path, name, head)
    before = tiny.weights_of(trainer.model)
    trainer.train()
    weights = tiny.weights_of(trainer.model)
    frozen = {name for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert frozen >= {"head.queries" if head == "ml_decoder" else "head.state_embedding"}
    for key in before:
        if key in frozen:
            assert torch.equal(before[key], weights[key]), key
    assert not torch.equal(before["head.norm.weight"], weights["head.norm.weight"])
    shutil.rmtree(tmp_path / "checkpoint-6")
    for step in (4, 2):
        resumed = make(tmp_path, name, head)
        resumed.train(str(tmp_path / f"checkpoint-{step}"))
        assert tiny.same_weights(tiny.weights_of(resumed.model), weights)
        assert {name for name, p in resumed.model.named_parameters() if not p.requires_grad} == frozen


def test_a_saved_model_predicts_as_the_trained(tmp_path):
    trainer = make(tmp_path, max_steps=2, warmup_epochs=0)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    model, processor = load_checkpoint(tmp_path / "model")
    assert model.config.id2label == dict(enumerate(tiny.NAMES))
    ((_, probs),) = predict_probs(model, processor, TRAIN.select(range(8)))
    expected = torch.from_numpy(trainer.predict(TRAIN.select(range(8))).predictions).sigmoid()
    torch.testing.assert_close(torch.from_numpy(probs), expected, atol=1e-5, rtol=0)


def decaying(trainer):
    optimizer = trainer.create_optimizer()
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    return {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}


def test_what_decays(tmp_path):
    options = {"save_strategy": "no", "weight_decay": 0.1}
    trainer = make(tmp_path, weight_decay_on="all", **options)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert decaying(trainer) == trained
    assert "head.queries" not in trained
    # Biases and norms of our heads are recognised as such by the Trainer's own rule too.
    plain = trained - decaying(make(tmp_path, weight_decay_on="weights", **options))
    of_head = {name.removeprefix("head.") for name in plain if name.startswith("head.")}
    assert of_head == {
        *("bias", "projection.bias", "norm.weight", "norm.bias"),
        *("layer.attention.in_proj_bias", "layer.attention.out_proj.bias", "layer.linear1.bias", "layer.linear2.bias"),
        *(f"layer.norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")),
    }
