"""What is known about every label of the training set, kept in memory, in checkpoints and on every rank alike."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from hf_balancemix.label_files import FORMAT, opened_file, write_file
from hf_balancemix.label_packing import code_mask, decoded_values, encoded, packed_bits
from hf_balancemix.method import SparseLabels

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
    "mixtures",
    "carried",
)

# The lowest of 32 bits is the given label; these follow, each from a bit on in so many steps: an even number, for ½.
_FIELDS = {"posterior": (1, 510), "confidence": (10, 510), "posterior_mean": (19, 8190)}
_SPARSE = ("labels.offsets", "labels.classes")
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
    tensor, and to change one it must be assigned. They are rounded, least next to 0 and 1, but no posterior across ½
    nor a confidence across the thresholds of :meth:`set_confidence`: what is clean, re-labelled or ambiguous stays so.

    Sparse labels stay so: they take four bytes for each positive and eight for each image, and have no posteriors
    or confidences beside them, but the ``mixtures`` from which each step computes its own.

    Attributes:
        class_names: The K names.
        prepared_epoch: The epoch that the statistics were prepared for; -1 before the first refresh.
        probs: (N, K) float32 predictions of the last refresh, or ``None`` (as everything below) before it. BalanceMix
            has them after the last epoch, and before it where labels are refined without ``confidence``.
        class_confidence: (2, K) float64, A(k) in row 0 and P(k) in row 1 (Eq. 2).
        sampling_probability: (N,) float64 of the minority half (Eq. 4); ``None`` stands for uniform.
        posterior: (N, K) float32 within 0.002, P(this given label is clean) (Eq. 8).
        posterior_mean: (N, K) float32 within 0.003, mean of the posteriors of all refreshes since the warm-up.
        posterior_count: (1,) int64, of how many.
        confidence: (N, K) float32 within 0.002, mean prediction on the two augmented views (Eq. 9).
        instance_posterior: (N, 2) float32, P(all labels of this image are clean) by each network of Co-teaching.
        loss_sum: (N, K) float32, normalised losses summed over epochs; with the next three, T-estimator's first stage.
        best_map: (1,) float64, best mAP on the held-out images so far.
        best_loss: (K,) float64, least mean loss on the held-out images so far.
        best_probs: (N, K) float32, predictions of each class in the epoch of its ``best_loss``.
        transition: (K, 2, 2) float64, estimated noise of each class: rows are true values, columns given ones.
        mixtures: (2, K, 9) float64, what :meth:`Mixtures.stacked` holds (Eq. 7), with sparse labels.
        carried: (N, K) float16 logits of one augmented view, for the next refresh of schedule "carry".
        sampling_sums: (N,) float64, with sparse labels: running sums of the weights of the minority half; in no file.

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
    mixtures: torch.Tensor | None
    carried: torch.Tensor | None
    sampling_sums: torch.Tensor | None
    posterior, posterior_mean, confidence = _Probabilities(), _Probabilities(), _Probabilities()

    def __init__(
        self,
        labels: torch.Tensor | SparseLabels,
        class_names: tuple[str, ...],
        prepared_epoch: int = -1,
        **statistics: torch.Tensor | None,
    ) -> None:
        self.class_names, self.prepared_epoch, self.sampling_sums = class_names, prepared_epoch, None
        # Until a label has a posterior: (N, ⌈K/8⌉) uint8. Then: (N, K) int32, in which the fields named are known.
        self.sparse: SparseLabels | None = labels if isinstance(labels, SparseLabels) else None
        self._bits: torch.Tensor | None = None if isinstance(labels, SparseLabels) else packed_bits(labels)
        self._table: torch.Tensor | None = None
        self._known: frozenset[str] = frozenset()
        if unknown := statistics.keys() - set(STATISTICS):
            raise TypeError(f"Expected statistics among {', '.join(STATISTICS)}, found {', '.join(sorted(unknown))}.")
        for name in STATISTICS:
            setattr(self, name, statistics.get(name))

    def __len__(self) -> int:
        return next(len(held) for held in (self._table, self._bits, self.sparse) if held is not None)

    @property
    def labels(self) -> torch.Tensor:
        """(N, K) uint8, the labels as the data set gives them, as a new tensor, also of sparse labels."""
        out = torch.empty(len(self), len(self.class_names), dtype=torch.uint8)
        for rows in self._chunks():
            out[rows] = self.labels_of(rows)
        return out

    def labels_of(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Return the (..., K) uint8 given labels of rows (...): what ``labels`` has there, without the others."""
        if self._table is not None:
            return (self._table[rows] & 1).to(torch.uint8)
        if self.sparse is not None:
            return self.sparse.dense(rows)
        assert self._bits is not None
        return torch.from_numpy(np.unpackbits(self._bits[rows].numpy(), axis=-1, count=len(self.class_names)))

    def positives(self) -> torch.Tensor:
        """Return the given positives of each class, (K,) int64."""
        if self.sparse is not None:
            return self.sparse.counts
        return torch.stack([self.labels_of(rows).sum(dim=0, dtype=torch.int64) for rows in self._chunks()]).sum(dim=0)

    def probabilities_of(self, name: str, rows: torch.Tensor | slice) -> torch.Tensor | None:
        """Return (..., K) float32, what the ``posterior``, ``confidence`` or ``posterior_mean`` has in rows (...)."""
        if name not in self._known:
            return None
        assert self._table is not None
        first, steps = _FIELDS[name]
        return decoded_values(steps)[((self._table[rows] >> first) & code_mask(steps)).long()]

    def set_confidence(self, values: torch.Tensor, relabel_threshold: float) -> None:
        """Take (N, K) confidences; whether one is above ε or below 1 − ε (Eq. 9) outlives the rounding."""
        self._store("confidence", values, relabel_threshold)

    def reset(self) -> None:
        """Forget every statistic: the state of a run that has not begun."""
        self.prepared_epoch, self.sampling_sums = -1, None
        for name in STATISTICS:
            setattr(self, name, None)

    def add_posterior(self, posterior: torch.Tensor) -> None:
        """Take the (N, K) posteriors of a refresh as the last ones, and into their mean; once per refresh."""
        count = 0 if self.posterior_count is None else int(self.posterior_count)
        mean, posterior = self.posterior_mean, posterior.float()
        self.posterior_mean = posterior if mean is None else mean.lerp_(posterior, 1 / (count + 1))
        self.posterior, self.posterior_count = posterior, torch.tensor([count + 1])

    def statistics(self) -> dict[str, torch.Tensor]:
        """Return the statistics that exist, by name."""
        return {name: value for name in STATISTICS if (value := getattr(self, name)) is not None}

    def stored(self) -> dict[str, torch.Tensor]:
        """Return the tensors that are held, for files and for other processes.

        The given labels are ``labels``, (N, ⌈K/8⌉) uint8, or, once there are posteriors, ``labels+...``, (N, K) int32,
        which names what it holds beside them; of sparse labels ``labels.offsets`` and ``labels.classes``. The
        statistics that are held by themselves have their names.
        """
        held = {"+".join(["labels", *sorted(self._known)]): self._bits if self._table is None else self._table}
        if self.sparse is not None:
            held = dict(zip(_SPARSE, (self.sparse.offsets, self.sparse.classes), strict=True))
        held |= {name: getattr(self, name) for name in STATISTICS if name not in _FIELDS}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what :meth:`stored` of another state gave, with its labels.

        Raises:
            ValueError: If a tensor is unknown or does not fit the others.
        """
        tensors, k = dict(tensors), len(self.class_names)
        if tensors.keys() >= set(_SPARSE):
            offsets, classes = (tensors.pop(name) for name in _SPARSE)
            self.sparse = SparseLabels(offsets, classes, k)
            self._bits, self._table, self._known = None, None, frozenset()
        else:
            self._restore_table(tensors, k)
        if unknown := tensors.keys() - (plain := set(STATISTICS) - set(_FIELDS)):
            raise ValueError(f"unknown tensors {sorted(unknown)}")
        for name in plain:
            setattr(self, name, tensors.get(name))
        self.check_shapes()

    def _restore_table(self, tensors: dict[str, torch.Tensor], k: int) -> None:
        """Take the labels out of ``tensors``, with the probabilities in one table with them."""
        name = next((name for name in tensors if name.split("+")[0] == "labels"), "labels")
        labels, known = tensors.pop(name), frozenset(name.split("+")[1:])
        shape, dtype = ((len(labels), k), torch.int32) if known else ((len(labels), -(-k // 8)), torch.uint8)
        if labels.shape != shape or labels.dtype != dtype:
            raise ValueError(f"`{name}` is {labels.dtype} {tuple(labels.shape)}, expected {dtype} {shape}")
        if unknown := known - set(_FIELDS):
            raise ValueError(f"unknown tensors {sorted(unknown)}")
        self._bits, self._table, self._known = (None, labels, known) if known else (labels, None, known)
        self.sparse = None

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
        write_file(folder, self.stored(), metadata)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> tuple[LabelState, dict[str, Any]]:
        """Read the state and the facts about its run back. Nothing is unpickled.

        Files of format 1, which hold every statistic as float32, are read as well, and rounded.

        Raises:
            ValueError: If the file is missing, damaged or of another format; the message says what to do.
        """
        with opened_file(folder) as (file, metadata):
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
        with opened_file(folder) as (_, metadata):
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
            "mixtures": (2, k, 9),
        }
        for name, value in self.stored().items():
            if not name.startswith("labels") and tuple(value.shape) != expected.get(name, (n, k)):
                raise ValueError(f"`{name}` has shape {tuple(value.shape)}, expected {expected.get(name, (n, k))}")

    def assign(self, other: LabelState) -> None:
        """Take over everything from ``other``, in place: samplers and trainers keep their reference."""
        vars(self).update(vars(other))

    def different_labels(self, other: LabelState) -> int:
        """Count the given labels in which two states of as many rows and classes differ."""
        chunks = () if self.sparse is not None and self.sparse.equals(other.sparse) else self._chunks()
        return sum(int((self.labels_of(rows) != other.labels_of(rows)).sum()) for rows in chunks)

    def shard(self, rank: int, world_size: int) -> LabelState:
        """Return the state of the rows that process ``rank`` refreshes, every ``world_size``-th."""
        part = copy.copy(self)
        part._bits, part._table = (t if t is None else t[rank::world_size] for t in (self._bits, self._table))
        return part

    def join(self, shard: LabelState, gather: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Take over the statistics of all shards.

        Args:
            shard: This process's.
            gather: From the rows (n, K) of this process's shard to those (N, K) of all, in order.
        """
        bits = self._bits
        self.assign(shard)
        tables = shard._table, shard.probs, shard.carried
        self._table, self.probs, self.carried = (t if t is None else gather(t) for t in tables)
        self._bits = bits if self._table is None else None

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
                self._bits, self._table = packed_bits(self.labels), None
            self._known -= {name}
            return
        n, k = len(self), len(self.class_names)
        if values.shape != (n, k):
            raise ValueError(f"`{name}` has shape {tuple(values.shape)}, expected {(n, k)}")
        first, steps = _FIELDS[name]
        table = torch.empty(n, k, dtype=torch.int32)
        for rows in self._chunks():
            old = self.labels_of(rows).int() if self._table is None else self._table[rows]
            kept = old ^ (((old >> first) & code_mask(steps)) << first)
            table[rows] = kept | (encoded(values[rows], steps, threshold) << first)
        self._bits, self._table, self._known = None, table, self._known | {name}
