"""Heads against the specification's numbers, timm's ML-Decoder, torch's own layers, and rules of their papers."""

import json
import math
from pathlib import Path

import pytest
import torch
from timm.layers.ml_decoder import MLDecoder as TimmMLDecoder
from torch import nn

from hf_balancemix.modeling.heads import HEADS, CTran, LinearHead, MLDecoder, Query2Label, build_head
from hf_balancemix.modeling.layers import sine_positions
from tests import tiny

VECTORS = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))
POOLING, WHOLE = VECTORS["16_heads"], VECTORS["19_tiny_heads_forward"]
SMALL = {
    "linear": {},
    "ml_decoder": {"dim": 16, "feedforward_dim": 24},
    "query2label": {"dim": 16, "feedforward_dim": 24},
    "query2label_small": {"dim": 16, "feedforward_dim": 24},
    "c_tran": {},
}


def small(name, num_labels=5, feature_dim=12, **options):
    torch.manual_seed(0)
    return build_head(name, feature_dim, num_labels, **{**SMALL[name], **options})


def count(module, trainable=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


# ---- the specification's numbers ----


@pytest.mark.parametrize("num_labels", [80, 20, 26, 1000])
def test_ml_decoder_has_the_published_size(num_labels):
    expected = POOLING["expected"][f"ml_decoder_K{num_labels}"]
    with torch.device("meta"):
        head = build_head("ml_decoder", 2048, num_labels)
        trainable = build_head("ml_decoder", 2048, num_labels, trainable_queries=True)
    assert head.pooling.shape == (expected["queries"], 768, expected["group_size"])
    assert (count(head), count(head, trainable=True)) == (expected["total"], expected["trainable"])
    assert count(trainable, trainable=True) == expected["total"]


@pytest.mark.parametrize(("num_labels", "asked", "queries", "group"), [(80, 10, 10, 8), (80, 11, 11, 8), (5, 9, 5, 1)])
def test_grouped_queries(num_labels, asked, queries, group):
    with torch.device("meta"):
        head = build_head("ml_decoder", 2048, num_labels, num_queries=asked)
    of_rest = 2048 * 768 + 768 + 4 * 768**2 + 4 * 768 + 2 * 768 * 2048 + 2048 + 768 + 6 * 768
    assert count(head) == of_rest + queries * 768 + queries * 768 * group + num_labels


@pytest.mark.parametrize(
    ("name", "num_labels", "expected"),
    [
        ("query2label", 80, POOLING["expected"]["q2l_K80"]),
        ("query2label", 20, POOLING["expected"]["q2l_K20"]),
        ("query2label_small", 80, 18_240_080),  # 16,666,448 by the formula, 1,573,632 of the projection
        ("c_tran", 80, POOLING["expected"]["ctran_K80"]),
        ("linear", 80, POOLING["expected"]["gap_linear_K80"]),
    ],
)
def test_other_heads_have_the_published_size(name, num_labels, expected):
    with torch.device("meta"):
        assert count(build_head(name, 2048, num_labels)) == expected


class Given(nn.Module):
    """Takes the place of a layer and returns what it is to return."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, *args):
        return self.value


def test_classes_of_a_group_are_neighbours():
    inputs = POOLING["inputs"]
    head = MLDecoder(3, 3, num_queries=2, dim=3, num_heads=1, feedforward_dim=4)
    head.layer = Given(torch.tensor(inputs["h"]))
    with torch.no_grad():
        head.pooling.copy_(torch.tensor(inputs["W_query_dim_slot"]))
        head.bias.copy_(torch.tensor(inputs["bias"]))
        logits = head(torch.zeros(1, 3, 2, 2))
    torch.testing.assert_close(logits, torch.tensor(POOLING["expected"]["logits"]))


@torch.no_grad()
def fill(head):
    """Every tensor 0.5·sin(1..n), norms 1 and 0."""
    for name, p in head.named_parameters():
        if "norm" in name:
            p.fill_(float(name.endswith("weight")))
        else:
            p.copy_(0.5 * torch.arange(1, p.numel() + 1, dtype=p.dtype).sin().view(p.shape))
    return head.eval()


@pytest.mark.parametrize("as_tokens", [False, True])
def test_whole_heads_give_the_specified_logits(as_tokens):
    heads = {
        "ml_decoder": MLDecoder(3, 3, num_queries=2, dim=4, num_heads=2, feedforward_dim=5),
        "q2l": Query2Label(4, 3, dim=4, num_heads=2, feedforward_dim=5),
    }
    for name, head in heads.items():
        features = torch.tensor([WHOLE["inputs"][f"features_{name}"]], dtype=torch.float64)
        if as_tokens:
            features = features.flatten(2).transpose(1, 2)
        logits = fill(head.double())(features)
        expected = torch.tensor([WHOLE["expected"][f"{name}_logits"]], dtype=torch.float64)
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)


def test_positions():
    expected = torch.tensor(WHOLE["expected"]["q2l_position_encoding"])
    torch.testing.assert_close(sine_positions(2, 2, 4), expected, atol=1e-6, rtol=0)
    # Oblong, wide enough for two divisors: y = 2 of 2, x = 1 of 3.
    place = sine_positions(2, 3, 8)[3]
    y, x = 2 * math.pi * 2 / (2 + 1e-6), 2 * math.pi * 1 / (3 + 1e-6)
    angles = [y, y / 1e4**0.5, x, x / 1e4**0.5]
    expected = torch.tensor([f(angle) for angle in angles for f in (math.sin, math.cos)])
    torch.testing.assert_close(place, expected, atol=1e-5, rtol=0)


# ---- other implementations ----


class Direct(nn.Module):
    """Timm's decoder layer without `nn.TransformerDecoder`, which in newer torch looks for what the layer has not."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, tgt, memory):
        return self.layer(tgt, memory)


@pytest.mark.parametrize(("num_labels", "groups"), [(80, None), (20, None), (23, 10), (230, None)])
def test_ml_decoder_equals_timms(num_labels, groups):
    torch.manual_seed(0)
    theirs = TimmMLDecoder(num_labels, groups or -1, initial_num_features=32).eval()
    layer = theirs.decoder.layers[0]
    theirs.decoder = Direct(layer)
    ours = MLDecoder(32, num_labels, num_queries=groups).eval()
    pairs = [
        (ours.projection, theirs.embed_standart),
        (ours.norm, layer.norm1),
        (ours.layer.attention, layer.multihead_attn),
        (ours.layer.norm1, layer.norm2),
        (ours.layer.linear1, layer.linear1),
        (ours.layer.linear2, layer.linear2),
        (ours.layer.norm2, layer.norm3),
    ]
    with torch.no_grad():
        for one, other in pairs:
            for p in other.parameters():
                p.uniform_(-0.2, 0.2)
            one.load_state_dict(other.state_dict())
        theirs.duplicate_pooling_bias.uniform_(-1, 1)
        ours.queries.copy_(theirs.query_embed.weight)
        ours.pooling.copy_(theirs.duplicate_pooling)
        ours.bias.copy_(theirs.duplicate_pooling_bias)
        assert count(ours) == count(theirs)
        for features in (torch.randn(2, 32, 3, 4), torch.randn(2, 7, 32)):
            torch.testing.assert_close(ours(features), theirs(features), atol=1e-5, rtol=1e-5)


def test_c_tran_equals_an_encoder_of_torch():
    head = small("c_tran").eval()
    layers = []
    for own in head.layers:
        layer = nn.TransformerEncoderLayer(12, 4, 12, batch_first=True, norm_first=False).eval()
        layer.self_attn.load_state_dict(own.attention.state_dict())
        for name in ("linear1", "linear2", "norm1", "norm2"):
            getattr(layer, name).load_state_dict(getattr(own, name).state_dict())
        layers.append(layer)
    features = torch.randn(2, 12, 3, 3)
    tokens = features.permute(0, 2, 3, 1).reshape(2, 9, 12)
    labels = (head.label_embedding + head.state_embedding[0]).expand(2, 5, 12)
    both = head.norm(torch.cat([labels, tokens], dim=1))  # their order does not matter
    for layer in layers:
        both = layer(both)
    every = both[:, :5] @ head.classifier.weight.T + head.classifier.bias  # (B, K, K), of which the diagonal counts
    torch.testing.assert_close(head(features), every.diagonal(dim1=1, dim2=2), atol=1e-5, rtol=1e-5)


def test_linear_is_the_mean_and_one_layer():
    head, features = small("linear"), torch.randn(2, 12, 3, 4)
    expected = features.mean(dim=(2, 3)) @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(head(features), expected)


# ---- zero-shot ----


def test_zero_shot_predicts_each_class_from_its_word_alone():
    head = small("ml_decoder", word_vector_dim=7).eval()
    features = torch.randn(2, 12, 3, 3)
    assert head(features).isnan().all()  # no words yet
    words = torch.randn(5, 7)
    head.set_word_vectors(words)
    logits = head(features)
    assert logits.shape == (2, 5)
    assert logits.std() > 0.01
    # Other classes, in another order and number.
    head.set_word_vectors(words[[4, 0, 4]])
    torch.testing.assert_close(head(features), logits[:, [4, 0, 4]])
    # d x 1 pooling and one bias for all; words are no parameters.
    assert (head.pooling.shape, head.bias.shape) == ((1, 16, 1), (1,))
    assert "word_vectors" in head.state_dict()
    with torch.device("meta"):
        full = build_head("ml_decoder", 2048, 80, word_vector_dim=300)
    without_queries = 7_212_112 - 80 * 768 - 80 * 768 - 80
    assert count(full) == without_queries + 300 * 768 + 768 + 768 + 1


def test_zero_shot_by_hand():
    head = fill(MLDecoder(3, 2, word_vector_dim=2, dim=4, num_heads=2, feedforward_dim=5).double())
    head.set_word_vectors(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    features = torch.tensor([WHOLE["inputs"]["features_ml_decoder"]], dtype=torch.float64)
    queries = torch.relu(head.word_vectors @ head.word_projection.weight.T + head.word_projection.bias)
    plain = fill(MLDecoder(3, 2, dim=4, num_heads=2, feedforward_dim=5).double())
    with torch.no_grad():
        plain.queries.copy_(queries)
        plain.pooling.copy_(head.pooling.expand(2, 4, 1))
        plain.bias.copy_(head.bias.expand(2))
    torch.testing.assert_close(head(features), plain(features))


# ---- drawing, freezing, training ----


def test_tensors_are_drawn_as_published():
    torch.manual_seed(0)
    head = build_head("ml_decoder", 64, 200)  # 100 queries in groups of 2
    assert head.queries.std() == pytest.approx(1, rel=0.02)
    assert head.queries.mean() == pytest.approx(0, abs=0.02)
    assert head.pooling.std().item() == pytest.approx(math.sqrt(2 / (768 * 2 + 100 * 2)), rel=0.02)
    assert not head.bias.any()
    head = build_head("query2label", 64, 9, dim=32, feedforward_dim=48)
    for name, p in [*head.encoder.named_parameters(), *head.decoder.named_parameters()]:
        if p.ndim > 1:
            bound = math.sqrt(6 / sum(p.shape))
            assert 0.9 * bound < p.abs().max() <= bound, name
    assert head.label_embedding.std().item() == pytest.approx(1, rel=0.15)
    for p in head.classifier.parameters():
        assert p.abs().max() <= 1 / math.sqrt(32)
        assert p.std() > 0.3 / math.sqrt(32)
    head = build_head("c_tran", 64, 9)
    names = ["label_embedding", "state_embedding", "classifier.weight", "classifier.bias"]
    names += [f"layers.2.{part}" for part in ("linear1.weight", "linear2.bias", "attention.out_proj.weight")]
    for name in names:
        p = head.get_parameter(name)
        assert 0.7 / 8 < p.abs().max() <= 1 / 8, name


@pytest.mark.parametrize("name", HEADS)
def test_every_tensor_but_the_frozen_learns(name):
    head = small(name, num_labels=7)
    logits = head(torch.randn(3, 12, 4, 4))
    logits.square().sum().backward()
    frozen = {n for n, p in head.named_parameters() if not p.requires_grad}
    assert frozen == set(head.frozen) == {"ml_decoder": {"queries"}, "c_tran": {"state_embedding"}}.get(name, set())
    # A key's bias moves all scores of a query alike, so its third of in_proj_bias has no gradient but for rounding.
    assert all(p.grad is not None and p.grad.abs().max() > 1e-6 for p in head.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "linear"])
def test_dropout_is_active_in_training_only(name):
    head, features = small(name), torch.randn(2, 12, 3, 3)
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", HEADS)
def test_half_precision(name, dtype):
    head, features = small(name).eval(), torch.randn(2, 12, 3, 3)
    exact = head(features)
    with torch.autocast("cpu", dtype=dtype):
        mixed = head(features.to(dtype))  # as a backbone under autocast hands them over
    pure = head.to(dtype)(features.to(dtype))
    assert pure.dtype == dtype
    for logits in (mixed, pure):
        torch.testing.assert_close(logits.float(), exact, atol=0.06, rtol=0.06)


def test_query2label_takes_any_map_and_square_tokens():
    head = small("query2label", feature_dim=16).eval()
    assert isinstance(head.projection, nn.Identity)  # as wide as the features
    for size in (14, 20):
        assert head(torch.randn(1, 16, size, size)).shape == (1, 5)
    features = torch.randn(1, 16, 2, 5)
    # Where a feature stands matters, unlike in ML-Decoder.
    moved = features.flip(3)
    assert not torch.allclose(head(features), head(moved), atol=1e-4)
    decoder = small("ml_decoder", feature_dim=16).eval()
    torch.testing.assert_close(decoder(features), decoder(moved), atol=1e-5, rtol=1e-5)
    tiny.refused(ValueError, ("tokens of a square map", "found 10", "ml_decoder"), head, torch.randn(1, 10, 16))


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("gap", {}, ("head among linear, ml_decoder", "found 'gap'")),
        ("ml_decoder", {"groups": 5}, ("options of the head ml_decoder (num_queries, ", "found 'groups'")),
        ("linear", {"dim": 5}, ("it has none", "found 'dim'")),
        ("ml_decoder", {"num_queries": 0}, ("of at least 1 as option `num_queries`", "found 0")),
        ("ml_decoder", {"num_queries": 3, "word_vector_dim": 9}, ("without `num_queries`", "Leave them out")),
        ("ml_decoder", {"dim": 20}, ("8 attention heads divide, found 20", "num_heads")),
        ("query2label", {"dim": 18, "num_heads": 2}, ("multiple of 4, found 18",)),
        ("c_tran", {"num_heads": 5}, ("5 attention heads divide, found 12",)),
        ("c_tran", {"num_heads": 0}, ("of at least 1 as option `num_heads`", "found 0")),
    ],
)
def test_refused(name, options, parts):
    tiny.refused(ValueError, parts, build_head, name, 12, 5, **options)


