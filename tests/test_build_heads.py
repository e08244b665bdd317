"""``build_model`` with a head of ours: which model, which weights, which image processor; what keeps its head."""

import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    BertConfig,
    CLIPConfig,
    CLIPModel,
    DINOv3ViTConfig,
)

from hf_balancemix import BalanceMixForImageClassification
from hf_balancemix.build import HEADS, ImageSizeError, build_model, usable_image_size
from hf_balancemix.data.transforms import ImageTransform
from tests import tiny
from tests.modeling.test_heads import SMALL
from tests.test_build import hub_answers, put_in_cache


def save(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def save_small(folder, head="ml_decoder", names=tiny.NAMES, **options):
    torch.manual_seed(0)
    model, processor = build_model("small_resnet", names, 16, head=head, **options)
    save(folder, model, processor)
    return model


@pytest.mark.parametrize("head", HEADS)
def test_every_head_on_a_timm_and_an_hf_backbone(head, tmp_path):
    for name, size in (("small_resnet", 16), ("test_resnet", 64)):
        options = SMALL[head] or None
        model, processor = build_model(name, tiny.NAMES, size, pretrained=False, head=head, head_options=options)
        # Linear models are the backbones' own classes, which load everywhere.
        assert isinstance(model, BalanceMixForImageClassification) == (head != "linear")
        assert model.training
        assert model.config.problem_type == "multi_label_classification"
        assert list(model.config.id2label.values()) == list(tiny.NAMES)
        save(tmp_path / name, model, processor)
        again = AutoModelForImageClassification.from_pretrained(tmp_path / name).eval()
        pixels = ImageTransform(AutoImageProcessor.from_pretrained(tmp_path / name), "none")
        pictures = [Image.new("RGB", (30, 50), colour) for colour in ("red", "green")]
        prepared = pixels.finish(pixels.resize(pictures))
        assert prepared.shape == (2, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(again(prepared).logits, model.eval()(prepared).logits)


@pytest.mark.parametrize("head", ["linear", "ml_decoder"])
def test_tresnet_is_not_normalised(head, tmp_path):
    model, processor = build_model("tresnet_m", tiny.NAMES, 64, pretrained=False, head=head)
    folder = save(tmp_path, model, processor)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for found in (processor, AutoImageProcessor.from_pretrained(folder)):
        transform = ImageTransform(found, "none")
        pixels = transform.finish(transform.resize([Image.fromarray(picture)]))[0]
        torch.testing.assert_close(pixels, torch.from_numpy(picture).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("size", [448, 640])
def test_the_sizes_of_the_papers(size):
    model, processor = build_model("test_resnet", tiny.NAMES, size, pretrained=False, head="query2label_small")
    assert (processor.size["height"], processor.size["width"]) == (size, size)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, size, size)).logits.shape == (1, 5)


def test_a_timm_transformer_is_built_for_the_size():
    model, processor = build_model("test_vit", tiny.NAMES, 64, pretrained=False, head="query2label_small")
    assert processor.size["height"] == 64
    assert model.config.num_prefix_tokens == 1
    assert model(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 5)


def test_the_backbones_own_size():
    _, processor = build_model("test_vit", tiny.NAMES, pretrained=False, head="ml_decoder")
    assert processor.size["height"] == 160


# ---- weights ----


def test_pretrained_weights_from_the_hub(tmp_path, monkeypatch):
    source, _ = build_model("resnet18", [str(i) for i in range(1000)], 32, pretrained=False)
    put_in_cache(tmp_path, "timm/resnet18.a1_in1k", source)
    hub_answers(monkeypatch, lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, _ = build_model("resnet18.a1_in1k", tiny.NAMES, 32, head="ml_decoder")
    theirs, ours = source.timm_model.state_dict(), model.backbone.timm_model.state_dict()
    assert theirs.keys() - ours.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_pretrained_weights_for_another_size_come_from_timm(monkeypatch):
    hub_answers(monkeypatch, lambda: True)
    create_model, asked = timm.create_model, []

    def source(name, pretrained=False, **options):
        model = create_model(name, **options)
        if pretrained:
            asked.append(options)
            torch.nn.init.constant_(model.pos_embed, 0.25)
        return model

    monkeypatch.setattr("hf_balancemix.backbones.timm.create_model", source)
    model, _ = build_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", tiny.NAMES, 32, head="ml_decoder")
    assert asked == [{"num_classes": 0, "img_size": 32}]
    assert model.backbone.timm_model.pos_embed.unique().tolist() == [0.25]


@pytest.mark.parametrize("head", ["ml_decoder", "c_tran"])
def test_a_native_checkpoint_gives_its_backbone(head, tmp_path):
    for source, processor in (
        (tiny.tiny_vit(), tiny.processor()),
        build_model("test_resnet", tiny.NAMES, 64, pretrained=False),
    ):
        folder = save(tmp_path / type(source).__name__, source, processor)
        model, _ = build_model(folder, ("x", "y"), head=head)  # other classes: the head is new anyway
        for name, value in source.base_model.state_dict().items():
            if not name.startswith("fc."):
                own = name if "timm" not in source.config.model_type else f"timm_model.{name}"
                assert torch.equal(model.backbone.state_dict()[own], value), name
        assert model.config.num_labels == 2


def test_a_checkpoint_of_the_same_kind_keeps_its_head(tmp_path, recwarn):
    model = save_small(tmp_path)
    again, processor = build_model(str(tmp_path), tiny.NAMES, head="ml_decoder")
    assert tiny.same_weights(tiny.weights_of(model), tiny.weights_of(again))
    assert processor.size["height"] == 16
    larger, processor = build_model(str(tmp_path), tiny.NAMES, 32, head="ml_decoder")
    assert tiny.same_weights(tiny.weights_of(model), tiny.weights_of(larger))
    assert processor.size["height"] == 32
    parts = ("classes in this order", "'ant' where you have 'eel'")
    tiny.refused(ValueError, parts, build_model, str(tmp_path), tiny.NAMES[::-1], head="ml_decoder")
    fresh, _ = build_model(str(tmp_path), tiny.NAMES, head="ml_decoder", pretrained=False)
    assert not torch.equal(fresh.head.projection.weight, model.head.projection.weight)


def test_another_number_of_classes_redraws_what_depends_on_it(tmp_path):
    model = save_small(tmp_path)
    other, _ = build_model(str(tmp_path), ("x", "y", "z"), head="ml_decoder")
    assert torch.equal(other.head.projection.weight, model.head.projection.weight)
    assert other.head.queries.shape == (3, 768)
    assert other.head.queries.std().item() == pytest.approx(1, rel=0.05)
    assert not other.head.queries.requires_grad


@pytest.mark.parametrize(
    ("head", "options"),
    [("linear", None), ("query2label_small", None), ("ml_decoder", {"num_queries": 2})],
)
def test_another_head_is_drawn_on_the_backbone(head, options, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("hf_balancemix.build.logger.warning", lines.append)
    model = save_small(tmp_path)
    other, _ = build_model(str(tmp_path), tiny.NAMES[::-1], head=head, head_options=options)
    assert other.config.head == head
    assert list(other.config.id2label.values()) == list(tiny.NAMES[::-1])
    ours, theirs = other.backbone.state_dict(), model.backbone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert lines == [f"The head of {tmp_path} (ml_decoder) is left out, a new one ({head}) is drawn."]


def test_options_that_a_checkpoint_has_are_no_reason_for_a_new_head(tmp_path):
    model = save_small(tmp_path, head_options={"num_queries": 2, "dim": 16})
    again, _ = build_model(str(tmp_path), tiny.NAMES, head="ml_decoder", head_options={"num_queries": 2})
    assert torch.equal(again.head.queries, model.head.queries)


# ---- models that transformers has no classifier for ----


def test_a_vision_model_without_a_class_for_classification(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    source = AutoModel.from_config(DINOv3ViTConfig(**sizes, image_size=32, patch_size=8, num_register_tokens=4))
    folder = save(tmp_path, source, tiny.processor(32))
    for head in ("linear", "ml_decoder"):
        model, _ = build_model(folder, tiny.NAMES, head=head)
        assert isinstance(model, BalanceMixForImageClassification)
        assert model.config.num_prefix_tokens == 5
        for name, value in source.state_dict().items():
            assert torch.equal(model.backbone.state_dict()[name], value), name


def test_of_a_model_that_reads_text_too_the_vision_half_is_taken(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config={**sizes, "image_size": 32, "patch_size": 16}, text_config=sizes)
    source = CLIPModel(config)
    model, _ = build_model(save(tmp_path, source, tiny.processor(32)), tiny.NAMES, head="ml_decoder")
    ours = dict(model.backbone.named_parameters())
    theirs = {p.shape: p for name, p in source.vision_model.named_parameters() if "patch_embedding" in name}
    ((name, embedding),) = [(n, p) for n, p in ours.items() if "patch_embedding" in n]
    assert torch.equal(embedding, theirs[embedding.shape]), name
    assert not any("text" in name for name in ours)


def test_a_text_model_is_no_backbone(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    tiny.processor().save_pretrained(tmp_path)
    for head in ("linear", "ml_decoder"):
        parts = ("Expected a backbone that can be loaded", "bert is no vision model")
        tiny.refused(ValueError, parts, build_model, str(tmp_path), tiny.NAMES, head=head)


# ---- zero-shot ----


def test_zero_shot(tmp_path):
    words = np.random.default_rng(0).normal(size=(5, 300)).astype(np.float32)
    model = save_small(tmp_path, word_vectors=words)
    assert model.config.head_options == {"word_vector_dim": 300}
    np.testing.assert_array_equal(model.head.word_vectors.numpy(), words)
    again, _ = build_model(str(tmp_path), tiny.NAMES, head="ml_decoder")
    assert torch.equal(again.head.word_vectors, model.head.word_vectors)
    # Other classes by their words keep all that was learned.
    other, _ = build_model(str(tmp_path), ("owl", "yak"), head="ml_decoder", word_vectors=words[:2] + 1)
    assert torch.equal(other.head.pooling, model.head.pooling)
    assert (tuple(other.config.id2label.values()), other.config.num_labels) == (("owl", "yak"), 2)
    assert other(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 2)
    parts = ("`word_vectors` of shape (2, 300)", "found none")
    tiny.refused(ValueError, parts, build_model, str(tmp_path), ("owl", "yak"), head="ml_decoder")
    parts = ("each of 5 classes", "of shape (4, 300)")
    tiny.refused(ValueError, parts, save_small, tmp_path, word_vectors=words[:4])


# ---- refused ----


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"head": "mldecoder"}, ("head among linear, ml_decoder", "found 'mldecoder' (did you mean 'ml_decoder'?)")),
        ({"head_options": {"dim": 3}}, ("no `head_options` with the linear head", "{'dim': 3}")),
        ({"head": "c_tran", "head_options": {"dim": 3}}, ("options of the head c_tran", "found 'dim'")),
        ({"word_vectors": np.ones((5, 3))}, ("`word_vectors` with the head ml_decoder", "found them with linear")),
        ({"head": "c_tran", "backbone": "crossvit_tiny_240"}, ("one map or one sequence", "found list")),
    ],
)
def test_refused(changes, parts):
    options = {"backbone": "small_resnet", "pretrained": False, **changes}
    tiny.refused(ValueError, parts, build_model, class_names=tiny.NAMES, **options)


VECTORS = np.ones((5, 4))


@pytest.mark.parametrize(
    ("error", "changes", "parts"),
    [
        (TypeError, {"class_names": "abc"}, ("a list of names as `class_names`, found str",)),
        (TypeError, {"class_names": {"a", "b"}}, ("in the order of the outputs", "found set")),
        (TypeError, {"class_names": {0: "a", 1: "b"}}, ("found dict",)),
        (TypeError, {"class_names": 5}, ("found int",)),
        (TypeError, {"class_names": ("a", 1)}, ("found 1 as number 1", "Write it as text")),
        (ValueError, {"class_names": ["a", "ü\n", "b", "ü\n"]}, ("each name once", r"found 'ü\n' as numbers 1 and 3")),
        (ValueError, {"class_names": iter(())}, ("at least one name", "found none")),
        (TypeError, {"head_options": "dim"}, ("a mapping", "`head_options`, found str")),
        (TypeError, {"head_options": ["dim"]}, ("a mapping", "found list")),
        (ValueError, {"head_options": {"nun_heads": 4}}, ("found 'nun_heads' (did you mean 'num_heads'?)",)),
        (ValueError, {"head_options": {3: 4}}, ("found 3",)),
        (ValueError, {"head_options": {"num_labels": 4}}, ("found 'num_labels'",)),
        (ValueError, {"head_options": {"num_heads": "4"}}, ("a whole number of at least 1", "`num_heads`", "'4'")),
        (ValueError, {"head_options": {"num_heads": 4.0}}, ("found 4.0",)),
        (ValueError, {"head_options": {"dim": -8}}, ("option `dim` of the head ml_decoder, found -8",)),
        (ValueError, {"head_options": {"dropout": math.nan}}, ("from 0 to below 1", "found nan")),
        (ValueError, {"head_options": {"trainable_queries": "no"}}, ("true or false", "found 'no'")),
        (TypeError, {"word_vectors": "abc"}, ("numbers of shape (5, width) as `word_vectors`, found str",)),
        (TypeError, {"word_vectors": [[1, 2], [3]]}, ("found list",)),
        (TypeError, {"word_vectors": VECTORS.astype(object)}, ("found ndarray",)),
        (ValueError, {"word_vectors": 1.0}, ("found torch.float32 of shape ()",)),
        (ValueError, {"word_vectors": VECTORS[0]}, ("each of 5 classes, found torch.float64 of shape (4,)",)),
        (ValueError, {"word_vectors": VECTORS[:, :0]}, ("of shape (5, 0)",)),
        (ValueError, {"word_vectors": VECTORS[None]}, ("of shape (1, 5, 4)",)),
        (ValueError, {"word_vectors": VECTORS * 1j}, ("real `word_vectors`", "complex128")),
        (ValueError, {"word_vectors": VECTORS.cumsum(0) * 1e38}, ("NaN or infinity in row 3",)),
        (ValueError, {"word_vectors": VECTORS, "head_options": {"word_vector_dim": 3}}, ("says, 3, found 4",)),
        (ValueError, {"word_vectors": VECTORS, "head_options": {"num_queries": 3}}, ("without `num_queries`",)),
    ],
)
def test_odd_values(error, changes, parts):
    options = {"class_names": tiny.NAMES, "pretrained": False, "head": "ml_decoder", **changes}
    tiny.refused(error, parts, build_model, "small_resnet", image_size=16, **options)


def test_names_and_options_of_other_kinds():
    options = {"num_queries": None, "dim": 8, "num_heads": 2, "dropout": 0}
    for names in (np.array(tiny.NAMES), iter(tiny.NAMES)):
        model, _ = build_model("small_resnet", names, 16, head="ml_decoder", head_options=options)
        assert [type(name) for name in model.config.id2label.values()] == [str] * 5
        assert model.config.head_options == options
    words, _ = build_model("small_resnet", ["a", "b"], 16, head="ml_decoder", word_vectors=[[1, 2, 3], [4, 5, 6]])
    assert words.head.word_vectors.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_size_that_the_backbone_does_not_take(tmp_path):
    model, processor = build_model("vit_tiny_patch16_224", tiny.NAMES, 64, pretrained=False, head="ml_decoder")
    folder = save(tmp_path, model, processor)
    for head in ("ml_decoder", "c_tran", "linear"):
        tiny.refused(ImageSizeError, ("takes, found 96", "64"), build_model, folder, tiny.NAMES, 96, head=head)
    assert usable_image_size(folder, 96) is None
    assert usable_image_size(folder, 64) == 64


def test_the_head_does_not_change_how_a_picture_is_resized():
    """This backbone's own interpolation is bicubic."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))
    seen = []
    for head in ("linear", "ml_decoder"):
        _, processor = build_model("mobilenetv3_small_050.lamb_in1k", tiny.NAMES, 64, pretrained=False, head=head)
        transform = ImageTransform(processor)
        seen.append(transform.finish(transform.resize([picture])))
    assert float((seen[0] - seen[1]).abs().max()) < 0.05  # a rounding step of 1/255 over the standard deviation
