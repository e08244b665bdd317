"""What is known about every label of the training set, kept in memory, in checkpoints and on every rank alike."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FILE_NAME = "label_state.safetensors"
FORMAT = "1"
STATISTICS = (
    "probs",
    "class_confidence",
    "sampling_probability",
    "posterior",
    "posterior_mean",
    "posterior_count",
    "confidence",
    "instance_posterior",
    "loss_sum",
    "best_map",
    "best_loss",
    "best_probs",
    "transition",
)


@dataclass
class LabelState:
    """Given labels and the statistics of the last refresh, all on the CPU.

    Attributes:
        labels: (N, K) uint8, the labels as the data set gives them; never changed.
        class_names: The K names.
        prepared_epoch: The epoch that the statistics were prepared for; -1 before the first refresh.
        probs: (N, K) float32 predictions of the last refresh, or ``None`` (as everything below) before it.
        class_confidence: (2, K) float64, A(k) in row 0 and P(k) in row 1 (Eq. 2).
        sampling_probability: (N,) float64 of the minority half (Eq. 4); ``None`` stands for uniform.
        posterior: (N, K) float32, P(this given label is clean) (Eq. 8).
        posterior_mean: (N, K) float32, mean of the posteriors of all refreshes since the warm-up.
        posterior_count: (1,) int64, of how many.
        confidence: (N, K) float32, mean prediction on the two augmented views (Eq. 9).
        instance_posterior: (N, 2) float32, P(all labels of this image are clean) by each network of Co-teaching.
        loss_sum: (N, K) float32, normalised losses summed over epochs; this and the next three only in the first stage
            of T-estimator.
        best_map: (1,) float64, best mAP on the held-out images so far.
        best_loss: (K,) float64, least mean loss on the held-out images so far.
        best_probs: (N, K) float32, predictions of each class in the epoch of its ``best_loss``.
        transition: (K, 2, 2) float64, estimated noise of each class: rows are true values, columns given ones.
    """

    labels: torch.Tensor
    class_names: tuple[str, ...]
    prepared_epoch: int = -1
    probs: torch.Tensor | None = None
    class_confidence: torch.Tensor | None = None
    sampling_probability: torch.Tensor | None = None
    posterior: torch.Tensor | None = None
    posterior_mean: torch.Tensor | None = None
    posterior_count: torch.Tensor | None = None
    confidence: torch.Tensor | None = None
    instance_posterior: torch.Tensor | None = None
    loss_sum: torch.Tensor | None = None
    best_map: torch.Tensor | None = None
    best_loss: torch.Tensor | None = None
    best_probs: torch.Tensor | None = None
    transition: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    def reset(self) -> None:
        """Forget every statistic: the state of a run that has not begun."""
        self.prepared_epoch = -1
        for name in STATISTICS:
            setattr(self, name, None)

    def add_posterior(self, posterior: torch.Tensor) -> None:
        """Take the (N, K) float32 posteriors of a refresh as the last ones, and into their mean; once per refresh."""
        count = 0 if self.posterior_count is None else int(self.posterior_count)
        mean = torch.zeros_like(posterior) if self.posterior_mean is None else self.posterior_mean
        self.posterior, self.posterior_mean = posterior, mean + (posterior - mean) / (count + 1)
        self.posterior_count = torch.tensor([count + 1])

    def statistics(self) -> dict[str, torch.Tensor]:
        """Return the statistics that exist, by name."""
        return {name: value for name in STATISTICS if (value := getattr(self, name)) is not None}

    def save(self, folder: str | os.PathLike[str], run: dict[str, Any]) -> None:
        """Write ``label_state.safetensors`` into ``folder``; a reader sees the old file or the new one, never half.

        Args:
            folder: An existing folder.
            run: JSON-able facts about the run (seed, world size, method, noise), compared on resume.
        """
        packed = torch.from_numpy(np.packbits(self.labels.numpy(), axis=1))
        tensors = {"labels": packed, **{k: v.contiguous() for k, v in self.statistics().items()}}
        metadata = {
            "format": FORMAT,
            "num_rows": str(len(self)),
            "prepared_epoch": str(self.prepared_epoch),
            "class_names": json.dumps(self.class_names),
            "run": json.dumps(run, sort_keys=True),
        }
        path = Path(folder) / FILE_NAME
        temporary = path.with_suffix(".tmp")
        try:
            save_file(tensors, temporary, metadata)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> tuple[LabelState, dict[str, Any]]:
        """Read the state and the facts about its run back. Nothing is unpickled.

        Raises:
            ValueError: If the file is missing, damaged or of another format; the message says what to do.
        """
        with _opened(folder) as (file, metadata):
            class_names = tuple(json.loads(metadata["class_names"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            labels = np.unpackbits(tensors.pop("labels").numpy(), axis=1, count=len(class_names))
            state = cls(torch.from_numpy(labels), class_names, int(metadata["prepared_epoch"]), **tensors)
            state.check_shapes()
            return state, json.loads(metadata["run"])

    @staticmethod
    def read_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Return only the facts about the run; raises as :meth:`load` does."""
        with _opened(folder) as (_, metadata):
            run: dict[str, Any] = json.loads(metadata["run"])
            return run

    def check_shapes(self) -> None:
        """Raise ``ValueError`` unless every statistic fits the (N, K) labels."""
        n, k = self.labels.shape
        expected: dict[str, tuple[int, ...]] = {
            "class_confidence": (2, k),
            "sampling_probability": (n,),
            "posterior_count": (1,),
            "instance_posterior": (n, 2),
            "best_map": (1,),
            "best_loss": (k,),
            "transition": (k, 2, 2),
        }
        for name, value in self.statistics().items():
            if tuple(value.shape) != expected.get(name, (n, k)):
                raise ValueError(f"`{name}` has shape {tuple(value.shape)}, expected {expected.get(name, (n, k))}")

    def assign(self, other: LabelState) -> None:
        """Take over everything from ``other``, in place: samplers and trainers keep their reference."""
        for field in fields(self):
            setattr(self, field.name, getattr(other, field.name))

    def digest(self) -> str:
        """Return a SHA-256 of all tensors, for comparing the state of two ranks or two runs bit for bit."""
        sha = hashlib.sha256(str(self.prepared_epoch).encode())
        for name, value in {"labels": self.labels, **self.statistics()}.items():
            sha.update(name.encode())
            sha.update(value.contiguous().numpy().tobytes())
        return sha.hexdigest()


@contextmanager
def _opened(folder: str | os.PathLike[str]) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open the file of ``folder``; turn whatever is wrong with it into one ``ValueError`` with a remedy."""
    path = Path(folder) / FILE_NAME
    remedy = (
        "Resume from another checkpoint of the same run, or start a new run (load the checkpoint's weights with "
        "`from_pretrained` to keep them)."
    )
    if not path.is_file():
        raise ValueError(
            f"Expected {FILE_NAME} in {folder} (given labels, sampling probabilities, posteriors), found none: the "
            f"checkpoint was written by another trainer, with `save_only_model=True`, or is incomplete. {remedy}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata["format"] != FORMAT:
                raise ValueError(f"format {metadata['format']!r}, expected {FORMAT!r}")
            yield file, metadata
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}). {remedy}") from error
