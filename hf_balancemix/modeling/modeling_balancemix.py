"""A backbone of timm or transformers with a multi-label head, as a model of transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from .configuration_balancemix import BalanceMixConfig
from .heads import MLDecoder, build_head

# More are no class, distillation and register tokens.
_MAX_PREFIX_TOKENS = 16


class BalanceMixForImageClassification(PreTrainedModel):
    """Multi-label classifier: the features of a backbone, and a head on them.

    Args:
        config: :class:`BalanceMixConfig`; :meth:`from_backbone` makes it.
    """

    config_class = BalanceMixConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    # The loss is a mean over the batch: the Trainer must not scale it by a number of items.
    accepts_loss_kwargs = False

    def __init__(self, config: BalanceMixConfig) -> None:
        super().__init__(config)
        if config.backbone_config is None:
            raise ValueError("Expected `backbone_config`, found None. Let `from_backbone` make the configuration.")
        self.num_labels = config.num_labels
        self.backbone = AutoModel.from_config(config.backbone_config)
        self.head = build_head(config.head, config.feature_dim, config.num_labels or 0, **config.head_options or {})
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self._freeze()
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: PreTrainedModel,
        class_names: Sequence[str],
        image_size: int,
        head: str = "ml_decoder",
        head_options: Mapping[str, Any] | None = None,
    ) -> BalanceMixForImageClassification:
        """Put a new head on a copy of a backbone.

        Args:
            backbone: A vision model without classifier, as ``AutoModel.from_pretrained`` loads it.
            class_names: The K names.
            image_size: Side in pixels of the pictures that it will see; the features are tried on one.
            head: One of ``HEADS``.
            head_options: Arguments of the head's class.

        Raises:
            ValueError: If the features are neither a map nor tokens, or the head does not fit.
        """
        features, unused = _try(backbone, image_size)
        layout, dim, prefix = _describe(features, backbone)
        config = BalanceMixConfig(
            backbone_config=backbone.config,
            head=head,
            head_options=dict(head_options or {}),
            feature_dim=dim,
            feature_layout=layout,
            num_prefix_tokens=prefix,
            unused_parameters=unused,
            id2label=dict(enumerate(class_names)),
            label2id={name: i for i, name in enumerate(class_names)},
        )
        model: BalanceMixForImageClassification = cls._from_config(config, dtype=backbone.dtype)
        model.backbone.load_state_dict(backbone.state_dict())
        return model

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as every model of transformers, and freeze again what has no gradient, which loading forgets."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()
        return loaded

    @property
    def base_model(self) -> nn.Module:
        """The backbone. A `base_model_prefix` would say the same, but rename a timm backbone's tensors on saving."""
        return self.backbone

    @property
    def knows_its_classes(self) -> bool:
        """Whether the head can predict: the zero-shot variant needs word vectors first."""
        word_vectors = getattr(self.head, "word_vectors", None)
        return word_vectors is None or bool(word_vectors.isfinite().all())

    def set_classes(self, class_names: Sequence[str], word_vectors: torch.Tensor) -> None:
        """Predict other classes, by their (K, W) word vectors; the zero-shot variant of ``ml_decoder`` alone can.

        Raises:
            ValueError: If the head takes no word vectors, or for another shape.
        """
        if len(class_names) != len(word_vectors):
            raise ValueError(
                f"Expected one word vector for each of {len(class_names)} classes, found {len(word_vectors)}."
            )
        if not isinstance(self.head, MLDecoder):
            raise ValueError(
                f"Expected the head ml_decoder with `word_vector_dim`, found {self.config.head}, which takes no word "
                "vectors."
            )
        self.head.set_word_vectors(word_vectors)
        self.num_labels = len(class_names)
        self.config.id2label = dict(enumerate(class_names))
        self.config.label2id = {name: i for i, name in enumerate(class_names)}

    def features(self, pixel_values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return the features as the head takes them: a map (B, C, H, W), or tokens (B, N, C)."""
        features: torch.Tensor = self.backbone(pixel_values=pixel_values, **kwargs).last_hidden_state
        if self.config.feature_layout == "NHWC":
            return features.permute(0, 3, 1, 2)
        if self.config.feature_layout == "NLC" and self.head.patches_only:
            return features[:, self.config.num_prefix_tokens :]
        return features

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput | tuple[torch.Tensor, ...]:
        """Predict.

        Args:
            pixel_values: (B, 3, H, W), as the image processor gives them.
            labels: (B, K) targets in [0, 1].
            return_dict: False for a tuple.
            **kwargs: Passed to the backbone (``interpolate_pos_encoding=True``, where it knows it).

        Returns:
            (B, K) logits, and with ``labels`` the binary cross-entropy: summed over classes, mean over instances.
        """
        logits = self.head(self.features(pixel_values, **kwargs))
        loss = None
        if labels is not None:
            entries = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
            loss = entries.sum(dim=1).mean()
        output = ImageClassifierOutput(loss=loss, logits=logits)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _freeze(self) -> None:
        """Switch gradients off where none arrive: DistributedDataParallel waits for all others."""
        for module, names in ((self.backbone, self.config.unused_parameters), (self.head, self.head.frozen)):
            for name, parameter in module.named_parameters():
                if name in names:
                    parameter.requires_grad_(False)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module of the head, by its own rule; transformers asks the backbone for its modules."""
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        self.backbone._set_gradient_checkpointing(*args, **kwargs)


def _try(backbone: PreTrainedModel, image_size: int) -> tuple[torch.Tensor, list[str]]:
    """Return the features of a black picture, and the names of the parameters that they do not depend on."""
    training = backbone.training
    backbone.eval()
    with torch.enable_grad():
        pixels = torch.zeros(1, 3, image_size, image_size, dtype=backbone.dtype, device=backbone.device)
        features = getattr(backbone(pixel_values=pixels), "last_hidden_state", None)
    backbone.train(training)
    if not isinstance(features, torch.Tensor) or features.ndim not in (3, 4):
        shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise ValueError(
            f"Expected a backbone with one map or one sequence of tokens as `last_hidden_state`, found {shape} from "
            f"{type(backbone).__name__}. Choose another backbone, or the linear head."
        )
    used, seen, pending = set[int](), set[Any](), [features.grad_fn]
    while pending:  # along the graph of gradients, to its leaves
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            used.add(id(getattr(node, "variable", None)))
            pending += [following for following, _ in node.next_functions]
    trained = [(name, p) for name, p in backbone.named_parameters() if p.requires_grad]
    return features.detach(), [name for name, p in trained if id(p) not in used]


def _describe(features: torch.Tensor, backbone: PreTrainedModel) -> tuple[str, int, int]:
    """Return layout, channels and number of prefix tokens of the features of a square picture."""
    if features.ndim == 4:
        _, first, second, third = features.shape
        # All equal: only timm says which axis holds the channels.
        named = str(getattr(getattr(backbone, "timm_model", None), "output_fmt", "NCHW"))
        last = first == second and (second != third or "NHWC" in named)
        return ("NHWC", third, 0) if last else ("NCHW", first, 0)
    tokens, dim = features.shape[1:]
    if (known := getattr(getattr(backbone, "timm_model", None), "num_prefix_tokens", None)) is not None:
        return "NLC", dim, known
    # transformers does not say how many there are: what is over when the patches are a square.
    fewest = getattr(backbone.config, "num_register_tokens", 0)
    for prefix in range(fewest, min(_MAX_PREFIX_TOKENS, tokens)):
        if math.isqrt(tokens - prefix) ** 2 == tokens - prefix:
            return "NLC", dim, prefix
    return "NLC", dim, 0
