"""Exported files against the models that they come from, and what must not become a file."""

import copy
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    SwinConfig,
    TimmWrapperConfig,
    ViTImageProcessor,
    pipeline,
)

from hf_balancemix import BalanceMixForImageClassification, export
from hf_balancemix.export import Exported, check_export, export_model
from tests import tiny
from tests.distributed.launch import ROOT, environment

SIZE = 32
LABELS = {"id2label": dict(enumerate(tiny.NAMES)), "label2id": {name: i for i, name in enumerate(tiny.NAMES)}}
SMALL_HEAD = {"dim": 16, "num_heads": 2, "feedforward_dim": 32}


def timm_config(architecture, **sizes):
    return TimmWrapperConfig(architecture=architecture, pretrained_cfg={}, model_args=sizes, **LABELS)


def resnet():
    return tiny.tiny_resnet().config


def tresnet():
    return timm_config("tresnet_m", layers=[1, 1, 1, 1], width_factor=0.25)


def vit():
    return timm_config("vit_tiny_patch16_224", img_size=SIZE, patch_size=8, embed_dim=16, depth=1, num_heads=2)


def swin():
    sizes = {"img_size": SIZE, "patch_size": 2, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}
    return timm_config("swin_tiny_patch4_window7_224", window_size=4, **sizes)


def swin_of_transformers():
    sizes = {"image_size": SIZE, "patch_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2]}
    return SwinConfig(window_size=4, **sizes, **LABELS)


def pictures(number, size, seed):
    """Random pixels, each picture with a colour of its own."""
    generator = torch.Generator().manual_seed(seed)
    colours = 2 * torch.randn(number, 3, 1, 1, generator=generator)
    return colours + torch.randn(number, 3, size, size, generator=generator)


def network(config, head="linear", size=SIZE):
    """A random network whose logits depend on the picture and are of the size that training makes them."""
    torch.manual_seed(0)
    config.id2label, config.label2id = LABELS["id2label"], LABELS["label2id"]
    if head == "linear":
        model = AutoModelForImageClassification.from_config(config).eval()
    else:
        options = {} if head == "c_tran" else SMALL_HEAD
        backbone = AutoModel.from_config(config)
        model = BalanceMixForImageClassification.from_backbone(backbone, tiny.NAMES, size, head, options).eval()
    model.config.problem_type = "multi_label_classification"
    pixels = pictures(16, size, seed=0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):  # some start at zero: nothing passes
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias)
                module.momentum = None  # statistics of the next pictures alone
        model.train()(pixel_values=pixels)
        last = [p for p in model.parameters() if p.requires_grad and p.ndim > 1][-1]
        last.mul_(5 / model.eval()(pixel_values=pixels).logits.abs().max())
    return model


def of_onnx(path, pixels):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"pixel_values": pixels.numpy()})[0]


def metadata_of(path):
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


def agrees(model, run, size=SIZE):
    """The largest difference to the model, at batch sizes that the export has not seen; logits must differ."""
    worst = 0.0
    for batch in (1, 3, 5):
        pixels = pictures(batch, size, seed=batch)
        with torch.no_grad():
            wanted = model(pixel_values=pixels).logits.numpy()
        found = run(pixels)
        assert found.shape == (batch, len(tiny.NAMES))
        worst = max(worst, np.abs(wanted - found).max())
    assert np.ptp(wanted, axis=0).max() > 0.1
    return worst


HEADS = [(config, head) for config in (resnet, tresnet, vit) for head in ("linear", "ml_decoder")]
HEADS += [(swin_of_transformers, "linear"), (swin, "ml_decoder")]


