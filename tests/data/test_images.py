"""Images that are missing, damaged or unusual: named, left out, or read in the right way."""

import gc
import io
import os
import warnings

import datasets
import numpy as np
import PIL.Image
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from hf_balancemix.data.images import (
    UnreadableImageError,
    check_files,
    drop_unreadable,
    image_names,
    missing_files,
    read_images,
)
from hf_balancemix.data.pairs import EvalDataset, ImageRows, as_batch
from hf_balancemix.data.transforms import ImageTransform
from tests import tiny

REMEDY = (
    " Mend or delete it, or leave unreadable images out: `--on_bad_image skip`, or in code `drop_unreadable(dataset)`."
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def photo(mode="RGB", size=(64, 48)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(picture, kind="JPEG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def dataset_of(cells):
    return datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))


JPEG, PNG = encoded(photo()), encoded(photo(), "PNG")
HUGE = encoded(Image.new("1", (20_000, 20_000)), "PNG")
DAMAGED = {
    "cut.jpg": (JPEG[: len(JPEG) // 2], r"image file is truncated \(\d+ bytes not processed\)"),
    "cut.png": (PNG[: len(PNG) // 2], r"\(image file is truncated\)"),
    "empty.jpg": (b"", "no image, or one of an unknown format"),
    "page.jpg": (b"<html>404 Not Found</html>", "no image, or one of an unknown format"),
    "huge.png": (HUGE, "Image size .* could be decompression bomb DOS attack.*"),
    "exif.png": (encoded(photo(), "PNG", exif=b"Exif\0\0garbage!"), "not a TIFF file"),
    "missing.jpg": (None, "No such file or directory"),
    "line\nbreak [1]*'\".jpg": (JPEG[:400], r"\(Truncated File Read\)"),
}


@pytest.fixture
def folder(tmp_path):
    """Six good images, and the damaged ones in between."""
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "日本.jpg"):
        (tmp_path / name).write_bytes(JPEG)
    for name, (content, _) in DAMAGED.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.jpg").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", DAMAGED)
def test_an_unreadable_image_is_named_in_one_line(folder, name):
    bad = str(folder / name)
    dataset = dataset_of([str(folder / "a.jpg"), str(folder / "b.jpg"), bad, str(folder / "c.jpg")])
    expected = f"Expected a readable image in row 2, found {bad!r} ("
    with pytest.raises(UnreadableImageError) as error:
        read_images(dataset, "image", [0, 3, 2])
    message = str(error.value)
    assert message.startswith(expected)
    assert message.endswith(")." + REMEDY)
    assert "\n" not in message
    with pytest.raises(ValueError, match=DAMAGED[name][1]):
        ImageRows(dataset, "image", ImageTransform(tiny.processor()))[[1, 2]]
    assert [picture.size for picture in read_images(dataset, "image", [3, 0])] == [(64, 48)] * 2


def test_folders_embedded_bytes_and_gaps(folder):
    cells = [str(folder / "folder.jpg"), {"bytes": JPEG[:500], "path": None}, {"bytes": b"x", "path": "x.jpg"}, None]
    found = [f"{cells[0]!r} (Is a directory)", "none (Truncated File Read", "none (no image", "none (there is no"]
    for row, text in enumerate(found):
        with pytest.raises(UnreadableImageError) as error:
            read_images(dataset_of(cells), "image", [row])
        assert str(error.value).startswith(f"Expected a readable image in row {row}, found {text}")


def test_other_mistakes_stay_what_they_are():
    dataset = dataset_of([{"bytes": JPEG, "path": None}])
    with pytest.raises(IndexError):
        read_images(dataset, "image", [5])
    with pytest.raises(KeyError):
        read_images(dataset, "picture", [0])
    arrays = datasets.Dataset.from_dict({"image": [[[1, 2]], None]})
    assert read_images(arrays, "image", [1, 0]) == [None, [[1, 2]]]
    with pytest.raises(ValueError, match="Expected a PIL image in row 0, found list"):
        ImageRows(arrays, "image", ImageTransform(tiny.processor()))[[0]]


def test_a_worker_gives_the_same_single_message(folder, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # else it waits 5 s after an error
    name = "line\nbreak [1]*'\".jpg"
    dataset = dataset_of([str(folder / "a.jpg"), str(folder / name)])
    transform = ImageTransform(tiny.processor())
    messages = []
    for workers in (0, 1):
        rows = EvalDataset(ImageRows(dataset, "image", transform), None)
        with pytest.raises(UnreadableImageError) as error:
            list(DataLoader(rows, batch_size=2, num_workers=workers, collate_fn=as_batch))
        messages.append(str(error.value))
        del error
        gc.collect()
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"Expected a readable image in row 1, found {str(folder / name)!r}")
    assert str(UnreadableImageError("Caught by surprise")) == "Caught by surprise"


def test_missing_files_are_listed_without_a_look_at_each(folder, monkeypatch):
    (folder / "gone.jpg").symlink_to(folder / "nothing")
    present = [str(folder / name) for name in ("a.jpg", "日本.jpg", "line\nbreak [1]*'\".jpg", "a.jpg")]
    absent = [str(folder / "A.png"), str(folder / "no such folder" / "a.jpg"), "not here.jpg"]
    others = ["https://host/x.jpg", "hf://datasets/x/y.jpg", "zip://x.jpg::/no/x.zip", None]
    others += [{"bytes": JPEG, "path": "gone.jpg"}, {"bytes": b"", "path": None}]
    dataset = dataset_of([*present, *others, *absent])
    start = len(present) + len(others)
    looked, exists = [], os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: looked.append(path) or exists(path))
    assert missing_files(dataset, "image") == [start, start + 1, start + 2]
    assert looked == absent
    assert missing_files(dataset.select([start, 0]), "image") == [0]
    assert missing_files(datasets.Dataset.from_dict({"image": [[1]]}), "image") == []
    check_files(dataset.select(range(start)), "image", "train")
    with pytest.raises(ValueError, match=r"all 13 images of the test split to be there, found 3 missing: '.*A.png', "):
        check_files(dataset, "image", "test")
    with pytest.raises(ValueError, match=r"found 7 missing: .*'f4' and 2 more\. .*--on_bad_image skip"):
        check_files(dataset_of([f"f{i}" for i in range(7)]), "image", "test")


def test_unreadable_images_are_dropped_and_named_in_order(folder):
    bad = [str(folder / name) for name in DAMAGED]
    good = [str(folder / name) for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "日本.jpg")]
    cells = [*bad[:3], *good, None, {"bytes": JPEG, "path": None}, {"bytes": JPEG[:500], "path": None}, *bad[3:]]
    dataset = dataset_of(cells).add_column("n", range(len(cells)))
    kept, dropped = drop_unreadable(dataset)
    assert kept["n"] == [3, 4, 5, 6, 7, 8, 10]
    assert dropped == [*bad[:3], "row 9", "row 11", *bad[3:]]
    assert len(read_images(kept, "image", range(7))) == 7
    parallel, also_dropped = drop_unreadable(dataset.select(range(len(cells))), "image", num_proc=2)
    assert (parallel["n"], also_dropped) == (kept["n"], dropped)
    assert drop_unreadable(kept)[1] == []
    assert image_names(dataset, "image") == [*bad[:3], *good, "row 9", "row 10", "row 11", *bad[3:]]
    with pytest.raises(ValueError, match=r"none in 8 rows, the first being '.*cut.jpg' \(image file is truncated"):
        drop_unreadable(dataset_of(bad))
    arrays = datasets.Dataset.from_dict({"image": [[1], [2]]})
    assert drop_unreadable(arrays) == (arrays, [])


def test_a_second_check_reads_nothing_until_a_file_changes(folder, monkeypatch):
    names = [str(folder / name) for name in ("a.jpg", "cut.jpg", "missing.jpg")]
    opened, real = [], PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda file, *rest: opened.append(file) or real(file, *rest))
    # Only what seemed bad is looked at again: the reason may have gone.
    for expected in ([*names, *names[1:]], names[1:]):
        opened.clear()
        assert drop_unreadable(dataset_of(names))[1] == names[1:]
        assert opened == expected
    (folder / "missing.jpg").write_bytes(JPEG)
    assert drop_unreadable(dataset_of(names))[1] == names[1:2]
    (folder / "cut.jpg").write_bytes(JPEG)
    assert drop_unreadable(dataset_of(names))[1] == []
    embedded = [dataset_of([{"bytes": content, "path": None} for content in (JPEG, end)]) for end in (PNG, PNG[:99])]
    assert [drop_unreadable(dataset)[1] for dataset in (*embedded, *embedded)] == [[], ["row 1"]] * 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}])
