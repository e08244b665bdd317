"""COCO: labels counted by hand, class order, crowds and empty images, pictures, the cache, and every mistake."""

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest
from transformers import ViTImageProcessor

from hf_balancemix.data import coco
from hf_balancemix.data.coco import load_coco
from hf_balancemix.data.columns import encode_labels, find_image_column
from hf_balancemix.data.transforms import ImageTransform
from tests.layouts.coco import CLASS_NAMES, stripes, write_coco, write_synthetic_annotations

SIZE = 20


def content():
    """Three categories, four images: 7 has a cat and two dogs, 3 a crowd of dogs, 40 an eel, 5 nothing."""
    boxes = [(1, 7, 90, 0), (2, 40, 17, 0), (3, 7, 4, 0), (4, 7, 90, 0), (900100000003, 3, 90, 1)]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 9} for i in (7, 3, 40, 5)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": k, "iscrowd": crowd, "segmentation": [[1.5, 2.0]]}
            for i, image, k, crowd in boxes
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 4, "name": "cat"}, {"id": 17, "name": "eel"}],
    }


def write(folder, year="2017", train=None, val=None):
    """Write the layout without pictures: nothing opens them while loading."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for name, data in (("train", train), ("val", val)):
        (folder / f"{name}{year}").mkdir(exist_ok=True)
        data = content() if data is None else data
        text = data if isinstance(data, str | bytes) else json.dumps(data, ensure_ascii=False)
        path = folder / "annotations" / f"instances_{name}{year}.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.fixture
def load(tmp_path):
    """Load from ``tmp_path / "coco"``, with a cache of the test's own."""

    def call(data_dir=tmp_path / "coco", **options):
        return load_coco(data_dir, cache_dir=tmp_path / "cache", **options)

    return call


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("it's [1] <кот>")
    truth = write_coco(folder / "coco", size=SIZE, train=30)
    return SimpleNamespace(
        truth=truth,
        kept=load_coco(folder / "coco", keep_empty=True, cache_dir=folder / "cache"),
        splits=load_coco(folder / "coco", cache_dir=folder / "cache"),
    )


def test_hand_counted_labels(tmp_path, load):
    folder = write(tmp_path / "coco")
    for split, name in (("train", "train2017"), ("test", "val2017")):
        dataset = load()[split]
        assert dataset.column_names == ["image", "labels", "id"]
        assert dataset.features["labels"] == datasets.List(datasets.ClassLabel(names=["cat", "eel", "dog"]))
        assert dataset.features["id"] == datasets.Value("int64")
        assert dataset["id"][:] == [3, 7, 40]
        assert dataset["labels"][:] == [[2], [0, 2], [1]]
        assert dataset.split == split
        plain = dataset.cast_column("image", datasets.Image(decode=False))
        assert plain["image"][:] == [{"bytes": None, "path": str(folder / name / f"{i}.jpg")} for i in (3, 7, 40)]


def test_empty_images_kept_have_their_own_cache(tmp_path, load):
    write(tmp_path / "coco")
    for _ in range(2):
        assert load()["train"]["id"][:] == [3, 7, 40]
        kept = load(keep_empty=True)["train"]
        assert kept["id"][:] == [3, 5, 7, 40]
        assert kept["labels"][:] == [[2], [], [0, 2], [1]]
    assert kept._fingerprint != load()["train"]._fingerprint


def test_written_truth(tiny):
    for split, truth in tiny.truth.items():
        names = tiny.splits[split].features["labels"].feature.names
        assert tuple(names) == CLASS_NAMES
        full = {i: classes for i, classes in truth.items() if classes}
        for dataset, expected in ((tiny.kept[split], truth), (tiny.splits[split], full)):
            assert dataset["id"][:] == sorted(expected)
            for row in dataset.select_columns(["id", "labels"]):
                assert row["labels"] == sorted(names.index(name) for name in truth[row["id"]])


