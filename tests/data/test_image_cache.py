"""The resized copy on disk: the same pixels as without it, whoever is killed, full, damaged or late."""

import io
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import time

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import TimmWrapperImageProcessor

from hf_balancemix.data import image_cache
from hf_balancemix.data.image_cache import CachedPixels, open_image_cache
from hf_balancemix.data.images import UnreadableImageError
from hf_balancemix.data.noise import NoiseSpec, inject_noise
from hf_balancemix.data.pairs import ImageRows, PairDataset, PairSampler, as_batch
from hf_balancemix.data.transforms import ImageTransform
from tests import tiny
from tests.training.test_determinism import trained

N = 40
ROW = 3 * tiny.SIZE**2


@pytest.fixture(scope="module")
def dataset():
    return tiny.tiny_dataset(N)


@pytest.fixture
def few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(image_cache, "_MOST_IN_CHUNK", 2)


def transform(**options):
    return ImageTransform(tiny.processor(**options), "affine")


def cached(dataset, folder, own=None):
    return ImageRows(dataset, "image", own or transform(), cache_dir=str(folder))


def plain(dataset, own=None):
    return ImageRows(dataset, "image", own or transform())[range(len(dataset))]


def files(folder, kind="npy"):
    return sorted(folder.glob(f"*.{kind}"))


def reader(dataset, seen, action=lambda row: None):
    """A function that reads as ImageRows does, notes every row in the file ``seen`` and calls ``action`` on it."""
    rows = ImageRows(dataset, "image", transform())

    def read(index):
        for row in index:
            action(row)
            with seen.open("a", encoding="utf-8") as log:
                log.write(f"{row}\n")
        return rows[index]

    return read


def noted(seen):
    return [int(line) for line in seen.read_text(encoding="utf-8").split()] if seen.exists() else []


def make(dataset, folder, read):
    return open_image_cache(folder, dataset.select_columns(["image"]), "image", "16 px", read)


def fork(work, *args):
    def child():
        torch.set_num_threads(1)  # a fork does not take the threads of OpenMP along
        work(*args)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures(folder):
    """Files and embedded images of many kinds and sizes; some have strange names."""
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(np.linspace(0, 65535, 900).astype(np.uint16).reshape(30, 30))
    contents = [
        encoded(colour, "JPEG"),
        encoded(colour.resize((20, 90)), "JPEG", exif=exif),
        encoded(colour.convert("L"), "JPEG"),
        encoded(colour.convert("CMYK"), "JPEG"),
        encoded(colour.convert("RGBA"), "PNG"),
        encoded(grey, "PNG"),
    ]
    names = ["a.jpg", "日本 [1]*'\".jpg", "line\nbreak.jpg", "<b>.jpg", "e.png", "f.png"]
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
    cells = [str(folder / name) for name in names] + [{"bytes": content, "path": None} for content in contents]
    return datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))


def timm_processor():
    return TimmWrapperImageProcessor(pretrained_cfg=timm.get_pretrained_cfg("test_resnet.r160_in1k").to_dict())


@pytest.mark.parametrize("processor", [tiny.processor, timm_processor])
def test_every_pixel_is_the_same_as_without(tmp_path, processor):
    folder = tmp_path / "a line\nbreak" / "cache [1]*'<b>"
    source, own = pictures(tmp_path), ImageTransform(processor(), "affine")
    expected = plain(source, own)
    for _ in range(2):  # made, then found
        rows = cached(source, folder, own)
        assert torch.equal(rows[range(12)], expected)
        assert torch.equal(rows[[3, 11, 3]], expected[[3, 11, 3]])
    assert np.array_equal(np.load(files(folder)[0]), expected.numpy())
    items = list(PairSampler(12, 0, lambda: 0, "random", lambda: 2))
    batches = [PairDataset(r, own, 4.0).__getitems__(items) for r in (rows, ImageRows(source, "image", own))]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    memory = ImageRows(source, "image", own, cache=True, cache_dir=str(folder))
    assert isinstance(memory.pixels, torch.Tensor)
    assert torch.equal(memory[range(12)], expected)