@pytest.mark.parametrize(
    ("options", "words", "parts"),
    [
        ({}, torch.ones(5, 7), ("found one whose queries are no words",)),
        ({"word_vector_dim": 7}, torch.ones(5, 8), ("shape (classes, 7), found (5, 8)",)),
        ({"word_vector_dim": 7}, torch.ones(7), ("found (7,)",)),
        ({"word_vector_dim": 7}, torch.full((5, 7), math.nan), ("NaN or infinity",)),
    ],
)
def test_wrong_word_vectors(options, words, parts):
    tiny.refused(ValueError, parts, small("ml_decoder", **options).set_word_vectors, words)


def test_names_are_stable():
    """A checkpoint's tensors are found by these."""
    assert list(small("ml_decoder").state_dict()) == [
        *("queries", "pooling", "bias", "projection.weight", "projection.bias", "norm.weight", "norm.bias"),
        *(f"layer.attention.{n}" for n in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")),
        *(f"layer.{part}.{n}" for part in ("norm1", "linear1", "linear2", "norm2") for n in ("weight", "bias")),
    ]
    assert list(LinearHead(3, 2).state_dict()) == ["classifier.weight", "classifier.bias"]
    tops = {name.split(".")[0] for name in Query2Label(8, 3, dim=4).state_dict()}
    assert tops == {"projection", "encoder", "decoder", "norm", "label_embedding", "classifier"}
    tops = {name.split(".")[0] for name in CTran(8, 3).state_dict()}
    assert tops == {"label_embedding", "state_embedding", "norm", "layers", "classifier"}
