"""Backbones from timm and transformers: built, trained for two steps, saved, and reloaded in a new process."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from transformers import AutoModelForImageClassification, SwinConfig, pipeline

from hf_balancemix import BalanceMixTrainer
from hf_balancemix.build import build_model
from tests import tiny

RELOAD = """
import sys, torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
assert "hf_balancemix" not in sys.modules
AutoImageProcessor.from_pretrained(sys.argv[1])
data = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    logits = model(pixel_values=data["pixels"]).logits
assert torch.equal(logits, data["logits"]), (logits - data["logits"]).abs().max()
"""


def tiny_swin():
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=5
    )
    return AutoModelForImageClassification.from_config(config)


BUILDERS = {
    "resnet (HF)": lambda: (tiny.tiny_resnet(), tiny.processor(32)),
    "vit (HF)": lambda: (tiny.tiny_vit(), tiny.processor()),
    "swin (HF)": lambda: (tiny_swin(), tiny.processor(32)),
    "resnet18 (timm)": lambda: build_model("resnet18", tiny.NAMES, 32, pretrained=False),
    "tresnet_m (timm)": lambda: build_model("tresnet_m", tiny.NAMES, 64, pretrained=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_train_save_reload_in_a_new_process_and_pipeline(tmp_path, name):
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    args = tiny.arguments(tmp_path / "run", max_steps=2, warmup_epochs=0, per_device_train_batch_size=4)
    dataset = tiny.tiny_dataset(8)
    trainer = BalanceMixTrainer(model, args, train_dataset=dataset, processing_class=processor)
    before = tiny.weights_of(model)
    trainer.train()
    assert not tiny.same_weights(before, tiny.weights_of(model))
    folder = tmp_path / "model"
    trainer.save_model(str(folder))
    pixels = trainer.transform.finish(trainer.transform.resize([dataset[i]["image"] for i in range(4)]))
    model.eval()
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits
    torch.save({"pixels": pixels, "logits": logits}, tmp_path / "data.pt")
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(folder), str(tmp_path / "data.pt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    scores = pipeline("image-classification", model=str(folder), device="cpu")(dataset[2]["image"], top_k=None)
    found = np.array([{entry["label"]: entry["score"] for entry in scores}[label] for label in tiny.NAMES])
    np.testing.assert_allclose(found, logits[2].sigmoid().numpy(), atol=2e-3)
    assert abs(found.sum() - 1) > 1e-3  # no softmax


def test_small_resnet_and_local_folder(tmp_path):
    model, processor = build_model("small_resnet", tiny.NAMES, 16)
    assert model.config.problem_type == "multi_label_classification"
    assert list(model.config.id2label.values()) == list(tiny.NAMES)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, again_processor = build_model(str(tmp_path), tiny.NAMES)
    assert tiny.same_weights(tiny.weights_of(model), tiny.weights_of(again))
    assert again_processor.size["height"] == 16
    wider, _ = build_model(str(tmp_path), ("x", "y"), 24)  # further training with other classes
    assert wider.config.num_labels == 2
    fresh, _ = build_model(str(tmp_path), tiny.NAMES, pretrained=False)
    assert not tiny.same_weights(tiny.weights_of(model), tiny.weights_of(fresh))


def test_a_vit_has_one_size_and_timm_builds_another(tmp_path):
    tiny.tiny_vit().save_pretrained(tmp_path)
    tiny.processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"image_size=16.*found 32.*unset"):
        build_model(str(tmp_path), tiny.NAMES, 32)
    model, processor = build_model("vit_tiny_patch16_224", tiny.NAMES, 32, pretrained=False)
    assert processor.data_config["input_size"] == (3, 32, 32)
    assert model(pixel_values=torch.zeros(1, 3, 32, 32)).logits.shape == (1, 5)


@pytest.mark.parametrize(("name", "hint"), [("resnet5", "resnet50"), ("tresnet_x", "tresnet"), ("qqq", "list_models")])
def test_unknown_backbone_names_the_nearest(name, hint):
    with pytest.raises(ValueError, match=f"timm model.*{name}.*{hint}"):
        build_model(name, tiny.NAMES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18.a9_in1k", r"pretrained tags.*found 'resnet18\.a9_in1k'\. There are: resnet18\.a1_in1k, "),
        ("", r"found ''"),
        ("./nothing", r"no folder \./nothing"),
        ("a/b/c", "no folder a/b/c"),
        ("{folder}", r"no config\.json"),
    ],
)
def test_a_backbone_that_is_not_there(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        build_model(name.format(folder=tmp_path), tiny.NAMES)


def test_a_backbone_that_does_not_load_is_one_clear_error(tmp_path, monkeypatch):
    tiny.tiny_vit().save_pretrained(tmp_path)  # no preprocessor_config.json
    with pytest.raises(ValueError, match="can be loaded, found that .*image processor"):
        build_model(str(tmp_path), tiny.NAMES)

    def offline(name, **kwargs):
        raise OSError(f"no way to {name}\nand more")

    monkeypatch.setattr(AutoModelForImageClassification, "from_pretrained", offline)
    # A timm name without a tag stands for timm's default weights; the Hub knows only names with a tag.
    with pytest.raises(ValueError, match=r"no way to timm/resnet18\.a1_in1k\).*connection"):
        build_model("resnet18", tiny.NAMES)


@pytest.mark.parametrize("image_size", [0, -4])
def test_an_impossible_image_size(image_size):
    with pytest.raises(ValueError, match=f"at least 1 pixel, found {image_size}.*unset"):
        build_model("small_resnet", tiny.NAMES, image_size)


def test_a_saved_timm_model_takes_another_size_if_its_architecture_does(tmp_path):
    for name, folder in (("resnet18", tmp_path / "resnet"), ("vit_tiny_patch16_224", tmp_path / "vit")):
        build_model(name, tiny.NAMES, 64, pretrained=False)[0].save_pretrained(folder)
    model, processor = build_model(str(tmp_path / "resnet"), tiny.NAMES, 32)
    assert processor.data_config["input_size"] == (3, 32, 32) == tuple(model.config.pretrained_cfg["input_size"])
    BalanceMixTrainer(
        model, tiny.arguments(tmp_path), train_dataset=tiny.tiny_dataset(8), processing_class=processor
    )  # not refused
    with pytest.raises(ValueError, match=r"image_size=64.*found 32"):
        build_model(str(tmp_path / "vit"), tiny.NAMES, 32)


def test_pretrained_timm_weights_for_another_size_come_from_timm(monkeypatch):
    """transformers would draw the position embeddings of another size anew; timm resamples them."""
    source = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=5, img_size=32)
    asked = []

    def create_model(name, **options):
        asked.append((name, options))
        return source

    monkeypatch.setattr("hf_balancemix.build.timm.create_model", create_model)
    # The model inside transformers' wrapper is made by the same function.
    monkeypatch.setattr(
        "transformers.models.timm_wrapper.modeling_timm_wrapper.timm.create_model",
        lambda name, **options: (
            copy.deepcopy(source) if not options.get("pretrained") else create_model(name, **options)
        ),
    )
    with torch.no_grad():
        source.pos_embed.fill_(0.25)
    model, _ = build_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", tiny.NAMES, 32)
    assert asked
    assert asked[-1][1] == {"pretrained": True, "num_classes": 5, "img_size": 32}
    assert float(model.timm_model.pos_embed.min()) == float(model.timm_model.pos_embed.max()) == 0.25
