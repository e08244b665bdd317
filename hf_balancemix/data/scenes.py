"""Scenes of clothes: Fashion-MNIST items on coloured canvases, ten classes with frequencies of about 100:1.

A small stand-in for photographs with several objects: real pictures, whose right labels are known, at a size where a
pretrained backbone is of use and training takes minutes.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import PIL.Image
from tqdm.auto import tqdm

CLASS_NAMES = (
    "T-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
CANVAS = 96
TRAIN_SCENES, TEST_SCENES = 1500, 500
# How often a class is drawn for a training scene; a draw without any is repeated, so that 939 scenes have the first
# and 10 the last. In the test scenes all alike.
TRAIN_FREQUENCIES = 0.5 * 100 ** (-np.arange(10) / 9)
TEST_FREQUENCY = 0.25
_SEED = 0


def load_scenes(data_dir: str | None = None) -> datasets.DatasetDict:
    """Compose 1,500 training and 500 test scenes, the same ones each time.

    A scene holds one item or more, of different classes: 30 to 56 px high, in a colour of its own, mirrored or not,
    anywhere on a canvas of 96 × 96 px with a colour gradient; items may overlap. Training scenes show items of
    Fashion-MNIST's training split, test scenes those of its test split.

    Args:
        data_dir: Folder with the four files of Fashion-MNIST (Xiao et al. 2017), ``train-images-idx3-ubyte.gz`` and
            so on, of https://github.com/zalandoresearch/fashion-mnist.

    Returns:
        Splits "train" and "test" with columns ``image``, ``labels`` and ``id``.

    Raises:
        ValueError: If the files are not there.
    """
    if data_dir is None:
        raise ValueError(
            "Expected --data_dir with the four files of Fashion-MNIST (train-images-idx3-ubyte.gz, ...), found none. "
            "They are at https://github.com/zalandoresearch/fashion-mnist; Debian has them as dataset-fashion-mnist."
        )
    evenly = np.full(len(CLASS_NAMES), TEST_FREQUENCY)
    splits = {"train": ("train", TRAIN_SCENES, TRAIN_FREQUENCIES), "test": ("t10k", TEST_SCENES, evenly)}
    label = datasets.List(datasets.ClassLabel(names=list(CLASS_NAMES)))
    features = datasets.Features({"image": datasets.Image(), "labels": label, "id": datasets.Value("int64")})
    composed = {}
    for seed, (split, (prefix, count, frequencies)) in enumerate(splits.items()):
        pictures = _read(Path(data_dir) / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        kinds = _read(Path(data_dir) / f"{prefix}-labels-idx1-ubyte.gz", 8)
        rng = np.random.default_rng((_SEED, seed))
        rows = range(count)
        present = [_present(rng, frequencies) for _ in rows]
        scenes = [
            _scene(rng, [pictures[rng.choice(np.flatnonzero(kinds == k))] for k in rng.permutation(classes)])
            for classes in tqdm(present, desc=f"composing {split} scenes", leave=False, delay=2)
        ]
        columns = {"image": scenes, "labels": [classes.tolist() for classes in present], "id": list(rows)}
        composed[split] = datasets.Dataset.from_dict(columns, features=features)
    return datasets.DatasetDict(composed)


def _read(path: Path, header: int) -> npt.NDArray[np.uint8]:
    """Read the bytes behind the header of an IDX file."""
    try:
        with gzip.open(path) as file:
            return np.frombuffer(file.read(), np.uint8, offset=header)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"Expected a file of Fashion-MNIST, found that {path} cannot be read ({error}). Check --data_dir, or take "
            "the files from https://github.com/zalandoresearch/fashion-mnist."
        ) from error


def _present(rng: np.random.Generator, frequencies: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Draw the classes of a scene, at least one."""
    while True:
        classes = np.flatnonzero(rng.random(len(frequencies)) < frequencies)
        if len(classes):
            return classes


def _scene(rng: np.random.Generator, items: list[npt.NDArray[np.uint8]]) -> PIL.Image.Image:
    """Place items on a canvas, one after the other."""
    corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    scene = PIL.Image.fromarray(corners).resize((CANVAS, CANVAS), PIL.Image.Resampling.BILINEAR)
    for item in items:
        side = int(rng.integers(30, 57))
        mirrored = item[:, ::-1] if rng.random() < 0.5 else item
        grey = PIL.Image.fromarray(np.ascontiguousarray(mirrored)).resize((side, side), PIL.Image.Resampling.BILINEAR)
        shade = np.asarray(grey, dtype=np.float64)[..., None] / 255
        colour = rng.integers(60, 256, 3)
        picture = PIL.Image.fromarray((shade * colour).astype(np.uint8))
        # Dark parts of an item are part of it; what is nearly black around it is not.
        outline = PIL.Image.fromarray(np.where(shade[..., 0] > 0.06, 255, 0).astype(np.uint8))
        x, y = (int(v) for v in rng.integers(0, CANVAS - side + 1, 2))
        scene.paste(picture, (x, y), outline)
    return scene