def test_a_file_is_made_once_and_then_hardly_anything_is_decoded(tmp_path, dataset, capsys):
    seen = tmp_path / "seen"
    torch.manual_seed(0)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = make(dataset, tmp_path / "cache", reader(dataset, seen))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert sorted(noted(seen)) == sorted([*range(N), 0, N // 2, N - 1])
    where = f"{str(tmp_path / 'cache')!r}"
    assert f"40 images of 16 × 16 pixels take 0.0 MB in {where}, where there are " in capsys.readouterr().err
    seen.unlink()
    again = make(dataset, tmp_path / "cache", reader(dataset, seen))
    assert noted(seen) == [0, N // 2, N - 1]
    assert capsys.readouterr().err == ""
    assert torch.equal(first[range(N)], again[range(N)])
    assert first.path == again.path
    assert len(pickle.dumps(first)) < 500
    assert torch.equal(pickle.loads(pickle.dumps(first))[[5]], first[[5]])
    assert not files(tmp_path / "cache", "part")


def test_splits_noise_and_normalisation_share_files_and_changes_do_not(tmp_path, dataset, capsys):
    cached(dataset, tmp_path)
    noisy = inject_noise(dataset.remove_columns("clean_labels"), NoiseSpec("mislabel", 0.4, 3))
    cached(noisy, tmp_path)  # another seed has the same pictures
    processor = tiny.processor()
    processor.image_mean, processor.image_std = [0.1] * 3, [0.2] * 3
    cached(dataset, tmp_path, ImageTransform(processor))
    assert len(files(tmp_path)) == 1
    (tmp_path / "old.part").write_bytes(bytes(5_000_000))
    capsys.readouterr()
    assert cached(dataset.select(range(N - 1, 3, -1)), tmp_path)[[0]].equal(plain(dataset)[[N - 1]])
    assert "where there are 5.0 MB of other images and " in capsys.readouterr().err
    other = transform(size=8)
    assert torch.equal(cached(dataset, tmp_path, other)[range(N)], plain(dataset, other))
    nearest = tiny.processor(8)
    nearest.resample = 0
    cached(dataset, tmp_path, ImageTransform(nearest))
    assert len(files(tmp_path)) == 4


def test_a_changed_image_gets_a_new_file_and_the_old_one_stays(tmp_path):
    source, folder = pictures(tmp_path), tmp_path / "cache"
    before = cached(source, folder)[range(12)]
    Image.new("RGB", (30, 30), (250, 0, 0)).save(tmp_path / "a.jpg")
    after = cached(source, folder)[range(12)]
    assert torch.equal(after, plain(source))
    assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True] + [False] * 11
    cells = source.cast_column("image", datasets.Image(decode=False))[:]["image"]
    cells[7]["bytes"] = cells[6]["bytes"]
    changed = datasets.Dataset.from_dict({"image": cells}, features=source.features)
    assert torch.equal(cached(changed, folder)[[7]], after[[6]])
    assert len(files(folder)) == 3


@pytest.mark.usefixtures("few_rows_at_a_time")
def test_a_killed_process_loses_little_and_a_waiting_one_goes_on(tmp_path, dataset, capfd):
    """The first is killed in the middle, while the second waits for it and then takes over."""
    folder, seen = tmp_path / "cache", [tmp_path / "first", tmp_path / "second"]
    first = fork(make, dataset, folder, reader(dataset, seen[0], lambda row: time.sleep(0.02 if row < 30 else 60)))
    while len(noted(seen[0])) < 20:
        time.sleep(0.01)
    second = fork(make, dataset, folder, reader(dataset, seen[1]))
    while "waiting for the process that makes" not in capfd.readouterr().err:
        time.sleep(0.05)
        assert second.is_alive()
    assert noted(seen[1]) == [0]
    there = (files(folder, "part")[0].stat().st_size - 128) // ROW
    assert there >= 20
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    second.join(30)
    assert second.exitcode == 0
    # What was written stays, and the three rows that each opening compares are read anyhow.
    assert set(noted(seen[1])) - {0, N // 2, N - 1} == set(range(there, N - 1))
    assert torch.equal(cached(dataset, folder)[range(N)], plain(dataset))


@pytest.mark.usefixtures("few_rows_at_a_time")
def test_four_processes_at_once_make_one_file(tmp_path, dataset):
    folder = tmp_path / "cache"
    seen = [tmp_path / f"seen{i}" for i in range(4)]
    processes = [
        fork(make, dataset, folder, reader(dataset, log, lambda row: time.sleep(0.002 * (row > 0)))) for log in seen
    ]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(len(noted(log)) for log in seen) == [3, 3, 3, N + 3]
    assert torch.equal(torch.from_numpy(np.load(files(folder)[0])), plain(dataset))


def test_the_start_of_another_file_is_not_gone_on_with(tmp_path, dataset):
    pixels = make(dataset, tmp_path, reader(dataset, tmp_path / "seen"))
    expected, content = pixels[range(N)], pixels.path.read_bytes()
    changed = bytearray(content)
    changed[200] ^= 0xFF  # in the first row
    for start in (b"", content[:50], content[: 128 + ROW // 2], bytes(changed), content[: 128 + 7 * ROW + 5]):
        pixels.path.unlink(missing_ok=True)
        pixels.path.with_suffix(".part").write_bytes(start)
        assert torch.equal(make(dataset, tmp_path, reader(dataset, tmp_path / "seen"))[range(N)], expected)


def test_a_damaged_file_is_refused(tmp_path, dataset):
    path = make(dataset, tmp_path, reader(dataset, tmp_path / "seen")).path
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-1], b"<html>404</html>"):
        path.write_bytes(content)
        expected = [f"Expected a whole file of the image cache, found {str(path)!r} (", "Delete it"]
        tiny.refused(ValueError, expected, cached_again, dataset, tmp_path)
    for row in (0, N // 2, N - 1):
        changed = bytearray(whole)
        changed[128 + row * ROW + 9] ^= 0xF0
        path.write_bytes(changed)
        tiny.refused(
            ValueError,
            [f"the pixels of row {row} in the image cache {str(path)!r}, found others"],
            cached_again,
            dataset,
            tmp_path,
        )
    rounded = bytearray(whole)
    rounded[128] += 2 if whole[128] < 100 else -2
    path.write_bytes(rounded)
    cached_again(dataset, tmp_path)


def cached_again(dataset, folder):
    return make(dataset, folder, ImageRows(dataset, "image", transform())._read)


def test_a_folder_that_cannot_be_written_to(tmp_path, dataset):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for folder in (tmp_path / "file" / "cache", "/proc/no such folder"):
        parts = [f"Expected an `image_cache` that can be written to, found {str(folder)!r} (", "another folder"]
        tiny.refused(ValueError, parts, cached, dataset, folder)
    for name in (str(tmp_path / "file"), ""):
        parts = [f"Expected a folder as `image_cache`, found {name!r}"]
        tiny.refused(ValueError, parts, tiny.arguments, tmp_path, image_cache=name)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_serves_what_is_complete(tmp_path, dataset):
    folder = tmp_path / "cache"
    cached(dataset, folder)
    folder.chmod(0o500)
    try:
        assert torch.equal(cached(dataset, folder)[range(N)], plain(dataset))
        tiny.refused(ValueError, ["can be written to", "Permission denied"], cached, dataset.select([1]), folder)
    finally:
        folder.chmod(0o700)


def test_what_is_complete_is_opened_without_writing(tmp_path, dataset, monkeypatch):
    cached(dataset, tmp_path)
    for file in files(tmp_path, "lock"):
        file.unlink()
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(image_cache, "FileLock", None)
    cached(dataset, tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, N * ROW - 1))
    parts = ["Expected 0.0 MB of space for 40 images of 16 × 16 pixels in the image cache", "found 0.0 MB"]
    tiny.refused(ValueError, parts, cached, dataset, tmp_path)
    assert not files(tmp_path, "part")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, N * ROW))
    cached(dataset, tmp_path)


@pytest.mark.usefixtures("few_rows_at_a_time")
def test_a_disk_that_fills_up_on_the_way(tmp_path, dataset):
    """The system's limit on a file's length stands for the end of the disk: a write takes a part, the next fails."""
    seen = tmp_path / "seen"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * ROW, limits[1]))
    try:
        parts = ["can be written to, found", ".part' (File too large)", "make space", "goes on where it was"]
        tiny.refused(ValueError, parts, make, dataset, tmp_path / "cache", reader(dataset, seen))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not files(tmp_path / "cache")
    seen.unlink()
    pixels = make(dataset, tmp_path / "cache", reader(dataset, seen))
    assert set(noted(seen)) == {0, *range(19, N)}
    assert torch.equal(pixels[range(N)], plain(dataset))