def test_crowds_alone_label_an_image(tmp_path, load):
    write_coco(tmp_path / "coco")
    file = json.loads((tmp_path / "coco/annotations/instances_train2017.json").read_text(encoding="utf-8"))
    apart = {a["image_id"] for a in file["annotations"] if not a["iscrowd"]}
    crowds = {a["image_id"] for a in file["annotations"]} - apart
    assert len(crowds) >= 3
    assert crowds < set(load()["train"]["id"][:])


def test_pictures_are_the_right_ones_upright_and_in_colour(tiny):
    names = tiny.splits["train"].features["labels"].feature.names
    modes, stored = set(), set()
    transform = ImageTransform(ViTImageProcessor(size={"height": SIZE, "width": SIZE + SIZE // 4}))
    for split, truth in tiny.truth.items():
        paths = tiny.kept[split].cast_column("image", datasets.Image(decode=False))["image"]
        for row, image in zip(tiny.kept[split], paths, strict=True):
            stored.add(PIL.Image.open(image["path"]).size)
            modes.add(row["image"].mode)
            expected = stripes([name in truth[row["id"]] for name in names], SIZE)
            if row["image"].mode == "L":
                expected = expected @ [[0.299] * 3, [0.587] * 3, [0.114] * 3]
            found = transform.resize([row["image"]])[0].permute(1, 2, 0).numpy()
            # Means of stripe and channel, so that the noise goes; a class more or less changes one by 18 at least.
            difference = (found - expected).reshape(len(names), -1, SIZE + SIZE // 4, 3).mean(axis=(1, 2))
            assert np.abs(difference).max() < 9
    assert modes == {"RGB", "L", "CMYK"}
    assert stored == {(SIZE + SIZE // 4, SIZE), (SIZE, SIZE + SIZE // 4)}  # some lie on their side


def test_loaded_sets_work_with_the_rest(tiny):
    dataset = tiny.splits["train"]
    assert find_image_column(dataset) == "image"
    table = encode_labels(dataset)
    assert table.class_names == CLASS_NAMES
    np.testing.assert_array_equal(table.labels.sum(axis=1), [len(tiny.truth["train"][i]) for i in dataset["id"]])
    mapped = dataset.map(lambda row: {"count": len(row["labels"]), "width": row["image"].size[0]})
    np.testing.assert_array_equal(mapped["count"], table.labels.sum(axis=1))
    assert set(mapped["width"]) == {SIZE + SIZE // 4}
    again = pickle.loads(pickle.dumps(dataset))
    assert again[3]["labels"] == dataset[3]["labels"]
    assert again._fingerprint == dataset._fingerprint


@pytest.mark.parametrize(("there", "asked", "found"), [
    (["2014"], None, 2014), (["2017"], None, 2017), (["2014", "2017"], None, 2017), (["2014", "2017"], "2014", 2014),
])  # fmt: skip
def test_year(tmp_path, load, there, asked, found):
    for year in there:
        file = changed(images=[{"id": int(year), "file_name": "x"}], annotations=[BOX | {"image_id": int(year)}])
        write(tmp_path / "coco", year, file, file)
    assert {split: rows["id"][:] for split, rows in load(year=asked).items()} == {"train": [found], "test": [found]}


def test_incomplete_year_is_passed_over(tmp_path, load):
    write(tmp_path / "coco", "2014")
    write(tmp_path / "coco", "2017")
    (tmp_path / "coco/val2017").rmdir()
    paths = load()["train"].cast_column("image", datasets.Image(decode=False))["image"]
    assert all("train2014" in image["path"] for image in paths)


def test_same_labels_as_json_and_sets_give(tmp_path, load):
    folder = write(tmp_path / "coco")
    names = {"train": "train", "test": "val"}
    paths = {split: folder / f"annotations/instances_{name}2017.json" for split, name in names.items()}
    write_synthetic_annotations(paths["train"], images=300, boxes=1500, seed=1)
    write_synthetic_annotations(paths["test"], images=20, boxes=50, seed=2)
    for split, dataset in load().items():
        file = json.loads(paths[split].read_text())
        order = [c["id"] for c in sorted(file["categories"], key=lambda c: c["id"])]
        expected = {}
        for box in file["annotations"]:
            expected.setdefault(box["image_id"], set()).add(order.index(box["category_id"]))
        assert len(order) == 80
        assert dict(zip(dataset["id"], dataset["labels"], strict=True)) == {i: sorted(c) for i, c in expected.items()}
        assert len(dataset) == {"train": 300, "test": 20}[split]


# ---- the cache ----


class Counting:
    """The parser, counting its calls."""

    def __init__(self, monkeypatch, fail_at=0):
        self.calls, self.decoder, self.fail_at = 0, coco._decoder, fail_at
        monkeypatch.setattr(coco, "_decoder", self)

    def decode(self, text):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return self.decoder.decode(text)


def test_second_load_parses_nothing_and_a_changed_file_is_read_anew(tmp_path, load, monkeypatch):
    folder, parser = write(tmp_path / "coco"), Counting(monkeypatch)
    first, second = load(), load()
    assert parser.calls == 2
    for split in first:
        assert first[split]._fingerprint == second[split]._fingerprint
        assert first[split].features == second[split].features
    assert first["train"]._fingerprint != first["test"]._fingerprint

    path = folder / "annotations/instances_val2017.json"
    stat = path.stat()
    path.write_text(path.read_text().replace("eel", "emu"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(ValueError, match="emu"):
        load()
    path.write_text(json.dumps(changed(annotations=content()["annotations"][:1])))
    third = load()
    assert third["test"]["id"][:] == [7]
    assert third["test"]._fingerprint != first["test"]._fingerprint

    parser.calls = 0
    monkeypatch.setattr(coco, "__version__", "999")  # other code may make other tables of the same file
    load()
    assert parser.calls == 2


@pytest.mark.parametrize("where", ["while reading", "while writing"])
def test_interrupted_load_leaves_nothing(tmp_path, load, monkeypatch, where):
    write(tmp_path / "coco")
    with monkeypatch.context() as patch:
        if where == "while reading":
            Counting(patch, fail_at=2)
        else:
            patch.setattr(coco, "_ROWS_PER_BATCH", 1)
            slices = coco._Coco._generate_tables

            def stop(self, table):
                yield next(slices(self, table))
                raise KeyboardInterrupt

            patch.setattr(coco._Coco, "_generate_tables", stop)
        with pytest.raises(KeyboardInterrupt):
            load()
    assert {split: rows["id"][:] for split, rows in load().items()} == {"train": [3, 7, 40], "test": [3, 7, 40]}


def test_loads_at_the_same_time_share_one_reading(tmp_path, load, monkeypatch):
    write(tmp_path / "coco")
    parser = Counting(monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: load(), range(16)))
    assert parser.calls == 2
    assert all(splits["test"]["id"][:] == [3, 7, 40] for splits in results)


# ---- mistakes ----


def changed(**lists):
    return content() | lists


def more(name, /, **values):
    return changed(**{name: [*content()[name], values]})


BOX = {"id": 88, "image_id": 7, "category_id": 4}
UNKNOWN_CATEGORY = ("to be one of the 3 in", "found 91 in annotation 88 of image 7")
UNKNOWN_IMAGE = ("to be one of the 4 in", "found 6 in annotation 88 of image 6 with category 4")
DOG_CAT = content()["categories"][:2]
BAD_FILES = {
    "empty": ("", "truncated"),
    "truncated": (json.dumps(content())[:-40], "truncated"),
    "no JSON": ("<html>", "malformed"),
    "no UTF-8": (json.dumps(content()).encode().replace(b"eel", b"\xff\xfe"), "utf-8"),
    "list": ("[]", "Expected `object`, got `array`"),
    "captions": (changed(annotations=[{"id": 1, "image_id": 7, "caption": "a cat"}]), "category_id", "annotations[0]"),
    "no categories": ({"images": [], "annotations": []}, "categories"),
    "empty categories": (changed(categories=[]), "$.categories"),
    "text as id": (changed(images=[{"id": "7", "file_name": "x"}]), "images[0].id"),
    "huge id": (changed(images=[{"id": 2**63, "file_name": "x"}]), "images[0].id"),
    "unknown category": (more("annotations", **BOX | {"category_id": 91}), "category_id", *UNKNOWN_CATEGORY),
    "unknown image": (more("annotations", **BOX | {"image_id": 6}), "image_id", *UNKNOWN_IMAGE),
    "image twice": (more("images", id=40, file_name="y"), "each image id once", "40 in 2 entries"),
    "name twice": (more("categories", id=5, name="eel"), "each category name once", "'eel' in 2 entries"),
    "category twice": (more("categories", id=4, name="x"), "each category id once", "4 in 2 entries"),
    "no image left": (changed(annotations=[]), "none, of 4 images and 0 annotations", "keep_empty=True"),
    "no image": (changed(annotations=[], images=[]), "none, of 0 images"),
    "other name": (changed(categories=[*DOG_CAT, {"id": 17, "name": "emu"}]), "(17, 'eel') only in", "(17, 'emu')"),
    "class missing": (changed(annotations=[BOX], categories=DOG_CAT), "(17, 'eel') only in", "none only in"),
}


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_annotation_files(tmp_path, load, name, part):
    data, *words = BAD_FILES[name]
    write(tmp_path / "coco", **{part: data})
    with pytest.raises(ValueError, match="^Expected .*, found .*again") as error:
        load()
    for word in [*words, str(tmp_path / "coco/annotations" / f"instances_{part}2017.json")]:
        assert word in str(error.value)
    assert type(error.value) is ValueError
    assert error.value.__cause__ is None
    with pytest.raises(ValueError, match="^Expected"):  # a failed load is not taken for a cached one
        load()


LAYOUT = ("instances_train2017.json", "instances_val2017.json, train2017/, val2017/", "train2017.zip", "trainval2017")


def refused(load, *words, **options):
    with pytest.raises(ValueError, match="^Expected data_dir") as error:
        load(**options)
    for word in [*words, "https://cocodataset.org/#download"]:
        assert word in str(error.value)


def test_missing_layout(tmp_path, load):
    for nothing in (None, ""):
        refused(load, f"found data_dir={nothing!r}", *LAYOUT, "2014", data_dir=nothing)
    refused(load, f"no folder {str(tmp_path / 'nowhere')!r}", *LAYOUT, data_dir=str(tmp_path / "nowhere"))
    (tmp_path / "coco").mkdir()
    refused(load, "holds nothing", *LAYOUT)
    (tmp_path / "coco/train.txt").touch()
    refused(load, f"no folder {str(tmp_path / 'coco/train.txt')!r}", data_dir=tmp_path / "coco/train.txt")
    refused(load, "holds 'train.txt'")
    for i in range(20):
        (tmp_path / f"coco/{i}").touch()
    refused(load, "and 11 more")


def test_missing_part_and_year(tmp_path, load):
    write(tmp_path / "coco")
    refused(load, "has none of these and holds 'annotations'", "val2014.zip", "leave year unset", year="2014")
    (tmp_path / "coco/annotations/instances_val2017.json").unlink()
    refused(load, "which lacks annotations/instances_val2017.json and holds 'annotations', 'train2017', 'val2017'")
    (tmp_path / "coco/train2017").rmdir()
    refused(load, "which lacks annotations/instances_val2017.json, train2017/ and holds")
    with pytest.raises(ValueError, match="2018"):
        load(year="2018")
    with pytest.raises(TypeError, match="found 2017"):
        load(year=2017)
    with pytest.raises(TypeError, match="data_dir as a path"):
        load(5)


def test_cache_folder_that_datasets_would_cut(tmp_path):
    write(tmp_path / "coco")
    with pytest.raises(ValueError, match="cache_dir without '::'.*a::b"):
        load_coco(tmp_path / "coco", cache_dir=tmp_path / "a::b")