@pytest.mark.parametrize(
    ("config", "head"),
    HEADS,
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_onnx_gives_the_logits_of_the_model(config, head, tmp_path):
    model = network(config(), head)
    done = export_model(model, tiny.processor(SIZE), tmp_path / "model.onnx")
    assert agrees(model, lambda pixels: of_onnx(tmp_path / "model.onnx", pixels)) < 2e-5
    assert done.max_difference < 2e-5
    assert (done.batch_sizes, done.image_size, done.num_labels) == ((1, 4), (SIZE, SIZE), 5)
    assert done.num_bytes == done.path.stat().st_size
    assert list(done.seconds) == ["PyTorch", "ONNX Runtime"]
    assert all(0 < seconds < 10 for seconds in done.seconds.values())


@pytest.mark.parametrize(("config", "head"), [(vit, "query2label"), (resnet, "c_tran")])
def test_torch_export_gives_the_logits_of_the_model(config, head, tmp_path):
    model = network(config(), head)
    done = export_model(model, tiny.processor(SIZE), tmp_path / "model.pt2", "torch_export")
    program = torch.export.load(done.path).module()
    assert agrees(model, lambda pixels: program(pixel_values=pixels).detach().numpy()) < 2e-5
    assert list(done.seconds) == ["PyTorch", "torch.export"]


@pytest.fixture(scope="module")
def vit_model():
    return network(tiny.tiny_vit().config, size=tiny.SIZE)


def without_paths(path):
    content = path.read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content


CLASSES = ("猫", 'say "hi" <b>', "two\nlines", "a,b", "ant")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ABOUT = {
    "class_names": list(CLASSES),
    "image_size": [16, 16],
    "rescale_factor": pytest.approx(1 / 255),
    "image_mean": MEAN,
    "image_std": STD,
}


@pytest.fixture(scope="module")
def exported(vit_model, tmp_path_factory):
    """A model with awkward names, its image processor and its file, checked on a single picture."""
    model = copy.deepcopy(vit_model)
    model.config.id2label = dict(enumerate(CLASSES))
    model.config.label2id = {name: i for i, name in enumerate(CLASSES)}
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD)
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return model, processor, export_model(model, processor, path, images=[Image.new("RGB", (20, 30))])


def test_names_shapes_and_metadata(exported):
    path = exported[2].path
    assert exported[2].batch_sizes == (1, 2)
    graph = onnx.load(path).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {"pixel_values": ["batch", 3, 16, 16], "logits": ["batch", 5]}
    assert metadata_of(path) == ABOUT
    without_paths(path)


def test_the_metadata_of_a_program_and_thresholds(exported, tmp_path):
    model, processor, _ = exported
    model = copy.deepcopy(model)
    thresholds = dict(zip(CLASSES, (0.5, 0.25, 0.1, 0.75, 0.5), strict=True))
    model.config.decision_thresholds = thresholds
    done = export_model(model, processor, tmp_path / "model.pt2", "torch_export")
    extra = {"metadata.json": ""}
    torch.export.load(done.path, extra_files=extra)
    assert json.loads(extra["metadata.json"]) == ABOUT | {"decision_thresholds": thresholds}


def test_the_file_and_its_metadata_are_enough_for_the_scores_of_the_pipeline(exported):
    model, processor, done = exported
    about = metadata_of(done.path)
    picture = tiny.tiny_dataset(1)["image"][0]
    height, width = about["image_size"]
    pixels = np.asarray(picture.resize((width, height)), dtype=np.float32) * about["rescale_factor"]
    pixels = (pixels - np.float32(about["image_mean"])) / np.float32(about["image_std"])
    logits = of_onnx(done.path, torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()))
    scores = dict(zip(about["class_names"], 1 / (1 + np.exp(-logits[0])), strict=True))
    classify = pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    stock = {entry["label"]: entry["score"] for entry in classify(picture, top_k=None)}
    assert scores == pytest.approx(stock, abs=1e-5)
    assert max(stock.values()) - min(stock.values()) > 0.1


def test_a_program_runs_without_transformers_and_holds_no_pictures_and_no_paths(vit_model, tmp_path):
    photos = list(tiny.tiny_dataset(3)["image"])
    done = export_model(vit_model, tiny.processor(), tmp_path / "model.pt2", "torch_export", photos)
    assert done.batch_sizes == (1, 3)
    assert not torch.export.load(done.path).example_inputs[1]["pixel_values"].any()
    without_paths(done.path)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('transformers', 'timm', 'hf_balancemix')))\n"
        "import torch; run = torch.export.load(sys.argv[1]).module()\n"
        "print(*run(pixel_values=torch.ones(2, 3, 16, 16))[1].tolist())"
    )
    words = [sys.executable, "-c", code, str(done.path)]
    answer = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True).stdout
    with torch.no_grad():
        wanted = vit_model(pixel_values=torch.ones(1, 3, 16, 16)).logits[0].tolist()
    assert [float(word) for word in answer.split()] == pytest.approx(wanted, abs=1e-5)


