"""Backbones from timm and transformers: built, trained for two steps, saved, and reloaded in a new process."""

import copy
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import timm
import torch
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    ConvNextConfig,
    ConvNextForImageClassification,
    SwinConfig,
    pipeline,
)

from hf_balancemix import BalanceMixTrainer
from hf_balancemix.build import ImageSizeError, build_model, usable_image_size
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


def hub_answers(monkeypatch, reachable):
    """The Hub is there, is not, or must not be asked for."""
    for module in ("build", "backbones"):
        monkeypatch.setattr(f"hf_balancemix.{module}.prepare_hub", reachable)


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
    with pytest.raises(ImageSizeError, match=r"image_size.*takes, found 32 .*16\*16.*unset"):
        build_model(str(tmp_path), tiny.NAMES, 32)
    assert usable_image_size(str(tmp_path), 32) is None  # its own
    assert usable_image_size(str(tmp_path), 16) == 16
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

    hub_answers(monkeypatch, lambda: True)
    monkeypatch.setattr(AutoModelForImageClassification, "from_pretrained", offline)
    # A timm name without a tag stands for timm's default weights; the Hub knows only names with a tag.
    with pytest.raises(ValueError, match=r"no way to timm/resnet18\.a1_in1k\).*connection"):
        build_model("resnet18", tiny.NAMES)


@pytest.mark.parametrize("image_size", [7, 1, 0, -4])
def test_an_impossible_image_size(image_size):
    with pytest.raises(ValueError, match=f"at least 8 pixels, found {image_size}.*unset"):
        build_model("small_resnet", tiny.NAMES, image_size)


@pytest.mark.parametrize(
    ("name", "size", "fits"),
    [
        ("small_resnet", None, 8),
        ("densenet121", 16, 32),  # a pooling layer runs out of pixels
        ("vit_tiny_patch16_224", 8, 16),  # built for the size, and there is no whole patch
        ("deit_tiny_patch16_224", 32, 224),  # one size only, which timm does not say before it sees another
        ("maxvit_rmlp_pico_rw_256", 16, 32),  # cannot be built for it
    ],
)
def test_a_size_is_tried_before_training(name, size, fits):
    if size:
        with pytest.raises(ValueError, match=rf"`image_size` that {name} takes, found {size} \(.+\)\..*unset"):
            build_model(name, tiny.NAMES, size, pretrained=False)
    model, _ = build_model(name, tiny.NAMES, fits, pretrained=False)
    assert model.training  # as without the trial


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_size_is_tried_in_the_checkpoints_own_precision(tmp_path, dtype):
    model, processor = build_model("small_resnet", tiny.NAMES, 16)
    model.to(dtype).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert build_model(str(tmp_path), tiny.NAMES, 16)[0].dtype == dtype


def test_a_saved_timm_model_takes_another_size_if_its_architecture_does(tmp_path):
    for name, folder in (("resnet18", tmp_path / "resnet"), ("vit_tiny_patch16_224", tmp_path / "vit")):
        build_model(name, tiny.NAMES, 64, pretrained=False)[0].save_pretrained(folder)
    model, processor = build_model(str(tmp_path / "resnet"), tiny.NAMES, 32)
    assert processor.data_config["input_size"] == (3, 32, 32) == tuple(model.config.pretrained_cfg["input_size"])
    BalanceMixTrainer(
        model, tiny.arguments(tmp_path), train_dataset=tiny.tiny_dataset(8), processing_class=processor
    )  # not refused
    with pytest.raises(ImageSizeError, match=r"takes, found 32 .*64"):
        build_model(str(tmp_path / "vit"), tiny.NAMES, 32)


def test_a_size_in_the_configuration_does_not_bind_an_architecture_that_takes_any(tmp_path):
    config = ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], image_size=64, num_labels=5)
    ConvNextForImageClassification(config).save_pretrained(tmp_path)
    tiny.processor(64).save_pretrained(tmp_path)
    _, processor = build_model(str(tmp_path), tiny.NAMES, 96)
    assert processor.size["height"] == 96


def test_pretrained_timm_weights_for_another_size_come_from_timm(monkeypatch):
    """transformers would draw the position embeddings of another size anew; timm resamples them."""
    hub_answers(monkeypatch, lambda: True)
    source = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=5, img_size=32)
    asked = []

    def create_model(name, **options):
        asked.append((name, options))
        return source

    monkeypatch.setattr("hf_balancemix.backbones.timm.create_model", create_model)
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


def save_small_resnet(folder, names):
    model, processor = build_model("small_resnet", names, 16)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("bee", "ant", "cat", "dog", "eel"),
            "found 2 others in .*: 'ant' where you have 'bee' (output 0); 'bee' where",
        ),
        (("ant", "bee", "cat", "dog", "EEL"), "found 1 others in .*: 'eel' where you have 'EEL' (output 4). List"),
        (("v", "w", "x", "y", "z"), "found 5 others in .*'cat' where you have 'x' (output 2); .... List"),
    ],
)
def test_a_head_for_other_classes_is_not_kept(tmp_path, names, message):
    model = save_small_resnet(tmp_path, tiny.NAMES)
    with pytest.raises(ValueError, match=re.escape(message).replace(re.escape(".*"), ".*")):
        build_model(str(tmp_path), names)
    # Kept for the same classes; not asked for where nothing is loaded or the head is new anyway.
    again, _ = build_model(str(tmp_path), tiny.NAMES)
    assert tiny.same_weights(tiny.weights_of(model), tiny.weights_of(again))
    build_model(str(tmp_path), names, pretrained=False)
    build_model(str(tmp_path), names[:4])


