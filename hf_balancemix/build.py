"""From a backbone's name to a model with one output per class and an image processor that fits it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy.typing as npt
import PIL.Image
import torch
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedModel,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor
from transformers.utils import logging

from hf_balancemix.backbones import (
    SMALL_RESNET,
    ImageSizeError,
    check_folder,
    check_size,
    from_timm,
    load,
    small_resnet,
    squash_processor,
    timm_processor,
    unloadable,
)
from hf_balancemix.checks import own_class_names
from hf_balancemix.connection import prepare_hub
from hf_balancemix.messages import nearest
from hf_balancemix.modeling.configuration_balancemix import BalanceMixConfig
from hf_balancemix.modeling.heads import HEADS, check_head_options
from hf_balancemix.modeling.modeling_balancemix import BalanceMixForImageClassification

__all__ = ["HEADS", "SMALL_RESNET", "ImageSizeError", "build_model", "usable_image_size"]

logger = logging.get_logger(__name__)

# A smaller picture shows nothing, and every layer behind the first would see a single pixel.
MIN_IMAGE_SIZE = 8


def build_model(
    backbone: str,
    class_names: Sequence[str],
    image_size: int | None = None,
    pretrained: bool = True,
    head: str = "linear",
    head_options: Mapping[str, Any] | None = None,
    word_vectors: torch.Tensor | npt.ArrayLike | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Build a classifier and its image processor.

    With the head ``linear`` the model is the backbone's own class with its own pooling, and its checkpoint loads
    everywhere. With another head it is a :class:`BalanceMixForImageClassification`, whose checkpoint loads after
    ``import hf_balancemix``, or without this package with ``trust_remote_code=True``. So is a ``linear`` one whose
    backbone comes from such a checkpoint, or from a model of transformers without a class for classification.

    Args:
        backbone: A timm name (``resnet50.tv_in1k``), whose head is always drawn anew; a Hub name
            (``google/vit-base-patch16-224``) or a local folder with a checkpoint, whose head is drawn anew if it is of
            another kind than asked for and kept if it was made for the same classes; of a head for another number of
            classes only the tensors of that size are drawn anew (the linear layer, but not a decoder's layers); or
            ``small_resnet``: a ResNet of 0.7 M parameters for small pictures, from a config, always drawn at random.
        class_names: The K names, each once.
        image_size: Side in pixels, at least 8; pictures are squashed to a square. ``None`` takes the backbone's own
            size.
        pretrained: Load weights; otherwise draw them at random.
        head: One of ``HEADS``.
        head_options: Arguments of the head's class (``{"num_queries": 50}`` for ``ml_decoder``).
        word_vectors: (K, W) numbers, makes ``ml_decoder`` the zero-shot variant.

    Returns:
        The model and an image processor, both of which ``save_pretrained`` writes for the Auto classes.

    Raises:
        TypeError: For class names, options or word vectors of another kind.
        ValueError: If the backbone is unknown (the message names the nearest ones) or cannot be loaded, if it is a
            checkpoint for as many other classes, for an unknown head or option or a value that it does not take, for
            class names that come twice; :class:`ImageSizeError` if it does not take pictures of ``image_size``.
    """
    class_names = _class_names(class_names)
    if image_size is not None and image_size < MIN_IMAGE_SIZE:
        raise ValueError(
            f"Expected `image_size` of at least {MIN_IMAGE_SIZE} pixels, found {image_size}. Leave it unset for the "
            "backbone's own size."
        )
    vectors = None if word_vectors is None else _word_vectors(word_vectors, len(class_names))
    options = _head_options(head, head_options, vectors)
    model, processor, complete = _build(backbone, class_names, image_size, pretrained, head, options)
    if image_size is not None:
        check_size(model, backbone, image_size)
    if not complete:
        if isinstance(processor, TimmWrapperImageProcessor):  # which transformers loads with timm's own class only
            cfg = processor.data_config
            processor = squash_processor(cfg["input_size"][-1], cfg["mean"], cfg["std"], cfg["interpolation"])
        size = processor(PIL.Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"].shape[-1]
        model = BalanceMixForImageClassification.from_backbone(model, class_names, size, head, options)
    if vectors is not None:
        model.set_classes(class_names, vectors)
    elif isinstance(model, BalanceMixForImageClassification) and not model.knows_its_classes:
        raise ValueError(
            f"Expected `word_vectors` of shape ({len(class_names)}, {model.config.head_options['word_vector_dim']}) "
            "for the zero-shot head, found none. Pass one row per class."
        )
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


def _class_names(given: Any) -> list[str]:
    """Return the class names as a list of plain strings."""
    if isinstance(given, str | Mapping | Set) or not isinstance(given, Iterable):
        raise TypeError(
            f"Expected a list of names as `class_names`, found {type(given).__name__}. Pass one name per class, in "
            "the order of the outputs."
        )
    places: dict[str, int] = {}
    for number, name in enumerate(given):
        if not isinstance(name, str):
            raise TypeError(f"Expected names as `class_names`, found {name!r} as number {number}. Write it as text.")
        if places.setdefault(str(name), number) != number:
            raise ValueError(
                f"Expected each name once in `class_names`, found {name!r} as numbers {places[name]} and {number}. "
                "Rename one, or merge the two classes."
            )
    if not places:
        raise ValueError("Expected at least one name in `class_names`, found none. Pass one per class.")
    return list(places)


def _word_vectors(given: Any, num_labels: int) -> torch.Tensor:
    """Return word vectors (K, W) as a tensor."""
    try:
        vectors = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"Expected numbers of shape ({num_labels}, width) as `word_vectors`, found {type(given).__name__} "
            f"({error}). Pass an array or a tensor with one row per class."
        ) from error
    if vectors.ndim != 2 or len(vectors) != num_labels or not vectors.numel() or vectors.is_complex():
        raise ValueError(
            f"Expected real `word_vectors` of shape ({num_labels}, width), one row for each of {num_labels} classes, "
            f"found {vectors.dtype} of shape {tuple(vectors.shape)}. Pass them in the order of `class_names`."
        )
    finite = vectors.float().isfinite().all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(
            f"Expected finite `word_vectors`, found NaN or infinity in row {row}. Replace the vectors of words that "
            "have none, by their mean for instance."
        )
    return vectors


