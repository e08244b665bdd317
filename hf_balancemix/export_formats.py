"""The formats of an export: how a network gets into a file, and how that file runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_balancemix.messages import mistake

ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2"}
RUNTIMES = {"onnx": "ONNX Runtime", "torch_export": "torch.export"}

_INPUT, _OUTPUT, _METADATA = "pixel_values", "logits", "metadata.json"

Runtime = Callable[[torch.Tensor], torch.Tensor]


class Logits(torch.nn.Module):
    """A classifier that returns a tensor alone.

    Args:
        model: One whose output has ``logits``.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return (B, K) logits of (B, 3, H, W)."""
        logits: torch.Tensor = self.model(pixel_values=pixel_values).logits
        return logits


def write(network: Logits, metadata: dict[str, Any], to: str, path: Path) -> None:
    """Write a network to a file.

    Args:
        network: On the CPU, in eval mode.
        metadata: What the file tells of the model, values that JSON has; ``image_size`` [H, W] is the size of the
            pictures that it takes, any number at once.
        to: One of ``ENDINGS``.
        path: Where the file goes.

    Raises:
        ValueError: If the network cannot be recorded.
        OSError: If the file cannot be written.
    """
    # Black ones, for a file of torch.export keeps them. Two, for a batch of one would be recorded as the only size.
    program = _trace(network, torch.zeros(2, 3, *metadata["image_size"]))
    if to == "onnx":
        _write_onnx(program, metadata, path, type(network.model).__name__)
    else:
        torch.export.save(program, path, extra_files={_METADATA: json.dumps(metadata, ensure_ascii=False)})


def load(path: Path, to: str) -> Runtime:
    """Return the function from pixels (B, 3, H, W) to logits (B, K) that a file holds."""
    return _load_onnx(path) if to == "onnx" else without_gradients(torch.export.load(path).module())


def without_gradients(module: torch.nn.Module) -> Runtime:
    """Return the function from pixels (B, 3, H, W) to logits (B, K) that a module is."""

    def run(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = module(pixel_values=pixels)
        return logits

    return run


def _trace(network: Logits, pixels: torch.Tensor) -> torch.export.ExportedProgram:
    """Record what the network does with a batch of any size."""
    # Where no gradient is wanted, attention takes a fused operation that ONNX does not have.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        any_batch = {_INPUT: {0: torch.export.Dim("batch", min=1)}}
        program = torch.export.export(network, (), {_INPUT: pixels}, dynamic_shapes=any_batch)
    except RuntimeError as error:
        raise _untraceable(type(network.model).__name__, "torch.export", error) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _untraceable(name: str, by: str, error: Exception) -> ValueError:
    reason = str(error).strip().split("\n")[0].rstrip(".")
    return mistake(
        f"a model that {by} can record for any number of images",
        f"that it cannot record {name} ({reason})",
        "Choose another format, or train with another backbone or head",
    )


def _write_onnx(program: torch.export.ExportedProgram, metadata: dict[str, Any], path: Path, name: str) -> None:
    log = logging.getLogger("onnxscript")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells what it could not simplify
    try:
        converted: Any = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes={_INPUT: {0: "batch"}},
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise _untraceable(name, "torch.onnx", error) from error
    finally:
        log.setLevel(level)
    for node in converted.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the code each comes from
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    converted.model.metadata_props.update(texts)
    converted.save(path, external_data=False)


def _load_onnx(path: Path) -> Runtime:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as PyTorch has
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run([_OUTPUT], {_INPUT: pixels.numpy()})[0])