def test_a_head_without_class_names_is_kept(tmp_path):
    model = tiny.tiny_vit()  # LABEL_0 to LABEL_4
    model.save_pretrained(tmp_path)
    tiny.processor().save_pretrained(tmp_path)
    again, _ = build_model(str(tmp_path), tiny.NAMES)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    assert tuple(again.config.id2label.values()) == tiny.NAMES


def test_a_saved_timm_models_classes_are_compared_too(tmp_path):
    model, processor = build_model("resnet18", tiny.NAMES, 32, pretrained=False)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    build_model(str(tmp_path), tiny.NAMES)
    with pytest.raises(ValueError, match="'ant' where you have 'eel'"):
        build_model(str(tmp_path), tiny.NAMES[::-1])


def put_in_cache(cache, name, model):
    """Lay a checkpoint where the Hub's client keeps its downloads."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    model.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    return snapshot


def test_the_head_of_a_timm_backbone_is_new_even_for_as_many_classes(tmp_path, monkeypatch):
    names = tuple(f"attribute {i}" for i in range(1000))
    source, _ = build_model("resnet18", names, 32, pretrained=False)  # stands for the 1,000 of ImageNet
    put_in_cache(tmp_path, "timm/resnet18.a1_in1k", source)
    hub_answers(monkeypatch, lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, _ = build_model("resnet18.a1_in1k", names, 32)
    theirs, ours = source.timm_model, model.timm_model
    assert torch.equal(ours.conv1.weight, theirs.conv1.weight)
    assert ours.fc.weight.shape == theirs.fc.weight.shape
    assert not torch.equal(ours.fc.weight, theirs.fc.weight)


def test_a_broken_checkpoint_folder_is_one_clear_error(tmp_path):
    save_small_resnet(tmp_path / "whole", tiny.NAMES)
    for name in ("cut", "bare", "text"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "bare" / "model.safetensors").unlink()
    BertConfig().save_pretrained(tmp_path / "text")
    for name in ("cut", "bare", "text"):
        with pytest.raises(
            ValueError, match=f"can be loaded, found that .*{name}' cannot .*It takes config.json"
        ) as e:
            build_model(str(tmp_path / name), tiny.NAMES)
        assert "\n" not in str(e.value)
        assert "connection" not in str(e.value)


AS_A_USER = """
import sys, time
from hf_balancemix.build import ImageSizeError, build_model, usable_image_size
from hf_balancemix.command_line import run_with_clear_errors
for name in sys.argv[1:]:
    start = time.perf_counter()
    try:
        run_with_clear_errors(lambda: build_model(name, ("a", "b")))
    except SystemExit as stopped:
        print(stopped.code, time.perf_counter() - start)
    else:
        print(0, time.perf_counter() - start)
"""


def as_a_user(names, endpoint, home):
    """What a user sees who asks for backbones in a new process: exit status and seconds of each, lines on stderr."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    command = [sys.executable, "-c", AS_A_USER, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    numbers = [line.split() for line in done.stdout.splitlines()]
    return [int(status) for status, _ in numbers], [float(s) for _, s in numbers], done.stderr.splitlines()


@pytest.mark.slow
def test_without_a_network_the_answer_is_quick_and_clear(tmp_path):
    source, _ = build_model("resnet18", [str(i) for i in range(1000)], 32, pretrained=False)
    put_in_cache(tmp_path / "hub", "timm/resnet18.a1_in1k", source)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # refuses connections
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}"
        names = ["google/vit-base-patch16-224", "resnet50.tv_in1k", "resnet18"]  # the last one is cached
        statuses, seconds, lines = as_a_user(names, endpoint, tmp_path)
    assert statuses == [2, 2, 0]
    assert max(seconds) < 5
    assert not [line for line in lines if "Retrying" in line or "thrown" in line]
    warning, *errors = lines[:3]  # what follows is the report on the new head
    assert warning == f"The Hub ({endpoint}) cannot be reached: only files in the cache can be used."
    for error, name in zip(errors, ("google/vit-base-patch16-224", "timm/resnet50.tv_in1k"), strict=True):
        assert error.startswith(
            f"error: Expected a backbone that can be loaded, found that '{name}' cannot (it is no "
        )
        parts = (f"`hf download {name}`", f"models--{name.replace('/', '--')} from", str(tmp_path / "hub"), endpoint)
        for part in (*parts, "local checkpoint folder", "--pretrained False"):
            assert part in error


class NotFound(http.server.BaseHTTPRequestHandler):
    """A Hub that has nothing."""

    def do_GET(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 (the library's name)

    def log_message(self, *args):
        pass


@pytest.mark.slow
def test_a_name_that_the_hub_does_not_know(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        statuses, _, (error,) = as_a_user(["nobody/nothing"], endpoint, tmp_path)
        server.shutdown()
    assert statuses == [2]
    assert error == (
        "error: Expected a backbone that can be loaded, found that 'nobody/nothing' cannot (there is no such model on "
        f"the Hub, {endpoint}, or it is not open to you). Check the name; for a private or gated model, log in with "
        "`hf auth login`."
    )


def test_only_what_may_come_from_the_hub_asks_for_it(tmp_path, monkeypatch):
    hub_answers(monkeypatch, lambda: pytest.fail("asked"))
    save_small_resnet(tmp_path, tiny.NAMES)
    build_model(str(tmp_path), tiny.NAMES)
    build_model("resnet18", tiny.NAMES, 32, pretrained=False)
    for name, pretrained in (("resnet18", True), ("google/vit", True), ("google/vit", False)):
        with pytest.raises(pytest.fail.Exception, match="asked"):
            build_model(name, tiny.NAMES, pretrained=pretrained)
    with pytest.raises(ValueError, match="did you mean"):  # a typing error is found without it
        build_model("resnet5", tiny.NAMES)
