"""``hf-balancemix doctor``: a look at a data set before training."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hf_balancemix.build import build_model, usable_image_size
from hf_balancemix.cli.data_options import add_data_options, given_data_options
from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.formats import evaluation_labels
from hf_balancemix.data.transforms import ImageTransform
from hf_balancemix.messages import mistake, some
from hf_balancemix.recipe import RECIPES, Recipe
from hf_balancemix.recipe.options import RecipeArguments
from hf_balancemix.reports.doctor import (
    Settings,
    advise,
    co_occurrence,
    describe_split,
    find_pairs,
    minority_pull,
)
from hf_balancemix.reports.doctor_checkup import Checkup, Estimate
from hf_balancemix.reports.doctor_cost import ModelCost, measure_model
from hf_balancemix.reports.doctor_images import (
    SplitImages,
    advise_images,
    chance_loss,
    find_duplicates,
    look_at_images,
    show_examples,
    untrained_loss,
)
from hf_balancemix.reports.doctor_page import PAGE, check_folder, write_doctor
from hf_balancemix.reports.doctor_text import shown_text
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.refresh import state_bytes

DESCRIPTION = """\
Look at a data set before training: labels, images, duplicates, what the model sees, time and memory, and advice.

The data are your own images (DATA, --data_dir, --dataset) as recipes/folder.py reads them, or those of another recipe
(--recipe). Labels are looked at in full; of the images of each split at most --max_images are read, drawn at random,
and duplicates are looked for among these. The model is untrained, and nothing is downloaded for a timm backbone.

What was found is printed, and goes into --out: doctor.html, a page that needs no other file, and doctor.json."""
EXAMPLE = """examples:
  hf-balancemix doctor my_pictures
  hf-balancemix doctor --recipe coco --data_dir coco --max_images 5000 --out doctor_coco
  hf-balancemix doctor --recipe digits"""
_SPLIT_OPTIONS = {
    "data_dir": "Folder of the data; the same as DATA.",
    "train_split": "Split to train on; train unless given.",
    "test_split": "Split to test on; test, validation, val, ... unless given.",
}
_STEPS = ("data", "labels", "model", "images", "transforms", "loss", "cost")
_EXAMPLES, _LOSS_IMAGES = 4, 8


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of the command."""
    parser.add_argument("data", metavar="DATA", nargs="?", help="Folder of the data.")
    add_data_options(parser, **_SPLIT_OPTIONS)
    parser.add_argument("--backbone", metavar="NAME", help="Of the model; the recipe's unless given.")
    parser.add_argument(
        "--image_size", type=int, metavar="PIXELS", help="Side of the model's input; the recipe's unless given."
    )
    parser.add_argument(
        "--max_images",
        type=int,
        default=1000,
        metavar="N",
        help="Read at most so many images of each split (default: %(default)s).",
    )
    parser.add_argument("--out", default="doctor", metavar="DIR", help="Folder of the results (default: %(default)s).")


def run(options: argparse.Namespace) -> None:
    """Look at the data, print and write what was found.

    Raises:
        ValueError: For everything that the user can set right; before it a line says at which step.
    """
    given, recipe = _check_options(options)
    with _step("data") as done:
        splits = recipe.load(**given)
        done.append(", ".join(f"{len(split):,} {name}" for name, split in splits.items()) + " images")
    with _step("labels") as done:
        train = encode_labels(splits["train"])
        names = train.class_names
        test = evaluation_labels(splits["test"], encode_labels(splits["test"], class_names=names))
        labels = {"train": train.labels.astype(np.int8), "test": test}
        of_splits = {name: describe_split(given_labels, names) for name, given_labels in labels.items()}
        done.append(f"{len(names)} classes: {some(names)}")
    with _step("model") as done:
        backbone, model, processor = _build(options, recipe, names)
        transform = ImageTransform(processor, _setting(recipe, "augmentation"))
        done.append(f"{backbone}, untrained, {model.num_parameters() / 1e6:.1f} M parameters")
    with _step("images") as done:
        images = {name: look_at_images(splits[name], name, options.max_images) for name in labels}
        done += [f"{found.num_read} of {found.num_images} {name} images read" for name, found in images.items()]
        rows = _readable(images["train"])
    with _step("transforms") as done:
        shown = rows[:_EXAMPLES]
        examples, span = show_examples(splits["train"], shown, transform, labels["train"], names)
        done.append(f"numbers from {span[0]:.2f} to {span[1]:.2f}")
    with _step("loss") as done:
        loss, shape = untrained_loss(model, splits["train"], rows[:_LOSS_IMAGES], transform, labels["train"])
        done.append(f"{loss:.3f} on a batch of {'×'.join(map(str, shape))}")
    with _step("cost") as done:
        cost = measure_model(model, shape, len(names))
        done.append(f"{1000 * cost.training_seconds:,.1f} ms to train on an image, on {cost.device}")
    own, pull = _settings(recipe), minority_pull(labels["train"])
    duplicates = find_duplicates(images, splits, labels)
    checkup = Checkup(
        source=options.data_dir or options.dataset or f"the data of the recipe {options.recipe}",
        backbone=backbone,
        class_names=names,
        labels=of_splits,
        images=images,
        together=find_pairs(labels["train"], names),
        shared=co_occurrence(labels["train"])[0],
        duplicates=duplicates,
        examples=examples,
        input_shape=shape,
        input_range=span,
        loss=loss,
        chance_loss=chance_loss(len(names)),
        pull=pull,
        estimate=_estimate(labels["train"], images["train"], shape, own.total_batch_size, cost),
        settings=own,
        advice=[*advise_images(images, duplicates), *advise(of_splits["train"], of_splits["test"], pull, own)],
    )
    print(shown_text(checkup))
    write_doctor(checkup, Path(options.out))
    print(f"\nwritten: {Path(options.out) / PAGE}")