def _head_options(head: str, given: Any, word_vectors: torch.Tensor | None) -> dict[str, Any]:
    """Return the options of a head; refuse what does not belong to it."""
    if head not in HEADS:
        raise ValueError(
            f"Expected a head among {', '.join(HEADS)}, found {head!r}{nearest(head, HEADS)}. Choose one."
        )
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(
            f"Expected a mapping from names to values as `head_options`, found {type(given).__name__}. Write for "
            'instance {"num_heads": 4}.'
        )
    options = dict(given or {})
    if head == "linear" and options:
        raise ValueError(f"Expected no `head_options` with the linear head, found {options}. Leave them out.")
    check_head_options(head, options)
    if word_vectors is not None:
        if head != "ml_decoder":
            raise ValueError(
                f"Expected `word_vectors` with the head ml_decoder, found them with {head}. Choose that one, or leave "
                "them out."
            )
        width = word_vectors.shape[1]
        if options.setdefault("word_vector_dim", width) != width:
            raise ValueError(
                f"Expected `word_vectors` of the width that `word_vector_dim` says, {options['word_vector_dim']}, "
                f"found {width}. Leave the option out: the vectors say it."
            )
    return options


def _build(
    backbone: str,
    class_names: Sequence[str],
    image_size: int | None,
    pretrained: bool,
    head: str,
    options: dict[str, Any],
) -> tuple[Any, Any, bool]:
    """Return a model, its image processor, and whether the model has its head already."""
    labels: dict[str, Any] = {
        "num_labels": len(class_names),
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: i for i, name in enumerate(class_names)},
        "problem_type": "multi_label_classification",
    }
    linear = head == "linear"
    auto = AutoModelForImageClassification if linear else AutoModel
    if backbone == SMALL_RESNET:
        return *small_resnet(auto, labels, image_size), linear
    if backbone.startswith("timm/") and not Path(backbone).is_dir():
        backbone = backbone.removeprefix("timm/")  # the Hub's name for it: built alike
    if backbone and (Path(backbone).is_dir() or "/" in backbone):
        check_folder(backbone)
        return _from_hub(backbone, labels, image_size, pretrained, head, options)
    return *from_timm(auto, backbone, labels, image_size, pretrained), linear


def _from_hub(
    name: str, labels: dict[str, Any], image_size: int | None, pretrained: bool, head: str, options: dict[str, Any]
) -> tuple[Any, Any, bool]:
    if not Path(name).is_dir():
        prepare_hub()
    processor = load(AutoImageProcessor, name)
    config = load(AutoConfig, name)
    kept = _head_of(config) == head and options.items() <= getattr(config, "head_options", {}).items()
    if not kept:
        model = _without_head(config, name, pretrained, head)
    elif pretrained:
        if "word_vector_dim" not in options:
            _check_classes(config, list(labels["id2label"].values()), name)
        model = load(AutoModelForImageClassification, name, ignore_mismatched_sizes=True, **labels)
    else:
        model = AutoModelForImageClassification.from_config(load(AutoConfig, name, **labels))
    if image_size is None:
        return model, processor, kept
    if model.config.model_type == "timm_wrapper":
        return model, timm_processor(model.config, image_size), kept
    own = getattr(processor, "resample", None)
    return model, squash_processor(image_size, processor.image_mean, processor.image_std, own), kept


def _head_of(config: Any) -> str | None:
    """Return the kind of head that a checkpoint's own class has, or None where transformers has no class with one."""
    if isinstance(config, BalanceMixConfig):
        return config.head
    return "linear" if type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING else None


def _without_head(config: Any, name: str, pretrained: bool, head: str) -> PreTrainedModel:
    """Load the backbone of a checkpoint alone."""
    if isinstance(config, BalanceMixConfig):
        if not pretrained:
            return AutoModel.from_config(config.backbone_config)
        logger.warning(f"The head of {name} ({config.head}) is left out, a new one ({head}) is drawn.")
        return load(AutoModelForImageClassification, name).backbone
    config = getattr(config, "vision_config", config)  # CLIP and its like read text as well
    if getattr(MODEL_MAPPING.get(type(config), None), "main_input_name", None) != "pixel_values":
        raise unloadable(name, ValueError(f"{config.model_type} is no vision model"))
    return load(AutoModel, name, config=config) if pretrained else AutoModel.from_config(config)


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
