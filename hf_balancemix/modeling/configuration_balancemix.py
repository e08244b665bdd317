"""Configuration of a backbone with a multi-label head."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from .heads import HEADS

FEATURE_LAYOUTS = ("NCHW", "NHWC", "NLC")
# What a configuration says of its own classifier, of the folder it came from, and of its precision, which is
# that of the whole model.
_NOT_OF_THE_BACKBONE = (
    *("id2label", "label2id", "num_labels", "label_names", "num_classes", "problem_type"),
    *("_name_or_path", "dtype"),
)


class BalanceMixConfig(PreTrainedConfig):
    """A backbone's configuration, what its features look like, and the head; written by ``from_backbone``.

    Args:
        backbone_config: Configuration of the backbone: a ``TimmWrapperConfig`` (architecture, ``pretrained_cfg`` and
            ``model_args`` of timm), or that of any vision model of transformers; or the dict of one. It is copied.
        head: One of ``HEADS``.
        head_options: Arguments of the head's class.
        feature_dim: C, channels of the features.
        feature_layout: ``NCHW`` or ``NHWC`` for maps, ``NLC`` for tokens.
        num_prefix_tokens: Class, register and distillation tokens before the patches.
        unused_parameters: Parameters of the backbone behind the features, by name; they are frozen.
        **kwargs: Those of ``PreTrainedConfig``, among them ``id2label`` and ``label2id``.

    Raises:
        ValueError: For an unknown head or layout.
    """

    model_type = "balancemix"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig}

    backbone_config: Any = None
    head: str = "ml_decoder"
    head_options: dict[str, Any] | None = None
    feature_dim: int = 2048
    feature_layout: str = "NCHW"
    num_prefix_tokens: int = 0
    unused_parameters: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name, value, choices in (
            ("head", self.head, HEADS),
            ("feature_layout", self.feature_layout, FEATURE_LAYOUTS),
        ):
            if value not in choices:
                raise ValueError(f"Expected `{name}` to be one of {', '.join(choices)}, found {value!r}.")
        if self.backbone_config is not None:
            self.backbone_config = _without_classifier(self.backbone_config)
        self.head_options = self.head_options or {}
        self.unused_parameters = self.unused_parameters or []
        self.problem_type = self.problem_type or "multi_label_classification"
        super().__post_init__(**kwargs)


def _without_classifier(backbone_config: PreTrainedConfig | dict[str, Any]) -> PreTrainedConfig:
    """Return a copy that knows of no classes."""
    settings = backbone_config if isinstance(backbone_config, dict) else backbone_config.to_dict()
    settings = {"model_type": "timm_wrapper"} | {k: v for k, v in settings.items() if k not in _NOT_OF_THE_BACKBONE}
    copy: PreTrainedConfig = AutoConfig.for_model(**settings)
    copy.id2label, copy.label2id = {}, {}
    return copy
