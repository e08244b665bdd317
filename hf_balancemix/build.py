"""From a backbone's name to a model with one output per class and an image processor that fits it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    TimmWrapperConfig,
    ViTImageProcessor,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_balancemix.checks import own_class_names
from hf_balancemix.connection import prepare_hub

SMALL_RESNET = "small_resnet"
# A smaller picture shows nothing, and every layer behind the first would see a single pixel.
MIN_IMAGE_SIZE = 8
# What architectures raise while they are built for a size, or see it, that they do not take.
_SIZE_ERRORS = (RuntimeError, ValueError, AssertionError, ArithmeticError, IndexError)
# The whole picture, squashed to a square, as timm writes it.
_SQUASH = {"crop_pct": 1.0, "crop_mode": "squash"}


class ImageSizeError(ValueError):
    """A backbone does not take pictures of this size."""


def build_model(
    backbone: str, class_names: Sequence[str], image_size: int | None = None, pretrained: bool = True
) -> tuple[PreTrainedModel, Any]:
    """Build a classifier with a linear head and its image processor.

    Args:
        backbone: A timm name (``resnet50.tv_in1k``), whose head is always drawn anew; a Hub name
            (``google/vit-base-patch16-224``) or a local folder with a checkpoint, whose head is kept if it was made
            for the same classes, and drawn anew if it has another number of outputs; or ``small_resnet``: a ResNet of
            0.7 M parameters for small pictures, from a config and always drawn at random.
        class_names: The K names.
        image_size: Side in pixels, at least 8; pictures are squashed to a square. ``None`` takes the backbone's own
            size.
        pretrained: Load weights; otherwise draw them at random.

    Returns:
        The model and an image processor, both of which ``save_pretrained`` writes for the Auto classes.

    Raises:
        ValueError: If the backbone is unknown (the message names the nearest ones) or cannot be loaded, if it is a
            checkpoint for as many other classes; :class:`ImageSizeError` if it does not take pictures of
            ``image_size``.
    """
    if image_size is not None and image_size < MIN_IMAGE_SIZE:
        raise ValueError(
            f"Expected `image_size` of at least {MIN_IMAGE_SIZE} pixels, found {image_size}. Leave it unset for the "
            "backbone's own size."
        )
    model, processor = _build(backbone, class_names, image_size, pretrained)
    if image_size is not None:
        _check_size(model, backbone, image_size)
    return model, processor


def usable_image_size(backbone: str, preferred: int | None) -> int | None:
    """Return ``preferred`` if the backbone takes pictures of that size, else None, which stands for its own.

    Raises:
        ValueError: If the backbone is unknown or cannot be loaded.
    """
    try:
        build_model(backbone, ["any"], preferred, pretrained=False)
    except ImageSizeError:
        return None
    return preferred


def _build(
    backbone: str, class_names: Sequence[str], image_size: int | None, pretrained: bool
) -> tuple[PreTrainedModel, Any]:
    labels: dict[str, Any] = {
        "num_labels": len(class_names),
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: i for i, name in enumerate(class_names)},
        "problem_type": "multi_label_classification",
    }
    if backbone == SMALL_RESNET:
        config = ResNetConfig(
            embedding_size=32,
            hidden_sizes=[32, 64, 128],
            depths=[1, 1, 1],
            layer_type="basic",
            downsample_in_first_stage=False,
            **labels,
        )
        return AutoModelForImageClassification.from_config(config), _processor(image_size or 32, [0.5] * 3, [0.5] * 3)
    if backbone.startswith("timm/") and not Path(backbone).is_dir():
        backbone = backbone.removeprefix("timm/")  # the Hub's name for it: built alike
    if backbone and (Path(backbone).is_dir() or "/" in backbone):
        _check_folder(backbone)
        return _from_hub(backbone, labels, image_size, pretrained)
    return _from_timm(backbone, labels, image_size, pretrained)


def _check_folder(name: str) -> None:
    """Refuse a folder without a checkpoint, and what can only be meant as a folder but is none."""
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ValueError(
                "Expected a checkpoint folder as backbone, as `save_pretrained` or `save_model` writes it, found "
                f"no config.json in {name}."
            )
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"Expected a checkpoint folder as backbone, found no folder {name}. Check the path.")


def _load(auto: Any, name: str, **options: Any) -> Any:
    try:
        return auto.from_pretrained(name, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise _unloadable(name, error) from error


def _unloadable(name: str, error: Exception) -> ValueError:
    """Return the error for a folder, Hub or timm name that does not load: what was wanted, why, and what to do."""
    wanted = f"Expected a backbone that can be loaded, found that {name!r} cannot"
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    lines = str(error).strip().split("\n")
    reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    if Path(name).is_dir():
        remedy = "It takes config.json, the weights and preprocessor_config.json, as `save_model` writes them."
    elif any(isinstance(link, RepositoryNotFoundError) for link in chain):
        reason = f"there is no such model on the Hub, {constants.ENDPOINT}, or it is not open to you"
        remedy = "Check the name; for a private or gated model, log in with `hf auth login`."
    elif "/" in name and not prepare_hub():
        reason = (
            f"it is no folder, it is not complete in the cache {constants.HF_HUB_CACHE}, and the Hub, "
            f"{constants.ENDPOINT}, cannot be reached"
        )
        remedy = (
            f"Run once with a connection; or run `hf download {name}` elsewhere and copy "
            f"{repo_folder_name(repo_id=name, repo_type='model')} from its cache into this one; or pass a local "
            "checkpoint folder as backbone; or take a timm model with random weights (`pretrained=False`, "
            "--pretrained False), or small_resnet for tiny pictures."
        )
    else:
        remedy = (
            "Check the name and the connection to the Hub, or take a timm model with random weights "
            "(`pretrained=False`, --pretrained False)."
        )
    return ValueError(f"{wanted} ({reason}). {remedy}")


def _check_classes(config: Any, class_names: Sequence[str], name: str) -> None:
    """Refuse a checkpoint whose head would be kept although its outputs mean other classes."""
    theirs = own_class_names(SimpleNamespace(config=config))
    if theirs is None or len(theirs) != len(class_names):
        return
    differ = [i for i, (own, other) in enumerate(zip(class_names, theirs, strict=True)) if own != other]
    if differ:
        shown = "; ".join(f"{theirs[i]!r} where you have {class_names[i]!r} (output {i})" for i in differ[:3])
        raise ValueError(
            f"Expected a checkpoint for these {len(theirs)} classes in this order, because its head would be kept, "
            f"found {len(differ)} others in {name}: {shown}{'; ...' if len(differ) > 3 else ''}. List the classes in "
            "the checkpoint's order, or start from the backbone that it was trained from."
        )


def _check_size(model: Any, backbone: str, image_size: int) -> None:
    """Try a black picture: no rule says which sizes an architecture takes."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(pixel_values=torch.zeros(1, 3, image_size, image_size, dtype=model.dtype))
    except _SIZE_ERRORS as error:
        raise _wrong_size(backbone, image_size, error) from error
    model.train(training)


