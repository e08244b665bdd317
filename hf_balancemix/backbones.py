"""Find and load a backbone by its name, with or without its classifier, and the image processor that fits it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError
from transformers import AutoModelForImageClassification, ResNetConfig, TimmWrapperConfig, ViTImageProcessor
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_balancemix.connection import prepare_hub

SMALL_RESNET = "small_resnet"
# What architectures raise while they are built for a size, or see it, that they do not take.
_SIZE_ERRORS = (RuntimeError, ValueError, AssertionError, ArithmeticError, IndexError)
# The whole picture, squashed to a square, as timm writes it.
_SQUASH = {"crop_pct": 1.0, "crop_mode": "squash"}


class ImageSizeError(ValueError):
    """A backbone does not take pictures of this size."""


def small_resnet(auto: Any, labels: dict[str, Any], image_size: int | None) -> tuple[Any, Any]:
    """Return a ResNet of 0.7 M random parameters for small pictures, made by an Auto class, and its processor."""
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[1, 1, 1],
        layer_type="basic",
        downsample_in_first_stage=False,
        **labels,
    )
    return auto.from_config(config), squash_processor(image_size or 32, [0.5] * 3, [0.5] * 3)


def from_timm(
    auto: Any, name: str, labels: dict[str, Any], image_size: int | None, pretrained: bool
) -> tuple[Any, Any]:
    """Return a model of timm, made by an Auto class, and its image processor.

    Args:
        auto: ``AutoModelForImageClassification``, which draws a new classifier, or ``AutoModel``.
        name: Architecture, with or without a pretrained tag behind a dot.
        labels: Entries of the configuration that tell the classes.
        image_size: Side in pixels; the architecture's own if None.
        pretrained: Load weights.

    Raises:
        ValueError: If there is no such model, tag or file; :class:`ImageSizeError` for a size it is not built for.
    """
    architecture = name.split(".")[0]
    own_cfg = _pretrained_cfg(name, architecture, pretrained)
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
    classifies = auto is AutoModelForImageClassification
    if pretrained and not sized and own_cfg.hf_hub_id == hub_name:
        model = load(auto, hub_name, ignore_mismatched_sizes=True, model_args=model_args, **labels)
        model.config.pretrained_cfg = cfg
    else:
        config: Any = TimmWrapperConfig(  # type: ignore[call-arg]
            architecture=name, pretrained_cfg=cfg, model_args=model_args, **labels
        )
        try:
            model = auto.from_config(config)
        except _SIZE_ERRORS as error:
            if not sized:
                raise
            raise _wrong_size(name, size, error) from error
        # Only timm itself resamples position embeddings to another size, and finds weights outside its own Hub pages.
        if pretrained:
            num_classes = labels["num_labels"] if classifies else 0
            try:
                resampled = timm.create_model(name, pretrained=True, num_classes=num_classes, **model_args)
            except (OSError, RuntimeError) as error:
                raise unloadable(own_cfg.hf_hub_id or name, error) from error
            model.timm_model.load_state_dict(resampled.state_dict())
    if classifies and pretrained and own_cfg.num_classes == labels["num_labels"]:  # else the head is new already
        model.timm_model.reset_classifier(labels["num_labels"])
    return model, TimmWrapperImageProcessor(cfg, architecture=name)


def _pretrained_cfg(name: str, architecture: str, pretrained: bool) -> Any:
    """Return what timm knows of a model's weights; refuse names that it does not know."""
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, [SMALL_RESNET, *timm.list_models()], n=3)
        raise ValueError(
            f"Expected a timm model, a Hub name with a slash or a checkpoint folder as backbone, found {name!r}"
            + (f" (did you mean {', '.join(near)}?)." if near else ". `timm.list_models()` lists the names.")
        )
    try:
        cfg: Any = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag behind the dot
        tags = timm.list_models(f"{architecture}.*", pretrained=True)
        raise ValueError(
            f"Expected a timm model with one of its pretrained tags as backbone, found {name!r}. "
            f"There are: {', '.join(tags) or 'none'}."
        ) from error
    if pretrained and not cfg.tag:
        raise ValueError(
            f"Expected a timm model with pretrained weights as backbone, found {name!r}, which has none. Use "
            "`pretrained=False`, or choose another one."
        )
    return cfg


def _parameters(architecture: str) -> set[str]:
    """Return the constructor parameters of the class behind a timm entry point."""
    module: Any = inspect.getmodule(timm.models.model_entrypoint(architecture))
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    return {name for c in classes for name in inspect.signature(c.__init__).parameters}


def check_folder(name: str) -> None:
    """Refuse a folder without a checkpoint, and what can only be meant as a folder but is none.

    Raises:
        ValueError: Naming the folder.
    """
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ValueError(
                "Expected a checkpoint folder as backbone, as `save_pretrained` or `save_model` writes it, found "
                f"no config.json in {name}."
            )
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"Expected a checkpoint folder as backbone, found no folder {name}. Check the path.")


def load(auto: Any, name: str, **options: Any) -> Any:
    """Load a part of a checkpoint by one of the Auto classes.

    Raises:
        ValueError: If it is missing, damaged or out of reach.
    """
    try:
        return auto.from_pretrained(name, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise unloadable(name, error) from error


def unloadable(name: str, error: Exception) -> ValueError:
    """Return the error for a folder, Hub or timm name that does not load: what was wanted, why, and what to do.

    Args:
        name: Folder, Hub or timm name.
        error: What it failed with.
    """
    wanted = f"Expected a backbone that can be loaded, found that {name!r} cannot"
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    lines = str(error).strip().split("\n")
    reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
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


def check_size(model: Any, backbone: str, image_size: int) -> None:
    """Try a black picture: no rule says which sizes an architecture takes.

    Raises:
        ImageSizeError: If it does not take this one.
    """
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


def squash_processor(
    size: int, mean: Sequence[float], std: Sequence[float], interpolation: str | int | None = None
) -> ViTImageProcessor:
    """Return a processor that squashes to a square, as the paper and the ML-Decoder and ASL scripts do.

    Args:
        size: Side of the square in pixels.
        mean: Of each channel.
        std: Of each channel.
        interpolation: The backbone's own, by timm's name or Pillow's number; bilinear unless known.
    """
    known = {method.name.lower(): method for method in PIL.Image.Resampling}
    method = known.get(interpolation, 2) if isinstance(interpolation, str) else interpolation
    return ViTImageProcessor(
        size={"height": size, "width": size},
        resample=int(2 if method is None else method),
        image_mean=list(mean),
        image_std=list(std),
    )


def timm_processor(config: Any, image_size: int) -> TimmWrapperImageProcessor:
    """Let a timm model, by its configuration, squash to another size."""
    config.pretrained_cfg = {**config.pretrained_cfg, "input_size": (3, image_size, image_size), **_SQUASH}
    return TimmWrapperImageProcessor(config.pretrained_cfg, architecture=config.architecture)
