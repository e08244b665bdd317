"""Two networks as one model: what an optimiser, DistributedDataParallel and the Trainer see of Co-teaching."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_balancemix.method import mean_probability_logits
from hf_balancemix.training.checkpoints import read_weights
from hf_balancemix.training.objective import logits_of

SECOND_NETWORK = "second_network"


class NetworkPair(PreTrainedModel):
    """Two image classifiers of the same classes, trained side by side.

    Saved, it is an ordinary checkpoint of the first network, which the Auto classes load, with another one of the
    second in ``second_network/``.

    Args:
        first: The network that is handed over in the end; the pair has its configuration.
        second: The other one.
        evaluated_network: ``"first"`` predicts with the first network, ``"mean"`` with the mean of both probabilities.

    Raises:
        TypeError: If one of them is no ``PreTrainedModel``.
        ValueError: If they are the same object, or have different numbers of outputs.
    """

    main_input_name = "pixel_values"
    accepts_loss_kwargs = False
    # What the first network has chosen stays chosen: it does not concern the pair.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True

    def __init__(self, first: PreTrainedModel, second: PreTrainedModel, evaluated_network: str = "first") -> None:
        for name, network in (("model", first), ("second_model", second)):
            if not isinstance(network, PreTrainedModel):
                raise TypeError(
                    f"Expected a `transformers.PreTrainedModel` as `{name}`, found {type(network).__name__}. Load one "
                    "with `AutoModelForImageClassification`, or build it with `hf_balancemix.build.build_model`."
                )
        if first is second:
            raise ValueError(
                "Expected two networks for co-teaching, found one model as `model` and as `second_model`. Load or "
                "build it twice, or leave `second_model` out."
            )
        if first.config.num_labels != second.config.num_labels:
            raise ValueError(
                f"Expected two networks with as many outputs, found {first.config.num_labels} of `model` and "
                f"{second.config.num_labels} of `second_model`. Build both for the same classes."
            )
        super().__init__(first.config)
        self.first, self.second = first, second
        self.evaluated_network = evaluated_network

    def forward(
        self, pixel_values: torch.Tensor, second_pixel_values: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Predict with both networks, or as ``evaluated_network`` says.

        Args:
            pixel_values: (n, 3, H, W) images.
            second_pixel_values: (m, 3, H, W) images for the second network; the first then takes the others.

        Returns:
            ``logits`` (n, K), and with ``second_pixel_values`` the second network's ``second_logits`` (m, K).
        """
        logits = logits_of(self.first, pixel_values)
        if second_pixel_values is not None:
            return {"logits": logits, "second_logits": logits_of(self.second, second_pixel_values)}
        if self.evaluated_network == "mean":
            logits = mean_probability_logits(logits, logits_of(self.second, pixel_values))
        return {"logits": logits}

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Switch activation checkpointing on in both networks."""
        for network in (self.first, self.second):
            network.activation_checkpointing_enable(*args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write both networks, each as its own class does.

        Args:
            save_directory: Folder of the first network; the second goes into ``second_network/`` inside.
            is_main_process: As in ``PreTrainedModel``.
            state_dict: Weights to write instead of the pair's own, under the pair's names.
            **kwargs: Passed on.
        """
        for name in ("id2label", "label2id", "problem_type"):
            setattr(self.second.config, name, getattr(self.config, name))
        for name, network, folder in self._parts(save_directory):
            own = None
            if state_dict is not None:
                own = {key.removeprefix(name): v for key, v in state_dict.items() if key.startswith(name)}
            network.save_pretrained(folder, is_main_process=is_main_process, state_dict=own, **kwargs)

    def load_weights(self, folder: str | os.PathLike[str]) -> None:
        """Load the weights of both networks that ``save_pretrained`` wrote: all of them or none.

        Raises:
            ValueError: If one of them is missing or damaged.
        """
        if not (Path(folder) / SECOND_NETWORK).is_dir():
            raise ValueError(
                f"Expected a checkpoint of co-teaching, with a network in {SECOND_NETWORK}/, found none in {folder}: "
                "it is not complete, or another method wrote it. Take another checkpoint of the same run, or start a "
                "new run (and load this one as model to keep its weights)."
            )
        parts = self._parts(folder)
        weights = {name + key: v for name, net, own in parts for key, v in read_weights(net, str(own)).items()}
        self.load_state_dict(weights, strict=True)

    def _parts(self, folder: str | os.PathLike[str]) -> tuple[tuple[str, PreTrainedModel, Path], ...]:
        folder = Path(folder)
        return ("first.", self.first, folder), ("second.", self.second, folder / SECOND_NETWORK)


def second_seed(seed: int) -> int:
    """Return the seed of what is drawn for the second network of a run, whose own seed draws the first one."""
    # A sum would give one run's first network to another run as its second; PyTorch takes 32 bits of a seed.
    return int(np.random.SeedSequence([seed, 2]).generate_state(1)[0])


def with_new_head(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Return a copy of a classifier whose classification head is drawn anew.

    Args:
        model: Any classifier of transformers or timm that can tell its head from its backbone.
        seed: Seed of what is drawn; the global generator is left as it was.

    Raises:
        ValueError: If the head cannot be told from the rest, or the model is not what its configuration says.
    """
    base: Any = model.base_model
    kept = {id(value) for value in base.state_dict(keep_vars=True).values()}
    if hasattr(base, "get_classifier"):  # timm's, whose head is part of the base
        kept -= {id(value) for value in base.get_classifier().state_dict(keep_vars=True).values()}
    weights = {name: value for name, value in model.state_dict(keep_vars=True).items() if id(value) in kept}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        second: Any = type(model)(copy.deepcopy(model.config))
    if len(weights) == len(model.state_dict()) or _shapes(second) != _shapes(model):
        raise ValueError(
            "Expected a model whose classification head can be told from its backbone and that can be built anew from "
            f"its configuration, found {type(model).__name__}. Pass a `second_model`: the same backbone, with a head "
            "of its own."
        )
    second.to(device=model.device, dtype=model.dtype).train(model.training)
    second.load_state_dict(weights, strict=False)
    for parameter, original in zip(second.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    return second


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}
