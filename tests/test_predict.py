"""Predictions from a checkpoint: the same scores as the stock pipeline, the right files, and clear mistakes."""

import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_balancemix.build import build_model
from hf_balancemix.data.images import UnreadableImageError
from hf_balancemix.predict import find_images, load_checkpoint, predict_probs
from tests import tiny

NAMES = ("猫", "bee, wasp", 'a "b"', "LABEL_0", "eel")
ROWS = 11


def save_checkpoint(folder, model, processor, paths, dtype=torch.float32):
    """A model whose scores differ between images and classes, as after training."""
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    pixels = processor([Image.open(path).convert("RGB") for path in paths], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model.eval()(pixels).logits
        head.weight.div_(logits.std(dim=0)[:, None])
        head.bias.sub_(logits.mean(dim=0)).div_(logits.std(dim=0))
    model.to(dtype)
    model.config.problem_type = "multi_label_classification"
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: i for i, name in enumerate(NAMES)}
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("checkpoints")
    timm_model, timm_processor = build_model("test_resnet", NAMES, 32, pretrained=False)
    return {
        name: save_checkpoint(folder / name, model, processor, pictures, dtype)
        for name, model, processor, dtype in (
            ("resnet", tiny.tiny_resnet(), tiny.processor(32), torch.float32),
            ("vit", tiny.tiny_vit(dropout=0.5), tiny.processor(), torch.float32),
            ("timm", timm_model, timm_processor, torch.float32),
            ("bfloat16", tiny.tiny_resnet(), tiny.processor(32), torch.bfloat16),
        )
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of every kind that needs conversion: modes, a turned photograph, sizes, names."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for i in range(ROWS):
        height, width = rng.integers(12, 60, 2)
        levels = rng.integers(0, 256, 3)[:, None, None] * 0.7 + rng.integers(0, 75, (3, height, width))
        paths.append((Image.fromarray(levels.transpose(1, 2, 0).astype(np.uint8)), f"plain {i}.png"))
    image = paths[0][0]
    turned = Image.Exif()
    turned[0x0112] = 6
    paths[1] = (image.convert("L"), "grey.png")
    paths[2] = (image.convert("RGBA"), "transparent.png")
    paths[3] = (image.convert("P"), "palette.gif")
    paths[4] = (image.convert("CMYK"), "print.jpg")
    paths[5] = (paths[5][0], "a:b [猫] *.png")
    for picture, name in paths:
        picture.save(folder / name)
    Image.fromarray(np.tile(np.arange(48, dtype=np.uint8)[:, None, None] * 5, (1, 24, 3))).save(
        folder / "turned.jpg", exif=turned
    )
    return [str(folder / name) for _, name in paths[:-1]] + [str(folder / "turned.jpg")]


def as_dataset(paths):
    return datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())


def predicted(checkpoint, paths, **options):
    model, processor = load_checkpoint(checkpoint)
    starts, batches = zip(*predict_probs(model, processor, as_dataset(paths), **options), strict=True)
    sizes = [len(batch) for batch in batches]
    assert list(starts) == np.cumsum([0, *sizes[:-1]]).tolist()
    assert all(batch.dtype == np.float32 and batch.shape[1] == len(NAMES) for batch in batches)
    return np.concatenate(batches)


@pytest.mark.parametrize(("name", "tolerance"), [("resnet", 2e-3), ("vit", 2e-3), ("timm", 2e-3), ("bfloat16", 1e-2)])
def test_the_scores_are_those_of_the_pipeline(checkpoints, pictures, name, tolerance):
    classify = pipeline("image-classification", model=checkpoints[name], device="cpu")
    stock = [{e["label"]: e["score"] for e in classify(Image.open(path), top_k=None)} for path in pictures]
    expected = np.array([[row[label] for label in NAMES] for row in stock])
    # Rows and classes differ by more than the tolerance, so that none can change places unseen.
    assert min(expected.std(axis=0).min(), expected.std(axis=1).min()) > 4 * tolerance
    np.testing.assert_allclose(predicted(checkpoints[name], pictures), expected, atol=tolerance)


def test_neither_batch_size_nor_workers_nor_order_change_a_score(checkpoints, pictures):
    expected = predicted(checkpoints["vit"], pictures, batch_size=100)
    for options in ({"batch_size": 1}, {"batch_size": 4}, {"batch_size": 4, "num_workers": 2}):
        np.testing.assert_allclose(predicted(checkpoints["vit"], pictures, **options), expected, atol=1e-5)
    np.testing.assert_allclose(predicted(checkpoints["vit"], pictures[::-1]), expected[::-1], atol=1e-5)