def test_the_quick_check_of_a_jpeg_sees_what_decoding_sees(options):
    """Cut at every place near both ends and at some in between; a byte changed here and there."""
    whole = encoded(photo(options.pop("mode", "RGB"), (200, 150)), quality=85, **options)
    cuts = sorted(
        {*range(0, 200, 3), *np.linspace(200, len(whole) - 50, 30, dtype=int), *range(len(whole) - 50, len(whole))}
    )
    rng = np.random.default_rng(0)
    contents = [whole, *(whole[:cut] for cut in cuts)]
    for place in rng.integers(len(whole), size=60):
        contents.append(whole[:place] + bytes([rng.integers(256)]) + whole[place + 1 :])
    readable = []
    for row, content in enumerate(contents):
        try:
            datasets.Image().decode_example({"bytes": content, "path": None})
            readable.append(row)
        except Exception:  # whatever decoding raises
            assert row > 0
    dataset = dataset_of([{"bytes": content, "path": None} for content in contents]).add_column(
        "n", range(len(contents))
    )
    assert drop_unreadable(dataset)[0]["n"] == readable
    assert 1 <= len(readable) < len(contents)


def test_pictures_are_turned_as_their_camera_says():
    upright, exif = Image.new("RGB", (40, 20), (255, 0, 0)), Image.Exif()
    upright.paste((0, 0, 255), (0, 0, 10, 20))  # blue on the left
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    dataset = dataset_of([{"bytes": encoded(lying, quality=95, exif=exif), "path": None}] * 2)
    turned = drop_unreadable(dataset)[0]
    picture = read_images(turned, "image", [1])[0]
    assert lying.size == (20, 40)
    assert picture.size == (40, 20)
    np.testing.assert_allclose(np.asarray(picture)[10, [3, 30]], [[0, 0, 255], [255, 0, 0]], atol=12)