@pytest.mark.usefixtures("few_rows_at_a_time")
def test_an_unreadable_image_is_named_and_what_was_read_stays(tmp_path):
    names = [tmp_path / f"{i}.png" for i in range(12)]
    for i, name in enumerate(names):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(name)
    good = names[9].read_bytes()
    names[9].write_bytes(bytes(len(good)))
    # Mended with the length and time that it had: with others it would be another set of images.
    stamp = names[9].stat()
    features = datasets.Features({"image": datasets.Image()})
    source = datasets.Dataset.from_dict({"image": list(map(str, names))}, features=features)
    with pytest.raises(UnreadableImageError, match=r"readable image in row 9, found '.*9.png'"):
        cached(source, tmp_path / "cache")
    part = files(tmp_path / "cache", "part")[0]
    assert part.stat().st_size >= 128 + 4 * ROW
    assert not files(tmp_path / "cache")
    names[9].write_bytes(good)
    os.utime(names[9], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert torch.equal(cached(source, tmp_path / "cache")[range(12)], plain(source))


def test_sizes_that_differ_between_images_are_refused(tmp_path, dataset):
    def read(index):
        return torch.zeros(len(index), 3, 16, 16 if max(index) < 30 else 20, dtype=torch.uint8)

    tiny.refused(ValueError, ["one size, found sizes (3, 16, 16) and (3, 16, 20)"], make, dataset, tmp_path, read)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_the_same(tmp_path, dataset, start):
    rows = cached(dataset, tmp_path)
    if start == "spawn":  # what a new process is given; starting one takes as long as importing everything
        rows = pickle.loads(pickle.dumps(rows))
        assert isinstance(rows.pixels, CachedPixels)
    pairs = PairDataset(rows, rows.transform, 4.0)
    loader = DataLoader(
        pairs, batch_size=8, sampler=PairSampler(N, 0, lambda: 0, "random"), num_workers=2, collate_fn=as_batch
    )
    items = list(PairSampler(N, 0, lambda: 0, "random"))
    expected = PairDataset(ImageRows(dataset, "image", transform()), transform(), 4.0).__getitems__(items)
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), expected["pixel_values"])