def _check_options(options: argparse.Namespace) -> tuple[dict[str, Any], Recipe]:
    if options.data is not None:
        if options.data_dir is not None:
            raise mistake("DATA or --data_dir", f"both, {options.data!r} and {options.data_dir!r}", "Leave one out")
        options.data_dir = options.data
    if options.max_images < 1:
        raise mistake("--max_images of at least 1", str(options.max_images), "Leave it out for 1000")
    given = given_data_options(options, "train_split", "test_split")
    if options.recipe == "folder" and not given.keys() & {"data_dir", "dataset"}:
        raise mistake("data to look at", "none", "Name their folder, or a data set of the Hub with --dataset")
    check_folder(Path(options.out))
    return given, RECIPES[options.recipe]


@contextmanager
def _step(name: str) -> Iterator[list[str]]:
    """Say how a step ended, and that it failed before its error is shown."""
    done: list[str] = []
    shown = f"step {_STEPS.index(name) + 1} of {len(_STEPS)}, {name}"
    try:
        yield done
    except Exception:
        print(f"{shown}: failed", flush=True)
        raise
    print(f"{shown}: {'; '.join(done)}", flush=True)


def _setting(recipe: Recipe, name: str) -> Any:
    """Return the recipe's default of an option."""
    if name in recipe.defaults:
        return recipe.defaults[name]
    field = next(f for kind in (RecipeArguments, BalanceMixTrainingArguments) for f in fields(kind) if f.name == name)
    return None if field.default is MISSING else field.default


def _settings(recipe: Recipe) -> Settings:
    names = [field.name for field in fields(Settings) if field.name != "own_groups"]
    return Settings(**{name: int(_setting(recipe, name)) for name in names}, own_groups=recipe.groups is not None)


def _build(options: argparse.Namespace, recipe: Recipe, class_names: tuple[str, ...]) -> tuple[str, Any, Any]:
    backbone, size = options.backbone or _setting(recipe, "backbone"), options.image_size
    if size is None:
        size = usable_image_size(backbone, _setting(recipe, "image_size"))
    torch.manual_seed(0)  # the same weights, hence the same loss, every time
    model, processor = build_model(backbone, class_names, size, pretrained=False, head=_setting(recipe, "head"))
    return backbone, model, processor


def _readable(found: SplitImages) -> list[int]:
    """Return the rows of the training split that were read, in order."""
    rows = sorted(row for same in found.hashes.values() for row in same)
    if not rows:
        first = (found.missing + found.unreadable)[0]
        what = f"none of {len(found.missing) + len(found.unreadable)}, the first being {first!r}"
        raise mistake("a training image that can be read", what, "Check the folder and the image column")
    return rows


def _estimate(
    labels: npt.NDArray[np.int8], found: SplitImages, shape: tuple[int, ...], batch: int, cost: ModelCost
) -> Estimate:
    num_images, steps = len(labels), len(labels) // batch
    reads = 2 * steps * batch + num_images
    return Estimate(
        steps_per_epoch=steps,
        reads_per_epoch=reads,
        reading_seconds=reads / found.images_per_second,
        state_bytes=state_bytes(*labels.shape),
        cache_bytes=num_images * int(np.prod(shape[1:])),
        device=cost.device,
        model_seconds=steps * batch * cost.training_seconds + 2 * num_images * cost.forward_seconds,
        model_bytes=round(batch * cost.activation_bytes) + 4 * cost.weight_bytes,
    )