def _wrong_size(backbone: str, image_size: int, error: Exception) -> ImageSizeError:
    reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    return ImageSizeError(
        f"Expected an `image_size` that {backbone} takes, found {image_size} ({reason}). Take another one, "
        "or leave it unset for the backbone's own size."
    )


def _processor(size: int, mean: Sequence[float], std: Sequence[float]) -> ViTImageProcessor:
    """Squash to a square, as the paper and the ML-Decoder and ASL scripts do."""
    return ViTImageProcessor(
        size={"height": size, "width": size}, resample=2, image_mean=list(mean), image_std=list(std)
    )


def _from_timm(name: str, labels: dict[str, Any], image_size: int | None, pretrained: bool) -> tuple[Any, Any]:
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, [SMALL_RESNET, *timm.list_models()], n=3)
        raise ValueError(
            f"Expected a timm model, a Hub name with a slash or a checkpoint folder as backbone, found {name!r}"
            + (f" (did you mean {', '.join(near)}?)." if near else ". `timm.list_models()` lists the names.")
        )
    tags = timm.list_models(f"{architecture}.*", pretrained=True)
    try:
        own_cfg: Any = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag behind the dot
        raise ValueError(
            f"Expected a timm model with one of its pretrained tags as backbone, found {name!r}. "
            f"There are: {', '.join(tags) or 'none'}."
        ) from error
    if pretrained and not own_cfg.tag:
        raise ValueError(
            f"Expected a timm model with pretrained weights as backbone, found {name!r}, which has none. Use "
            "`pretrained=False`, or choose another one."
        )
    own = own_cfg.to_dict()
    size = image_size or own["input_size"][-1]
    # transformers reads the preprocessing of a saved timm model from this entry of its config.json and from nowhere
    # else, so it must say what training does: squash to a square.
    cfg = {**own, "input_size": (3, size, size), **_SQUASH}
    # Only some architectures are built for one size; the others take any.
    sized = size != own["input_size"][-1] and "img_size" in _parameters(architecture)
    model_args: dict[str, Any] = {"img_size": size} if sized else {}
    if pretrained:
        prepare_hub()
    hub_name = f"timm/{architecture}.{own_cfg.tag}"
    if pretrained and not sized and own_cfg.hf_hub_id == hub_name:
        options = {"ignore_mismatched_sizes": True, "model_args": model_args, **labels}
        model = _load(AutoModelForImageClassification, hub_name, **options)
        model.config.pretrained_cfg = cfg
    else:
        config: Any = TimmWrapperConfig(  # type: ignore[call-arg]
            architecture=name, pretrained_cfg=cfg, model_args=model_args, **labels
        )
        try:
            model = AutoModelForImageClassification.from_config(config)
        except _SIZE_ERRORS as error:
            if not sized:
                raise
            raise _wrong_size(name, size, error) from error
        # Only timm itself resamples position embeddings to another size, and finds weights outside its own Hub pages.
        if pretrained:
            try:
                resampled = timm.create_model(name, pretrained=True, num_classes=labels["num_labels"], **model_args)
            except (OSError, RuntimeError) as error:
                raise _unloadable(own_cfg.hf_hub_id or name, error) from error
            model.timm_model.load_state_dict(resampled.state_dict())
    if pretrained and own_cfg.num_classes == labels["num_labels"]:  # else the head is new already
        model.timm_model.reset_classifier(labels["num_labels"])
    return model, TimmWrapperImageProcessor(cfg, architecture=name)


def _parameters(architecture: str) -> set[str]:
    """Return the constructor parameters of the class behind a timm entry point."""
    module: Any = inspect.getmodule(timm.models.model_entrypoint(architecture))
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    return {name for c in classes for name in inspect.signature(c.__init__).parameters}


def _from_hub(name: str, labels: dict[str, Any], image_size: int | None, pretrained: bool) -> tuple[Any, Any]:
    if not Path(name).is_dir():
        prepare_hub()
    processor = _load(AutoImageProcessor, name)
    if pretrained:
        _check_classes(_load(AutoConfig, name), list(labels["id2label"].values()), name)
        model = _load(AutoModelForImageClassification, name, ignore_mismatched_sizes=True, **labels)
    else:
        model = AutoModelForImageClassification.from_config(_load(AutoConfig, name, **labels))
    if image_size is None:
        return model, processor
    if model.config.model_type == "timm_wrapper":
        cfg = {**model.config.pretrained_cfg, "input_size": (3, image_size, image_size), **_SQUASH}
        model.config.pretrained_cfg = cfg
        return model, TimmWrapperImageProcessor(cfg, architecture=model.config.architecture)
    return model, _processor(image_size, processor.image_mean, processor.image_std)