def test_training_is_the_same_to_the_bit_and_evaluation_sets_are_made_first(tmp_path, dataset):
    reference = trained(tmp_path, dataset)
    for changes in ({}, {"dataloader_num_workers": 2}, {"cache_images": True}):
        again = trained(tmp_path, dataset, image_cache=str(tmp_path / "cache"), **changes)
        assert tiny.same_weights(tiny.weights_of(again.model), tiny.weights_of(reference.model)), changes
        assert again.label_state.digest() == reference.label_state.digest()
    assert len(files(tmp_path / "cache")) == 1
    again.eval_dataset = {"a": tiny.tiny_dataset(9, seed=1), "b": tiny.tiny_dataset(8, seed=2)}
    again._train_images = None
    again.get_train_dataloader()
    assert sorted(file.name.split("-")[0] for file in files(tmp_path / "cache")) == ["40", "8", "9"]
    assert again.evaluate()["eval_a_loss"] > 0


def test_embedded_images_are_looked_at_once(tmp_path, monkeypatch, dataset):
    looked = []
    monkeypatch.setattr(image_cache, "_bar", lambda *args, **options: looked.append(options.get("desc")) or args[0])
    monkeypatch.setattr(image_cache, "_make", lambda path, *rest: np.save(path, plain(dataset).numpy()))
    looks = ["Looking at the images"]
    assert torch.equal(cached(dataset, tmp_path)[range(N)], plain(dataset))
    assert looked == looks
    cached(dataset, tmp_path)
    assert looked == looks
    cached(dataset.add_column("other", [0] * N), tmp_path)  # another data set, of the same images
    assert looked == 2 * looks
    assert len(files(tmp_path)) == 1
    for note in files(tmp_path, "digest"):
        note.write_text("")  # broken off
    cached(dataset, tmp_path)
    assert looked == 3 * looks


def test_files_are_looked_at_each_time(tmp_path):
    paths = []
    for i in range(2):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.new("RGB", (tiny.SIZE, tiny.SIZE), (i, 0, 0)).save(paths[-1])
    dataset = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    folder = tmp_path / "cache"
    cached(dataset, folder)
    Image.new("RGB", (tiny.SIZE, tiny.SIZE), (200, 0, 0)).save(paths[0])
    os.utime(paths[0], (1, 1))
    assert torch.equal(cached(dataset, folder)[range(2)], plain(dataset))
    assert len(files(folder)) == 2
    assert files(folder, "digest") == []
