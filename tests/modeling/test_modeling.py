"""Any backbone with any head: features, loss, saving and loading with and without this package."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BeitConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2WithRegistersConfig,
    EfficientNetConfig,
    PreTrainedConfig,
    SwinConfig,
    TimmWrapperConfig,
    pipeline,
)

from hf_balancemix import BalanceMixConfig, BalanceMixForImageClassification
from hf_balancemix.modeling.heads import HEADS
from hf_balancemix.training.network_pair import with_new_head
from tests import tiny
from tests.modeling.test_heads import SMALL

NAMES = ("ant", 'a "b" <c>', "猫\n", "dog", "eel")


def timm_backbone(name, **args):
    torch.manual_seed(0)
    cfg = timm.get_pretrained_cfg(name).to_dict()
    return AutoModel.from_config(TimmWrapperConfig(architecture=name, pretrained_cfg=cfg, model_args=args))


def hf_backbone(kind, **settings):
    torch.manual_seed(0)
    vit = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    sizes = {"image_size": 32, "patch_size": 8} | ({} if kind in (SwinConfig, ConvNextConfig) else vit)
    return AutoModel.from_config(kind(**sizes | settings))


def vit_backbone():
    return AutoModel.from_config(tiny.tiny_vit().config)


SWIN = {"patch_size": 2, "embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
NARROW = {"patch_size": 4, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
# name → (backbone, image size, layout, channels, prefix tokens, places)
BACKBONES = {
    "resnet (timm)": (lambda: timm_backbone("test_resnet"), 64, "NCHW", 96, 0, 4),
    "efficientnet (timm)": (lambda: timm_backbone("test_efficientnet"), 64, "NCHW", 256, 0, 4),
    "convnext (timm)": (lambda: timm_backbone("test_convnext"), 64, "NCHW", 64, 0, 4),
    "mambaout (timm)": (lambda: timm_backbone("test_mambaout"), 64, "NHWC", 64, 0, 4),
    "swin (timm)": (
        lambda: timm_backbone("swin_tiny_patch4_window7_224", embed_dim=12, depths=(1, 1), num_heads=(1, 2)),
        *(224, "NHWC", 24, 0, 784),
    ),
    "vit (timm)": (lambda: timm_backbone("test_vit"), 160, "NLC", 64, 1, 100),
    "deit distilled (timm)": (
        lambda: timm_backbone("deit_tiny_distilled_patch16_224", embed_dim=12, depth=1),
        *(224, "NLC", 12, 2, 196),
    ),
    "vit (HF)": (vit_backbone, 16, "NLC", 16, 1, 4),
    "deit (HF)": (lambda: hf_backbone(DeiTConfig), 32, "NLC", 16, 2, 16),
    "beit (HF)": (lambda: hf_backbone(BeitConfig), 32, "NLC", 16, 1, 16),
    "dinov2 with registers (HF)": (lambda: hf_backbone(Dinov2WithRegistersConfig), 32, "NLC", 16, 5, 16),
    "dinov2 of four patches (HF)": (
        lambda: hf_backbone(Dinov2WithRegistersConfig, image_size=16),
        *(16, "NLC", 16, 5, 4),  # nine tokens, which are a square too
    ),
    "clip (HF)": (lambda: hf_backbone(CLIPVisionConfig), 32, "NLC", 16, 1, 16),
    "swin (HF)": (lambda: hf_backbone(SwinConfig, **SWIN), 32, "NLC", 24, 0, 64),
    "convnext of as many channels as places a side (HF)": (
        lambda: hf_backbone(ConvNextConfig, **NARROW),
        *(256, "NCHW", 8, 0, 64),
    ),
    "efficientnet (HF)": (
        lambda: AutoModel.from_config(
            EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128)
        ),
        *(64, "NCHW", 128, 0, 4),
    ),
}


def build(name, head="ml_decoder", **options):
    make, size, *_ = BACKBONES[name]
    backbone = lively(make())
    options = SMALL[head] | options
    return BalanceMixForImageClassification.from_backbone(backbone, NAMES, size, head, options).eval()


@torch.no_grad()
def lively(model):
    """Draw weights with which every picture gives other features; as they are drawn, deep nets give none."""
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=2 * p[0].numel() ** -0.5)
        elif "norm" in name or "bn" in name or "gamma" in name or "lambda" in name:
            p.fill_(float("bias" not in name))
    return model


@pytest.fixture(scope="module", params=BACKBONES)
def name(request):
    return request.param


@pytest.mark.slow
def test_features_of_any_backbone(name):
    make, size, layout, dim, prefix, places = BACKBONES[name]
    backbone = lively(make()).eval()
    model = build(name, "linear")
    config = model.config
    assert (config.feature_layout, config.feature_dim, config.num_prefix_tokens) == (layout, dim, prefix)
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        raw, features = backbone(pixel_values=pixels).last_hidden_state, model.features(pixels)
        if layout == "NHWC":
            raw = torch.stack([raw[..., c] for c in range(dim)], dim=1)
        assert torch.equal(features, raw[:, prefix:] if layout == "NLC" else raw)
        assert features.numel() == 2 * places * dim
        # the mean over the patches, whatever the layout
        patches = features.reshape(2, dim, places) if layout != "NLC" else features.transpose(1, 2)
        classifier = model.head.classifier
        expected = patches.mean(dim=2) @ classifier.weight.T + classifier.bias
        torch.testing.assert_close(model(pixels).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_every_tensor_learns_or_is_frozen(name, tmp_path):
    """DistributedDataParallel waits for the gradients of all that are not frozen; loading must not thaw any."""
    model = build(name, "query2label")
    size = BACKBONES[name][1]
    model.train()
    model(torch.randn(2, 3, size, size)).logits.square().sum().backward()
    waited_for = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert waited_for == []
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [f"backbone.{n}" for n in model.config.unused_parameters]
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert frozen == [n for n, p in again.named_parameters() if not p.requires_grad]
    pixels = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pixels).logits, again.eval()(pixels).logits)


def test_what_is_frozen():
    assert build("resnet (timm)").config.unused_parameters == []
    unused = build("vit (HF)").config.unused_parameters
    assert unused == ["pooler.dense.weight", "pooler.dense.bias"]
    unused = build("convnext (timm)").config.unused_parameters
    assert unused == ["timm_model.head.norm.weight", "timm_model.head.norm.bias"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["resnet (timm)", "vit (HF)"])
def test_save_and_load(name, head, tmp_path):
    model = build(name, head)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is BalanceMixForImageClassification
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert tiny.same_weights(tiny.weights_of(model), tiny.weights_of(again))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in again.parameters()]
    assert again.config.id2label == dict(enumerate(NAMES))
    assert again.config.problem_type == "multi_label_classification"
    pixels = torch.randn(2, 3, BACKBONES[name][1], BACKBONES[name][1])
    with torch.no_grad():
        logits = model(pixels).logits
        assert (logits[0] - logits[1]).abs().max() > 0.01
        torch.testing.assert_close(again.eval()(pixels).logits, logits)
    assert str(tmp_path) not in (tmp_path / "config.json").read_text(encoding="utf-8")
    # A second round gives the same files.
    again.save_pretrained(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


WITHOUT_PACKAGE = """
import sys
sys.modules["hf_balancemix"] = None  # an import fails as if it were not installed
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from PIL import Image
for folder in sys.argv[1:]:
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
    data = torch.load(folder + "/data.pt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(model(data["pixels"]).logits, data["logits"])
    assert model.config.id2label == dict(enumerate(data["names"]))
    assert [p.requires_grad for p in model.parameters()] == data["trained"]
    AutoImageProcessor.from_pretrained(folder)
    classify = pipeline("image-classification", model=folder, trust_remote_code=True, device="cpu")
    scores = {entry["label"]: entry["score"] for entry in classify(Image.open(folder + "/image.png"), top_k=None)}
    for label, score in data["scores"].items():
        assert abs(scores[label] - score) < 1e-5, (label, scores, data["scores"])
try:
    AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("loaded code without being asked to")
"""


@pytest.mark.slow
def test_a_checkpoint_loads_without_this_package_and_in_a_pipeline(tmp_path):
    cases = [("resnet (timm)", "ml_decoder"), ("vit (HF)", "query2label"), ("mambaout (timm)", "c_tran")]
    folders = []
    for name, head in cases:
        size, model, folder = BACKBONES[name][1], build(name, head), str(tmp_path / head)
        model.save_pretrained(folder)
        tiny.processor(size).save_pretrained(folder)
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8))
        image.save(folder + "/image.png")
        pixels = tiny.processor(size)(image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = model(pixels).logits
        found = pipeline("image-classification", model=folder, device="cpu")(image, top_k=None)
        scores = {entry["label"]: entry["score"] for entry in found}
        np.testing.assert_allclose([scores[n] for n in NAMES], logits[0].sigmoid().numpy(), atol=1e-5)
        trained = [p.requires_grad for p in model.parameters()]
        data = {"pixels": pixels, "logits": logits, "names": list(NAMES), "trained": trained, "scores": scores}
        torch.save(data, folder + "/data.pt")
        assert {"configuration_balancemix.py", "modeling_balancemix.py", "heads.py", "layers.py"} <= set(
            os.listdir(folder)
        )
        folders.append(folder)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, *folders],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


# ---- the head on its own ----


@pytest.mark.parametrize("head", [head for head in HEADS if head != "linear"])
def test_a_head_for_other_classes_is_drawn_as_published(head, tmp_path):
    """Loading makes empty tensors first: what the checkpoint lacks must not stay empty."""
    model = build("resnet (timm)", head, **({} if head == "c_tran" else {"dim": 96}))
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=40, ignore_mismatched_sizes=True)
    for name, p in again.head.named_parameters():
        if p.shape == model.head.get_parameter(name).shape:
            assert torch.equal(p, model.head.get_parameter(name)), name
        elif "bias" in name and head == "ml_decoder":
            assert not p.any()
        else:
            uniform, normal = 96**-0.5 / 3**0.5, 1.0
            pooling = (2 / (96 + 40)) ** 0.5
            expected = {"queries": normal, "pooling": pooling}.get(name, uniform)
            expected = normal if "label_embedding" in name and head != "c_tran" else expected
            assert p.std().item() == pytest.approx(expected, rel=0.3), name
    # A whole one from its configuration, too.
    fresh = BalanceMixForImageClassification(model.config)
    for name, p in fresh.head.named_parameters():
        assert p.std() == model.head.get_parameter(name).std() == 0 or p.std() > 0, name


def test_the_loss_is_eq_1():
    model = build("vit (HF)")
    pixels, labels = torch.randn(3, 3, 16, 16), torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0.3, 1, 1, 1]])
    output = model(pixels, labels=labels)
    probs = output.logits.double().sigmoid()
    expected = -(labels * probs.log() + (1 - labels) * (1 - probs).log()).sum() / 3
    torch.testing.assert_close(output.loss.double(), expected, atol=1e-5, rtol=1e-5)
    assert model(pixels).loss is None
    loss, logits = model(pixels, labels=labels.long(), return_dict=False)
    assert (loss.ndim, logits.shape) == (0, (3, 5))
    assert model.accepts_loss_kwargs is False


def test_zero_shot_model(tmp_path):
    model = build("resnet (timm)", word_vector_dim=7)
    assert not model.knows_its_classes
    words = torch.randn(5, 7)
    model.set_classes(NAMES, words)
    assert model.knows_its_classes
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = model(pixels).logits
        model.set_classes(("eel", "owl", "ant"), torch.stack([words[4], torch.randn(7), words[0]]))
        torch.testing.assert_close(model(pixels).logits[:, [2, 0]], logits[:, [0, 4]])
        model.save_pretrained(tmp_path)
        again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(again(pixels).logits, model(pixels).logits)
    assert list(again.config.id2label.values()) == ["eel", "owl", "ant"]
    tiny.refused(ValueError, ("each of 3 classes, found 2",), model.set_classes, ("a", "b", "c"), words[:2])
    other = build("resnet (timm)", "linear")
    tiny.refused(ValueError, ("ml_decoder", "found linear"), other.set_classes, NAMES, words)


@pytest.mark.parametrize("size", [448, 640])
@pytest.mark.parametrize("head", HEADS)
def test_large_pictures_and_another_size_than_built_for(head, size):
    model = build("resnet (timm)", head)
    with torch.no_grad():
        logits = model(torch.randn(1, 3, size, size)).logits
    assert logits.shape == (1, 5)
    assert logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_is_kept(dtype, tmp_path):
    for name in ("resnet (timm)", "vit (HF)"):
        model = build(name).to(dtype)
        model.save_pretrained(tmp_path)
        again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
        assert {p.dtype for p in again.parameters()} == {dtype}
        size = BACKBONES[name][1]
        pixels = torch.randn(1, 3, size, size, dtype=dtype)
        with torch.no_grad():
            torch.testing.assert_close(again(pixels).logits, model(pixels).logits)
        # And a new head has the backbone's.
        fresh = BalanceMixForImageClassification.from_backbone(again.backbone, NAMES, size, "linear")
        assert {p.dtype for p in fresh.parameters()} == {dtype}


@pytest.mark.parametrize("name", ["vit (HF)", "vit (timm)", "resnet (timm)"])
def test_gradient_checkpointing(name):
    pixels = torch.randn(2, 3, BACKBONES[name][1], BACKBONES[name][1])
    plain, saving = build(name, "linear"), build(name, "linear")
    assert saving.supports_gradient_checkpointing
    saving.activation_checkpointing_enable()
    for model in (plain, saving):
        model.train()
        if "resnet" in name:
            model.eval()  # batch norm would count the second forward
        model(pixels).logits.square().sum().backward()
    for (n, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-4, msg=n)
    switch = (lambda: saving.is_activation_checkpointing) if "HF" in name else switch_of_timm(saving)
    assert switch()
    saving.activation_checkpointing_disable()
    assert not switch()


def switch_of_timm(model):
    return lambda: model.backbone.timm_model.grad_checkpointing


def test_a_second_network_has_another_head():
    """What co-teaching does with a model."""
    model = build("vit (HF)")
    second = with_new_head(model, seed=1)
    for name, p in second.named_parameters():
        same = torch.equal(p, model.get_parameter(name))
        assert same == (name.startswith("backbone") or not p.std()), name
        assert p.requires_grad == model.get_parameter(name).requires_grad


# ---- configuration ----


def test_the_backbones_configuration_is_a_copy_without_classes():
    backbone = timm_backbone("test_resnet")
    backbone.config.id2label = {0: "theirs"}
    config = BalanceMixConfig(backbone_config=backbone.config)
    assert backbone.config.id2label == {0: "theirs"}
    assert config.backbone_config.architecture == "test_resnet"
    saved = json.loads(config.to_json_string())["backbone_config"]
    assert (saved["label_names"], saved["num_classes"]) == ([], 0)
    # From text, as a user may write it: what names no kind is timm's.
    config = BalanceMixConfig(backbone_config={"architecture": "test_vit"}, feature_dim=64, feature_layout="NLC")
    assert BalanceMixForImageClassification(config)(torch.zeros(1, 3, 160, 160)).logits.shape == (1, 2)


class OddConfig(PreTrainedConfig):
    model_type = "odd"


def test_refused(monkeypatch):
    tiny.refused(ValueError, ("`head` to be one of linear, ml_decoder", "found 'gap'"), BalanceMixConfig, head="gap")
    tiny.refused(ValueError, ("`feature_layout`", "NHWC", "'NWHC'"), BalanceMixConfig, feature_layout="NWHC")
    tiny.refused(ValueError, ("`backbone_config`", "found None"), BalanceMixForImageClassification, BalanceMixConfig())
    for features, found in ((None, "NoneType"), ([torch.zeros(1, 2, 3)], "list"), (torch.zeros(1, 5), "(1, 5)")):
        backbone = vit_backbone()
        monkeypatch.setattr(
            backbone,
            "forward",
            lambda features=features, **kwargs: type("Output", (), {"last_hidden_state": features}),
        )
        tiny.refused(
            ValueError,
            ("one map or one sequence of tokens", f"found {found} from ViTModel", "linear"),
            BalanceMixForImageClassification.from_backbone,
            *(backbone, NAMES, 16),
        )