def test_the_model_stays_as_it_is_and_half_precision_becomes_float32(tmp_path):
    model = network(tiny.tiny_vit(dropout=0.5).config, size=tiny.SIZE).to(torch.bfloat16).train()
    before, grads = tiny.weights_of(model), [p.requires_grad for p in model.parameters()]
    done = export_model(model, tiny.processor(), tmp_path / "new" / "model.pt2", "torch_export")
    assert tiny.same_weights(before, tiny.weights_of(model))
    assert model.training
    assert model.dtype == torch.bfloat16
    assert [p.requires_grad for p in model.parameters()] == grads
    assert torch.backends.mha.get_fastpath_enabled()
    program = torch.export.load(done.path).module()
    assert {p.dtype for p in program.parameters()} == {torch.float32}
    assert agrees(model.float().eval(), lambda pixels: program(pixel_values=pixels).detach().numpy(), tiny.SIZE) < 2e-5


def wrong_by(monkeypatch, error, batch=None):
    """Exported files answer with logits that are wrong by so much, in batches of that size or in all."""
    load = export.load

    def wrong(path, to):
        run = load(path, to)
        return lambda pixels: run(pixels) + (error if batch in (None, len(pixels)) else 0)

    monkeypatch.setattr(export, "load", wrong)


@pytest.mark.parametrize(
    ("error", "batch"), [(1e-3, None), (1e-3, 1), (-1e-3, 4), (float("nan"), 4), (torch.zeros(2, 1, 1), None)]
)
def test_a_file_that_differs_is_not_kept(error, batch, vit_model, tmp_path, monkeypatch):
    (tmp_path / "model.pt2").write_bytes(b"old")
    wrong_by(monkeypatch, error, batch)
    parts = ["logits of torch.export that differ from PyTorch's by at most 0.0001 (rel", "No file was kept."]
    words = (vit_model, tiny.processor(), tmp_path / "model.pt2", "torch_export")
    tiny.refused(ValueError, parts, export_model, *words, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_bytes() == b"old"


def test_a_file_within_the_tolerance_is_kept(vit_model, tmp_path, monkeypatch):
    (tmp_path / "model.pt2").write_bytes(b"old")
    wrong_by(monkeypatch, 0.5e-4)
    words = (vit_model, tiny.processor(), tmp_path / "model.pt2", "torch_export")
    done = export_model(*words, overwrite=True)
    assert isinstance(done, Exported)
    assert 1e-5 < done.max_difference <= 0.51e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert torch.export.load(tmp_path / "model.pt2")


@pytest.mark.parametrize(
    ("found", "difference"),
    [([0.00009, 8.0], 9e-5), ([0.00011, 8.0], None), ([0.0, 8.0007], 8.75e-5), ([0.0, 8.0009], None)],
)
def test_the_tolerance_grows_with_logits_beyond_one(found, difference):
    runs = [lambda _, logits=logits: torch.tensor([logits]) for logits in ([0.0, 8.0], found)]
    if difference is None:
        tiny.refused(ValueError, ["in a batch of 1. No file"], export._difference, torch.zeros(1), *runs, "it")
    else:
        assert export._difference(torch.zeros(1), *runs, "it") == pytest.approx(difference, rel=0.01)


def test_a_model_of_nan(tmp_path):
    model = tiny.tiny_vit()
    model.classifier.bias.data[2] = float("nan")
    parts = ["Expected finite logits of the model for all 1 pictures", "NaN or infinity", "no file was kept"]
    words = (model, tiny.processor(), tmp_path / "model.pt2", "torch_export")
    tiny.refused(ValueError, parts, export_model, *words)
    assert not list(tmp_path.iterdir())


class Reads(torch.nn.Module):
    """Looks at a value, which decides what it computes."""

    def forward(self, logits):
        return logits * 2 if logits.sum() > 0 else logits


class Counts(torch.nn.Module):
    """Takes the number of pictures for a constant."""

    def forward(self, logits):
        return logits.reshape(len(logits), -1) + torch.zeros(len(logits), 1)


@pytest.mark.parametrize("last", [Reads, Counts])
def test_a_model_that_cannot_be_recorded(last, tmp_path):
    model = tiny.tiny_vit()
    model.classifier = torch.nn.Sequential(model.classifier, last())
    parts = ["a model that torch.export can record for any number", "found that it cannot record ViTFor", "Choose ano"]
    tiny.refused(ValueError, parts, export_model, model, tiny.processor(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_operation_that_onnx_does_not_have(tmp_path):
    class Bessel(torch.nn.Module):
        def forward(self, logits):
            return torch.special.i1e(logits)

    model = tiny.tiny_vit()
    model.classifier = torch.nn.Sequential(model.classifier, Bessel())
    parts = ["a model that torch.onnx can record", "found that it cannot record ViTFor", "Choose another format"]
    tiny.refused(ValueError, parts, export_model, model, tiny.processor(), tmp_path / "model.onnx")
    assert export_model(model, tiny.processor(), tmp_path / "model.pt2", "torch_export").max_difference < 1e-5


def test_a_model_that_is_too_large_for_onnx(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_MOST_BYTES", 10_000)
    words = (tiny.tiny_vit(), tiny.processor(), tmp_path / "model.onnx")
    parts = ["at most 2.1 GB for a file of ONNX", "0.0 GB of ViTForImageClassification", "the format torch_export."]
    tiny.refused(ValueError, parts, export_model, *words)


def test_packages_that_are_missing(tmp_path, monkeypatch):
    find = export.importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name: None if name in ("onnxscript", "onnx") else find(name)
    )
    message = (
        "Expected the packages onnx, onnxruntime, onnxscript, found no onnx, no onnxscript. Install them: pip install "
        "'hf-balancemix[onnx]'; or choose the format torch_export, which needs none."
    )
    tiny.refused(ValueError, [message], check_export, tmp_path / "model.onnx")
    assert check_export(tmp_path / "model.pt2", "torch_export") == tmp_path / "model.pt2"


def test_paths_that_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a.onnx").write_bytes(b"old")
    (tmp_path / "folder.onnx").mkdir()
    wrong = {
        ("x.onnx", "onxx"): ["a format among onnx, torch_export, found 'onxx' (did you mean 'onnx'?). Choose one."],
        ("x.pt2", "onnx"): ["ends in .onnx", "x.pt2'. Give it that ending, or choose the format torch_export."],
        ("x.onnx", "torch_export"): ["ends in .pt2", "or choose the format onnx."],
        ("x", "onnx"): ["ends in .onnx for the format onnx", "x'. Give it that ending."],
        ("folder.onnx", "onnx"): ["a file for the model, found the folder", "Choose another name."],
        ("a.onnx", "onnx"): ["no file at", "a.onnx', where the model goes, found one.", "--overwrite"],
    }
    for (name, to), parts in wrong.items():
        tiny.refused(ValueError, parts, check_export, tmp_path / name, to)
    assert check_export(tmp_path / "a.onnx", overwrite=True) == tmp_path / "a.onnx"
    words = (tiny.tiny_vit(), tiny.processor())
    for path in (tmp_path / "a.onnx" / "b.onnx", tmp_path / f"{'x' * 300}.onnx"):
        parts = ["a file for the model that can be written, found '", ".onnx' (", "Choose another one."]
        tiny.refused(ValueError, parts, export_model, *words, path)
    assert (tmp_path / "a.onnx").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "folder.onnx"]


def test_a_full_disk(vit_model, tmp_path, monkeypatch):
    def write(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write", write)
    parts = ["model.onnx' (No space left on device). Choose another one."]
    tiny.refused(ValueError, parts, export_model, vit_model, tiny.processor(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_more_pictures_than_the_check_takes(vit_model, tmp_path):
    photos = [Image.new("RGB", (20, 30), (9 * i, 0, 0)) for i in range(12)]
    words = (vit_model, tiny.processor(), tmp_path / "model.pt2", "torch_export", photos)
    assert export_model(*words).batch_sizes == (1, 8)