def test_grey_of_16_bits_keeps_its_shades():
    grey = np.linspace(0, 65535, tiny.SIZE**2).astype(np.uint16).reshape(tiny.SIZE, tiny.SIZE)
    transform = ImageTransform(tiny.processor())
    expected = np.round(grey / 65535 * 255)
    as_pgm = encoded(Image.fromarray(grey), "PPM")
    for kind, content in {"I;16": encoded(Image.fromarray(grey), "PNG"), "I": as_pgm}.items():
        dataset = dataset_of([{"bytes": content, "path": None}])
        picture = read_images(dataset, "image", [0])[0]
        assert picture.mode == kind
        pixels = transform.resize([picture])[0].numpy()
        np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=1)
    swapped = Image.fromarray(grey.astype(">u2"))
    assert swapped.mode == "I;16B"
    np.testing.assert_array_equal(transform.resize([swapped])[0, 0].numpy(), pixels[0])
    whole_numbers = Image.fromarray((grey // 257).astype(np.int32))  # mode "I" with the range of a byte
    np.testing.assert_array_equal(transform.resize([whole_numbers])[0, 0].numpy(), grey // 257)


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "PA"])
def test_transparency_warns_nobody(mode):
    red, green = (200, 0, 0), (0, 200, 0)
    picture = Image.new("P", (tiny.SIZE, tiny.SIZE))
    picture.putpalette([*red, *green])
    picture.paste(1, (0, 0, tiny.SIZE, 8))
    picture.info["transparency"] = b"\x80\xff"
    picture = picture if mode == "P" else picture.convert("RGBA").convert(mode)
    colours = [
        np.array(Image.new("RGB", (1, 1), c).convert("L")).repeat(3) if mode == "LA" else c for c in (green, red)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = ImageTransform(tiny.processor()).resize([picture])[0]
    np.testing.assert_allclose(pixels[:, [0, 15], 5].T, np.asarray(colours).reshape(2, 3), atol=1)


def test_a_fault_that_passes_is_not_remembered(folder, monkeypatch):
    names = [str(folder / name) for name in ("a.jpg", "b.jpg", "c.jpg")]
    real = PIL.Image.open

    def fails(file, *rest):
        if str(file).endswith("b.jpg"):
            raise OSError(5, "Input/output error")
        return real(file, *rest)

    monkeypatch.setattr(PIL.Image, "open", fails)
    assert drop_unreadable(dataset_of(names))[1] == names[1:2]
    monkeypatch.setattr(PIL.Image, "open", real)
    assert drop_unreadable(dataset_of(names))[1] == []
