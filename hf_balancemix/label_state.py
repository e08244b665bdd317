"""What is known about every label of the training set, kept in memory, in checkpoints and on every rank alike."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FILE_NAME = "label_state.safetensors"
FORMAT = "2"
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

# The lowest of 32 bits is the given label; these follow, each from a bit on in so many steps: an even number, for ½.
_FIELDS = {"posterior": (1, 510), "confidence": (10, 510), "posterior_mean": (19, 8190)}
_CHUNK_ENTRIES = 2**20  # so many labels are packed or unpacked at a time


class _Probabilities:
    """An attribute of a :class:`LabelState` that is held in its packed table."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, state: LabelState, owner: type | None = None) -> torch.Tensor | None:
        if state is None or self.name not in state._known:
            return None
        out = torch.empty(len(state), len(state.class_names))
        for rows in state._chunks():
            out[rows] = torch.as_tensor(state.probabilities_of(self.name, rows))
        return out

    def __set__(self, state: LabelState, values: torch.Tensor | None) -> None:
        state._store(self.name, values)


class LabelState:
    """Given labels and the statistics of the last refresh, all on the CPU.

    A label takes one bit, and once there are posteriors four bytes, which hold its ``posterior`` and ``confidence``
    (nine bits each) and ``posterior_mean`` (thirteen) as well: reading ``labels`` or one of these three gives a new
    tensor, and to change one it must be assigned. They are rounded, least next to 0 and 1, but never across ½, nor a
    confidence across the thresholds of :meth:`set_confidence`: which labels are clean, re-labelled or ambiguous stays.

    Attributes:
        class_names: The K names.
        prepared_epoch: The epoch that the statistics were prepared for; -1 before the first refresh.
        probs: (N, K) float32 predictions of the last refresh, or ``None`` (as everything below) before it. BalanceMix
            has them after the last epoch, and before it where labels are refined without ``confidence``.
        class_confidence: (2, K) float64, A(k) in row 0 and P(k) in row 1 (Eq. 2).
        sampling_probability: (N,) float64 of the minority half (Eq. 4); ``None`` stands for uniform.
        posterior: (N, K) float32 within 0.002, P(this given label is clean) (Eq. 8).
        posterior_mean: (N, K) float32, mean of the posteriors of all refreshes since the warm-up.
        posterior_count: (1,) int64, of how many.
        confidence: (N, K) float32 within 0.002, mean prediction on the two augmented views (Eq. 9).
        instance_posterior: (N, 2) float32, P(all labels of this image are clean) by each network of Co-teaching.
        loss_sum: (N, K) float32, normalised losses summed over epochs; this and the next three only in the first stage
            of T-estimator.
        best_map: (1,) float64, best mAP on the held-out images so far.
        best_loss: (K,) float64, least mean loss on the held-out images so far.
        best_probs: (N, K) float32, predictions of each class in the epoch of its ``best_loss``.
        transition: (K, 2, 2) float64, estimated noise of each class: rows are true values, columns given ones.

    Args:
        labels: (N, K), 0 or 1, the labels as the data set gives them; never changed.
        class_names: As above.
        prepared_epoch: As above.
        **statistics: Those of the attributes above that are known.
    """

    probs: torch.Tensor | None
    class_confidence: torch.Tensor | None
    sampling_probability: torch.Tensor | None
    posterior_count: torch.Tensor | None
    instance_posterior: torch.Tensor | None
    loss_sum: torch.Tensor | None
    best_map: torch.Tensor | None
    best_loss: torch.Tensor | None
    best_probs: torch.Tensor | None
    transition: torch.Tensor | None
    posterior, posterior_mean, confidence = _Probabilities(), _Probabilities(), _Probabilities()

    def __init__(
        self,
        labels: torch.Tensor,
        class_names: tuple[str, ...],
        prepared_epoch: int = -1,
        **statistics: torch.Tensor | None,
    ) -> None:
        self.class_names, self.prepared_epoch = class_names, prepared_epoch
        # Until a label has a posterior: (N, ⌈K/8⌉) uint8. Then: (N, K) int32, in which the fields named are known.
        self._bits: torch.Tensor | None = _packed(labels)
        self._table: torch.Tensor | None = None
        self._known: frozenset[str] = frozenset()
        if unknown := statistics.keys() - set(STATISTICS):
            raise TypeError(f"Expected statistics among {', '.join(STATISTICS)}, found {', '.join(sorted(unknown))}.")
        for name in STATISTICS:
            setattr(self, name, statistics.get(name))

    def __len__(self) -> int:
        stored = self._bits if self._table is None else self._table
        assert stored is not None
        return stored.shape[0]

    @property
    def labels(self) -> torch.Tensor:
        """(N, K) uint8, the labels as the data set gives them, as a new tensor."""
        out = torch.empty(len(self), len(self.class_names), dtype=torch.uint8)
        for rows in self._chunks():
            out[rows] = self.labels_of(rows)
        return out

    def labels_of(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Return the (..., K) uint8 given labels of rows (...): what ``labels`` has there, without the others."""
        if self._table is not None:
            return (self._table[rows] & 1).to(torch.uint8)
        assert self._bits is not None
        return torch.from_numpy(np.unpackbits(self._bits[rows].numpy(), axis=-1, count=len(self.class_names)))

    def probabilities_of(self, name: str, rows: torch.Tensor | slice) -> torch.Tensor | None:
        """Return (..., K) float32, what the ``posterior``, ``confidence`` or ``posterior_mean`` has in rows (...)."""
        if name not in self._known:
            return None
        assert self._table is not None
        first, steps = _FIELDS[name]
        return _values(steps)[((self._table[rows] >> first) & _mask(steps)).long()]

    def set_confidence(self, values: torch.Tensor, relabel_threshold: float) -> None:
        """Take (N, K) confidences; whether one is above ε or below 1 − ε (Eq. 9) outlives the rounding."""
        self._store("confidence", values, relabel_threshold)

    def reset(self) -> None:
        """Forget every statistic: the state of a run that has not begun."""
        self.prepared_epoch = -1
        for name in STATISTICS:
            setattr(self, name, None)

    def add_posterior(self, posterior: torch.Tensor) -> None:
        """Take the (N, K) posteriors of a refresh as the last ones, and into their mean; once per refresh."""
        count = 0 if self.posterior_count is None else int(self.posterior_count)
        mean, posterior = self.posterior_mean, posterior.float()
        self.posterior_mean = posterior if mean is None else mean.lerp_(posterior, 1 / (count + 1))
        self.posterior = posterior
        self.posterior_count = torch.tensor([count + 1])

    def statistics(self) -> dict[str, torch.Tensor]:
        """Return the statistics that exist, by name."""
        return {name: value for name in STATISTICS if (value := getattr(self, name)) is not None}

    def stored(self) -> dict[str, torch.Tensor]:
        """Return the tensors that are held, for files and for other processes.

        The given labels are ``labels``, (N, ⌈K/8⌉) uint8, or, once there are posteriors, ``labels+...``, (N, K) int32,
        which names what it holds beside them. The statistics that are held by themselves have their names.
        """
        held = {"+".join(["labels", *sorted(self._known)]): self._bits if self._table is None else self._table}
        held |= {name: getattr(self, name) for name in STATISTICS if name not in _FIELDS}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what :meth:`stored` of another state gave, with its labels.

        Raises:
            ValueError: If a tensor is unknown or does not fit the others.
        """
        tensors, k = dict(tensors), len(self.class_names)
        name = next((name for name in tensors if name.split("+")[0] == "labels"), "labels")
        labels, known = tensors.pop(name), frozenset(name.split("+")[1:])
        shape, dtype = ((len(labels), k), torch.int32) if known else ((len(labels), -(-k // 8)), torch.uint8)
        if labels.shape != shape or labels.dtype != dtype:
            raise ValueError(f"`{name}` is {labels.dtype} {tuple(labels.shape)}, expected {dtype} {shape}")
        if unknown := (tensors.keys() - set(STATISTICS)) | (known - set(_FIELDS)):
            raise ValueError(f"unknown tensors {sorted(unknown)}")
        self._bits, self._table, self._known = (None, labels, known) if known else (labels, None, known)
        for plain in [name for name in STATISTICS if name not in _FIELDS]:
            setattr(self, plain, tensors.get(plain))
        self.check_shapes()

    def save(self, folder: str | os.PathLike[str], run: dict[str, Any]) -> None:
        """Write ``label_state.safetensors`` into ``folder``; a reader sees the old file or the new one, never half.

        Args:
            folder: An existing folder.
            run: JSON-able facts about the run (seed, world size, method, noise), compared on resume.
        """
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
            save_file({k: v.contiguous() for k, v in self.stored().items()}, temporary, metadata)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> tuple[LabelState, dict[str, Any]]:
        """Read the state and the facts about its run back. Nothing is unpickled.

        Files of format 1, which hold every statistic as float32, are read as well, and rounded.

        Raises:
            ValueError: If the file is missing, damaged or of another format; the message says what to do.
        """
        with _opened(folder) as (file, metadata):
            class_names, run = tuple(json.loads(metadata["class_names"])), json.loads(metadata["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            state = cls(torch.zeros(0, len(class_names)), class_names, int(metadata["prepared_epoch"]))
            if metadata["format"] == FORMAT:
                state.restore(tensors)
                return state, run
            state.restore({name: value for name, value in tensors.items() if name not in _FIELDS})
            state.posterior, state.posterior_mean = tensors.get("posterior"), tensors.get("posterior_mean")
            if "confidence" in tensors:
                state.set_confidence(tensors["confidence"], run.get("relabel_threshold", 0.5))
            return state, run

    @staticmethod
    def read_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Return only the facts about the run; raises as :meth:`load` does."""
        with _opened(folder) as (_, metadata):
            run: dict[str, Any] = json.loads(metadata["run"])
            return run

    def check_shapes(self) -> None:
        """Raise ``ValueError`` unless every statistic fits the (N, K) labels."""
        n, k = len(self), len(self.class_names)
        expected: dict[str, tuple[int, ...]] = {
            "class_confidence": (2, k),
            "sampling_probability": (n,),
            "posterior_count": (1,),
            "instance_posterior": (n, 2),
            "best_map": (1,),
            "best_loss": (k,),
            "transition": (k, 2, 2),
        }
        for name, value in self.stored().items():
            if not name.startswith("labels") and tuple(value.shape) != expected.get(name, (n, k)):
                raise ValueError(f"`{name}` has shape {tuple(value.shape)}, expected {expected.get(name, (n, k))}")

    def assign(self, other: LabelState) -> None:
        """Take over everything from ``other``, in place: samplers and trainers keep their reference."""
        vars(self).update(vars(other))

    def digest(self) -> str:
        """Return a SHA-256 of all tensors, for comparing the state of two ranks or two runs bit for bit."""
        sha = hashlib.sha256(str(self.prepared_epoch).encode())
        for name, value in self.stored().items():
            sha.update(name.encode())
            sha.update(value.contiguous().numpy().tobytes())
        return sha.hexdigest()

    def _chunks(self) -> Iterator[slice]:
        height = max(1, _CHUNK_ENTRIES // max(1, len(self.class_names)))
        return (slice(start, start + height) for start in range(0, len(self), height))

    def _store(self, name: str, values: torch.Tensor | None, threshold: float = 0.5) -> None:
        """Put a table of probabilities into a new copy of the packed one, or take it out."""
        if values is None:
            if self._known == {name}:
                self._bits, self._table = _packed(self.labels), None
            self._known -= {name}
            return
        n, k = len(self), len(self.class_names)
        if values.shape != (n, k):
            raise ValueError(f"`{name}` has shape {tuple(values.shape)}, expected {(n, k)}")
        first, steps = _FIELDS[name]
        table = torch.empty(n, k, dtype=torch.int32)
        for rows in self._chunks():
            old = self.labels_of(rows).int() if self._table is None else self._table[rows]
            kept = old ^ (((old >> first) & _mask(steps)) << first)
            table[rows] = kept | (_encoded(values[rows], steps, threshold) << first)
        self._bits, self._table, self._known = None, table, self._known | {name}


def _packed(labels: torch.Tensor) -> torch.Tensor:
    """Return (N, ⌈K/8⌉) uint8 bits of labels (N, K)."""
    return torch.from_numpy(np.packbits(labels.numpy() != 0, axis=1))


def _mask(steps: int) -> int:
    return (1 << steps.bit_length()) - 1


def _encoded(values: torch.Tensor, steps: int, threshold: float) -> torch.Tensor:
    """Return the int32 codes of probabilities; those beyond a threshold, or its opposite, stay so."""
    values = values.float().clamp(0, 1)
    code = values.double().sqrt_().asin_().mul_(2 / math.pi * steps).round_().int()
    rounded = _values(steps)[code.long()]
    above = (values > threshold).int() - (rounded > threshold).int()
    below = (rounded < 1 - threshold).int() - (values < 1 - threshold).int()
    return code + above + below


@functools.cache
def _values(steps: int) -> torch.Tensor:
    """Return (steps + 1,) float32 what each code stands for: sin², whose steps are finest next to 0 and 1."""
    return (torch.arange(steps + 1, dtype=torch.float64) * (math.pi / 2 / steps)).sin().square().float()


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
            if metadata["format"] not in ("1", FORMAT):
                raise ValueError(f"format {metadata['format']!r}, expected {FORMAT!r}")
            yield file, metadata
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}). {remedy}") from error