def test_a_model_in_training_mode_predicts_all_the_same(checkpoints, pictures):
    model, processor = load_checkpoint(checkpoints["vit"])
    model.train()
    batches = predict_probs(model, processor, as_dataset(pictures), batch_size=4)
    _, first = next(batches)
    assert torch.is_grad_enabled()  # the caller's code keeps its gradients
    np.testing.assert_allclose(first, predicted(checkpoints["vit"], pictures)[:4], atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_one_error_and_the_batches_before_it_arrive(checkpoints, pictures, tmp_path, workers):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    model, processor = load_checkpoint(checkpoints["vit"])
    rows = as_dataset([*pictures[:5], str(damaged)])
    batches = predict_probs(model, processor, rows, batch_size=2, num_workers=workers)
    assert [next(batches)[0], next(batches)[0]] == [0, 2]
    with pytest.raises(UnreadableImageError, match=r"damaged\.png") as caught:
        next(batches)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_processor_without_one_size_is_one_error(pictures, workers):
    processor = tiny.processor()
    processor.do_resize = False
    batches = predict_probs(tiny.tiny_vit(), processor, as_dataset(pictures[5:]), batch_size=4, num_workers=workers)
    with pytest.raises(ValueError, match="^Expected an image processor that gives one size"):
        next(batches)


# ---- checkpoints ----


def test_a_checkpoint_comes_with_its_classes(checkpoints):
    model, processor = load_checkpoint(Path(checkpoints["vit"]))
    assert list(model.config.id2label.values()) == list(NAMES)
    assert not model.training
    assert processor.size["height"] == tiny.SIZE


def with_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


WRONG = {
    "no preprocessor": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        r"Expected an image processor in .*cannot be loaded \(.*\)\. .*save_pretrained",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"Expected the weights of a model in .*model\.safetensors",
    ),
    "damaged weights": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
        r"Expected the weights of a model in .*\(.*header.*\)\. Copy",
    ),
    "weights left out": (
        lambda folder: with_config(folder, num_hidden_layers=3),
        r"found 16 missing, for instance 'vit\.layers\.2",
    ),
    "weights of another size": (
        lambda folder: with_config(folder, hidden_size=32),
        r"Expected the weights of a model in .*mismatched",
    ),
    "damaged config": (
        lambda folder: (folder / "config.json").write_text("{"),
        r"Expected the configuration of a model in .*not a valid JSON",
    ),
    "unknown model": (
        lambda folder: with_config(folder, model_type="nonsense"),
        r"Expected the configuration of a model in .*nonsense",
    ),
    "no image model": (
        lambda folder: with_config(folder, model_type="bert"),
        r"Expected the weights of a model in .*BertConfig",
    ),
    "single-label": (
        lambda folder: with_config(folder, problem_type="single_label_classification"),
        r"Expected a model for several labels per image .*found 'single_label_classification' in .*Choose",
    ),
    "no problem type": (
        lambda folder: with_config(folder, problem_type=None),
        r"Expected a model for several labels per image .*found None in .*Choose",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_checkpoint_is_one_clear_error(checkpoints, tmp_path, name):
    damage, message = WRONG[name]
    folder = tmp_path / "model"
    shutil.copytree(checkpoints["vit"], folder)
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_names_those_inside(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run/balancemix-seed0", "run/bce-seed0", "run/bce-seed10", "run/bce-seed9"):
        shutil.copytree(checkpoints["vit"], tmp_path / name)
    names = r"'run/balancemix-seed0' or 'run/bce-seed0' or 'run/bce-seed9' or 'run/bce-seed10'\?$"
    for folder in ("run", "."):
        with pytest.raises(ValueError, match=rf"no config\.json in '{folder}'. Did you mean {names}"):
            load_checkpoint(folder)
    for step in (90, 1000, 200):
        shutil.copytree(checkpoints["vit"], tmp_path / "broken-off" / f"checkpoint-{step}")
    with pytest.raises(ValueError, match=r"/checkpoint-90' or '.*/checkpoint-200' or '.*/checkpoint-1000'\?"):
        load_checkpoint("broken-off")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json in 'empty'\. Check"):
        load_checkpoint("empty")


def test_a_checkpoint_that_is_not_there_names_the_nearest(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoints["vit"], tmp_path / "runs" / "coco" / "balancemix-seed0")
    for name, near in (
        ("runs/coco/balancemix-seed1", "balancemix-seed0"),
        ("./run/coco/balancemix-seed0", "runs"),
        (f"{tmp_path}/runs/cocoa", "coco"),
    ):
        with pytest.raises(ValueError, match=rf"found no folder '{name}' \(did you mean '{near}'\?\)\. Check"):
            load_checkpoint(name)
    for name in ("", "a/b/c", "~/runs", "my model", "two\nlines"):
        with pytest.raises(ValueError, match=r"found no folder '.*'.*\. Check") as caught:
            load_checkpoint(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"found the file '.*config\.json'.* 'runs/coco/balancemix-seed0'\."):
        load_checkpoint("runs/coco/balancemix-seed0/config.json")


@pytest.mark.parametrize(("reachable", "remedy"), [(True, r"name\.$"), (False, "the Hub cannot be reached")])
def test_a_hub_name_asks_for_the_connection_first(tmp_path, monkeypatch, reachable, remedy):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").mkdir()
    asked = []

    def not_found(name, **options):
        raise OSError(f"{name} is not a model identifier.\nAnd more lines")

    monkeypatch.setattr("hf_balancemix.predict.prepare_hub", lambda: asked.append(True) or reachable)
    monkeypatch.setattr("hf_balancemix.predict.AutoConfig.from_pretrained", not_found)
    message = (
        r"^Expected the configuration of a model in 'runs/min', found that it cannot be loaded \(runs/min is not a "
        rf"model identifier\)\. There is no folder of that name either \(did you mean 'mine'\?\)\. Check .*{remedy}"
    )
    with pytest.raises(ValueError, match=message):
        load_checkpoint("runs/min")
    assert asked == [True]


def test_a_local_folder_needs_no_connection(checkpoints, monkeypatch):
    monkeypatch.setattr("hf_balancemix.predict.prepare_hub", lambda: pytest.fail("asked for the Hub"))
    assert load_checkpoint(checkpoints["timm"])[0].config.num_labels == len(NAMES)


# ---- files ----


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("b.JPG", "a.png", "sub/deep/c.jpeg", "sub/a.webp", "notes.txt", "sub/.hidden.png", "[1].png", "1.png")
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "photos" / "*.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_files_folders_and_patterns(tree):
    everything = ["photos/*.png", "photos/1.png", "photos/[1].png", "photos/a.png", "photos/b.JPG"]
    everything += ["photos/sub/a.webp", "photos/sub/deep/c.jpeg"]
    assert find_images(["photos"]) == everything
    assert find_images(["photos/"]) == everything
    assert find_images([f"{tree}/photos"]) == [f"{tree}/{name}" for name in everything]
    assert find_images(["photos/b.JPG", "photos/a.png"]) == ["photos/b.JPG", "photos/a.png"]
    assert find_images(["photos/?.png"]) == ["photos/*.png", "photos/1.png", "photos/a.png"]
    assert find_images(["**/*.jp*g"]) == ["photos/sub/deep/c.jpeg"]
    assert find_images(["photos/s*"]) == ["photos/sub/a.webp", "photos/sub/deep/c.jpeg"]  # a folder that fits
    assert find_images(["photos/notes.txt"]) == ["photos/notes.txt"]  # named, so taken


def test_what_exists_is_no_pattern(tree):
    assert find_images(["photos/*.png"]) == ["photos/*.png"]
    assert find_images(["photos/[1].png"]) == ["photos/[1].png"]
    os.remove("photos/[1].png")
    assert find_images(["photos/[1].png"]) == ["photos/1.png"]


def test_each_file_once_at_its_first_place(tree):
    found = find_images(["photos/sub/a.webp", "./photos/a.png", "photos", f"{tree}/photos/b.JPG", "photos/a.png"])
    assert found[:2] == ["photos/sub/a.webp", "./photos/a.png"]
    assert found[2:] == ["photos/*.png", "photos/1.png", "photos/[1].png", "photos/b.JPG", "photos/sub/deep/c.jpeg"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("photos/aa.png", r"called 'photos/aa\.png' or fits it as a pattern \(did you mean 'a\.png'\?\)\. Check"),
        ("photo/a.png", r"called 'photo/a\.png' or .* \(did you mean 'photos'\?\)"),
        ("photos/*.gif", r"called 'photos/\*\.gif' or fits it"),
        ("photos/a.png/x.png", r"called 'photos/a\.png/x\.png'"),
        ("", r"called '' or fits"),
        ("empty", r"Expected images in 'empty', found no file that ends in \.jpg, .*\. Check"),
        ("e*", r"Expected images in 'e\*', found no file"),
    ],
)
def test_nothing_found_is_an_error(tree, pattern, message):
    with pytest.raises(ValueError, match=message):
        find_images(["photos/a.png", pattern])


def test_a_name_that_is_no_text(tmp_path, monkeypatch):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    try:
        with open(path, "wb"):
            pass
    except OSError:  # a file system that takes only names in UTF-8: as another one would list it
        monkeypatch.setattr(os, "walk", lambda folder: [(folder, [], [os.path.basename(os.fsdecode(path))])])
    with pytest.raises(ValueError, match=r"in UTF-8, found b'.*caf\\xe9\.png'\. Rename"):
        find_images([str(tmp_path)])
