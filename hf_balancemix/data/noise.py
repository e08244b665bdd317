"""Noise for the labels of a training split: mislabelling, random flipping, single positive; evaluation stays clean.

Every draw is a hash of (seed, kind, position in the sequence of noises, stable id of the row, class): a row gets the
same noise whatever the order, batch, process or subset in which it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hf_balancemix.checks import check_dataset
from hf_balancemix.data import columns
from hf_balancemix.messages import nearest

NOISE_KINDS = ("none", "mislabel", "flip", "single_positive")
NOISE_COLUMNS = ("labels", "clean_labels", "noise_mask")
Array = columns.Array
_MARK = "Injected label noise: "
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class NoiseSpec:
    """One kind of noise and its settings.

    Attributes:
        kind: One of ``NOISE_KINDS``.
        rate: Share of changed positives ("mislabel") or entries ("flip"), in [0, 1]; None for the other kinds.
        seed: Any whole number.
        avoid_present: Mislabelled positives only move to classes that the image does not have.
        exact: Exactly ⌊rate·S⌋ of the S positives move, in place of each with probability ``rate``.
    """

    kind: str
    rate: float | None = None
    seed: int = 0
    avoid_present: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        if self.kind not in NOISE_KINDS:
            hint = nearest(self.kind, NOISE_KINDS)
            raise ValueError(f"Expected one of the noises {NOISE_KINDS}, found {self.kind!r}{hint}. Pass one of them.")
        number = isinstance(self.rate, int | float) and not isinstance(self.rate, bool)
        if self.kind in ("mislabel", "flip") and not (number and 0 <= (self.rate or 0) <= 1):
            raise ValueError(f"Expected a rate from 0 to 1 for {self.kind!r}, found {self.rate!r}. Pass 0.2 for 20 %.")
        if self.kind in ("none", "single_positive") and self.rate:
            why = "it keeps one positive per image" if self.kind == "single_positive" else "it changes nothing"
            raise ValueError(f"Expected no rate for {self.kind!r} ({why}), found {self.rate!r}. Leave the rate out.")
        if (self.avoid_present or self.exact) and self.kind != "mislabel":
            raise ValueError(f"Expected 'mislabel' with avoid_present or exact, found {self.kind!r}. Leave them out.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise TypeError(f"Expected a whole number as seed, found {self.seed!r}. Pass for instance seed=0.")


@dataclass(frozen=True)
class NoisyLabels:
    """Noisy labels, the entries changed, and (mislabelling only) the positives moved away, each of shape (N, K)."""

    labels: npt.NDArray[np.uint8]
    changed: npt.NDArray[np.bool_]
    moved: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class NoiseStep:
    """A noise ready for any batch: its place in the sequence, and what it needs to know of the whole split."""

    spec: NoiseSpec
    position: int = 0
    class_counts: tuple[float, ...] = ()
    cut: float = 0.0


def transition_matrix(class_counts: npt.ArrayLike, rate: float) -> npt.NDArray[np.float64]:
    """Probability (K, K) that a positive of class i ends as class j (Eq. 11): 1−τ on the diagonal, else τ·N_j/(S−N_i).

    The N of Eq. 11 is read as S, the number of positives: with the number of images rows would not sum to one. A class
    without a possible target (a single class, or the only one with positives) keeps its positives.

    Args:
        class_counts: (K,) clean positives per class, N_k.
        rate: τ in [0, 1].

    Raises:
        ValueError: The rate is out of range, or the counts are no K numbers from 0 on.
    """
    counts, tau = _check_counts(class_counts), float(NoiseSpec("mislabel", rate).rate or 0.0)
    others = counts.sum() - counts
    matrix = tau * np.tile(counts, (counts.size, 1)) / np.where(others > 0, others, 1.0)[:, None]
    np.fill_diagonal(matrix, np.where(others > 0, 1.0 - tau, 1.0))
    return matrix


def mislabel(
    labels: npt.ArrayLike,
    rate: float,
    seed: int,
    ids: Any = None,
    *,
    class_counts: npt.ArrayLike | None = None,
    avoid_present: bool = False,
    exact: bool = False,
) -> NoisyLabels:
    """Move each positive, with probability ``rate``, to another class drawn in proportion to class frequency (Eq. 11).

    All moved positives are removed first and their targets added last, so that the order of classes has no effect.
    Images without positives stay as they are; no image gains positives, and it loses some where moves meet.

    Args:
        labels: (N, K) of 0 and 1.
        rate: τ in [0, 1].
        seed: Any whole number.
        ids: (N,) stable whole numbers or texts; row numbers if None.
        class_counts: (K,) positives of the whole split; those of ``labels`` if None, so pass them with a batch.
        avoid_present: See ``NoiseSpec``.
        exact: See ``NoiseSpec``; the S positives are those of ``labels``.

    Raises:
        TypeError: Ids are neither whole numbers nor texts.
        ValueError: Labels are not 0 and 1, the rate is out of range, or a shape does not fit.
    """
    return _one(labels, ids, NoiseSpec("mislabel", rate, seed, avoid_present, exact), class_counts)


def flip(labels: npt.ArrayLike, rate: float, seed: int, ids: Any = None) -> NoisyLabels:
    """Invert each of the N×K entries with probability ``rate``; arguments and errors as in ``mislabel``."""
    return _one(labels, ids, NoiseSpec("flip", rate, seed))


def single_positive(labels: npt.ArrayLike, seed: int, ids: Any = None) -> NoisyLabels:
    """Keep one positive per image, chosen uniformly, and no other; arguments and errors as in ``mislabel``."""
    return _one(labels, ids, NoiseSpec("single_positive", None, seed))


def inject_noise(
    dataset: datasets.Dataset,
    specs: NoiseSpec | Sequence[NoiseSpec],
    *,
    label_column: columns.Columns = None,
    id_column: str | None = None,
    class_names: Sequence[str] | None = None,
    delimiter: str | None = None,
    batch_size: int = 1000,
    num_proc: int | None = None,
) -> datasets.Dataset:
    """Add noise to the labels of a training split, and keep the truth aside.

    The label column is replaced by ``labels`` (noisy) and ``clean_labels``, both lists of ``ClassLabel``, so that
    class names travel along, and by ``noise_mask``, K values of 0 and 1 that mark the changed entries. Only these are
    computed and cached; other columns are kept. Noises apply in order, each to the result of the one before. They are
    keyed by id: ``id_column``, else ``id`` or ``image_id``, else row numbers, in a new column ``id``.

    Args:
        dataset: N rows.
        specs: One noise, or several in order; none keeps the labels and adds the columns.
        label_column: As in ``encode_labels``, and so are ``class_names`` and ``delimiter``.
        id_column: Column of whole numbers or texts, each once.
        class_names: K names.
        delimiter: Between the names in a text.
        batch_size: Rows per call; like ``num_proc``, without effect on the result.
        num_proc: Processes.

    Raises:
        TypeError: ``dataset`` is no ``datasets.Dataset``, or ids are neither whole numbers nor texts.
        ValueError: Labels are missing or unusable, ids repeat, or noise has been injected before.
    """
    check_dataset(dataset, "training")
    if id_column is None and not set(columns.ID_COLUMNS) & set(dataset.column_names):
        dataset = dataset.add_column("id", np.arange(len(dataset)))
    written = {"label_column": label_column, "class_names": class_names, "delimiter": delimiter}
    transform = NoiseTransform.from_dataset(dataset, specs, id_column, **written)
    source = dataset.select_columns([*transform.label_format.columns, transform.id_column]).with_format("arrow")
    ids = datasets.List(datasets.ClassLabel(names=list(transform.label_format.class_names)))
    mask = datasets.List(datasets.Value("uint8"), length=len(transform.label_format.class_names))
    noisy = source.map(
        _noise_table,
        batched=True,
        batch_size=batch_size,
        num_proc=num_proc,
        remove_columns=source.column_names,
        features=datasets.Features(dict(zip(NOISE_COLUMNS, (ids, ids, mask), strict=True))),
        fn_kwargs={"transform": transform},
    ).with_format(None)
    rest = dataset.remove_columns(list(transform.label_format.columns)).with_format(None)
    noisy = datasets.concatenate_datasets([rest, noisy], split=dataset.split, axis=1)
    settings = _MARK + json.dumps([asdict(step.spec) for step in transform.steps])
    noisy.info.description = f"{dataset.info.description}\n{settings}".strip()
    return noisy.with_format(dataset.format["type"], **dataset.format["format_kwargs"])


def noise_of(dataset: datasets.Dataset) -> list[dict[str, Any]]:
    """Settings of the noises that ``inject_noise`` applied, in order, from the data set's description; or nothing."""
    lines = (dataset.info.description or "").splitlines()
    return [spec for line in lines if line.startswith(_MARK) for spec in json.loads(line.removeprefix(_MARK))]


@dataclass(frozen=True)
class NoiseTransform:
    """Noise on the fly, for ``dataset.with_transform``: the columns of ``inject_noise``, with the same values."""

    label_format: columns.LabelFormat
    steps: tuple[NoiseStep, ...]
    id_column: str

    @classmethod
    def from_dataset(cls, dataset: Any, specs: Any, id_column: str | None = None, **written: Any) -> NoiseTransform:
        """Read labels and ids once; arguments and errors as in ``inject_noise``, but an id column must exist."""
        label_format = columns.find_label_format(dataset, **written)
        clash = [c for c in NOISE_COLUMNS if c in dataset.column_names and c not in label_format.columns]
        if clash:
            raise ValueError(f"Expected clean labels, found {clash} beside them. Pass several noises at once.")
        present = dataset.column_names
        id_column = id_column or next((name for name in columns.ID_COLUMNS if name in present), "id")
        if id_column not in present:
            found = f'{present}. Pass id_column, or dataset.add_column("id", list(range(len(dataset))))'
            raise ValueError(f"Expected an id column {id_column!r}{nearest(id_column, present)}, found {found}.")
        table = columns.arrow_columns(dataset, (*label_format.columns, id_column))
        keys = _id_keys(table[id_column], len(dataset))
        values, times = np.unique(keys, return_counts=True)
        if times.max() > 1:
            found = f"one id in rows {np.flatnonzero(keys == values[times.argmax()])[:2].tolist()}"
            raise ValueError(f"Expected different ids in {id_column!r}, found {found}. Pass another id_column.")
        labels, steps = columns.read_labels(table, label_format), []
        for position, spec in enumerate([specs] if isinstance(specs, NoiseSpec) else specs):
            steps.append(_plan(labels, keys, NoiseStep(spec, position), labels.sum(axis=0)))
            labels = _apply(labels, keys, steps[-1]).labels
        return cls(label_format, tuple(steps), id_column)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Replace the labels of a batch by noisy ones; its other columns are passed on."""
        sources = self.label_format.columns
        noisy = _noise_table(pa.table({name: pa.array(batch[name]) for name in (*sources, self.id_column)}), self)
        return {name: batch[name] for name in batch if name not in sources} | dict(noisy.to_pydict())


def _noise_table(table: pa.Table, transform: NoiseTransform) -> pa.Table:
    keys = _id_keys(table[transform.id_column], table.num_rows)
    noisy = clean = columns.read_labels(table, transform.label_format)
    for step in transform.steps:
        noisy = _apply(noisy, keys, step).labels
    mask = pa.FixedSizeListArray.from_arrays(pa.array((noisy ^ clean).ravel()), clean.shape[1])
    return pa.table(dict(zip(NOISE_COLUMNS, (_id_lists(noisy), _id_lists(clean), mask), strict=True)))


def _id_lists(labels: Array) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(labels.sum(axis=1, dtype=np.int64))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.nonzero(labels)[1]))


def _one(labels: Any, ids: Any, spec: NoiseSpec, class_counts: Any = None) -> NoisyLabels:
    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise ValueError(f"Expected labels of shape (N, K), found shape {labels.shape}. Use encode_labels.")
    bad = np.argwhere((labels != 0) & (labels != 1))
    if bad.size:
        found = f"{labels[tuple(bad[0])]} in row {bad[0, 0]}, class {bad[0, 1]}"
        raise ValueError(f"Expected labels of 0 and 1, found {found}. Use encode_labels, or round soft labels.")
    labels, keys = labels.astype(np.uint8), _id_keys(ids, len(labels))
    counts = _check_counts(labels.sum(axis=0) if class_counts is None else class_counts, labels.shape[1])
    return _apply(labels, keys, _plan(labels, keys, NoiseStep(spec), counts))


def _plan(labels: Array, keys: Array, step: NoiseStep, counts: Array) -> NoiseStep:
    cut = float(step.spec.rate or 0.0)
    if step.spec.exact:  # the cut that exactly so many draws fall below, among the positives that can move
        rows, classes = np.nonzero(labels)
        free = np.where(labels, 0, counts > 0).sum(axis=1)[rows] > 0
        if not step.spec.avoid_present:
            free = counts.sum() > counts[classes]
        draws = np.sort(_uniform(step, "move", keys[rows], classes)[free])
        wanted = int(cut * rows.size + 1e-9)
        cut = float(draws[wanted]) if wanted < draws.size else 1.0
    return replace(step, class_counts=tuple(counts.tolist()), cut=cut)


def _apply(labels: Array, keys: Array, step: NoiseStep) -> NoisyLabels:
    classes, noisy, moved = np.arange(labels.shape[1]), labels, None
    if step.spec.kind == "mislabel":
        noisy, moved = _move(labels, keys, step)
    elif step.spec.kind == "flip":
        noisy = labels ^ (_uniform(step, "flip", keys[:, None], classes) < step.cut)
    elif step.spec.kind == "single_positive":
        draws = np.where(labels == 1, _uniform(step, "keep", keys[:, None], classes), -1.0)
        noisy = labels * (classes == draws.argmax(axis=1)[:, None])
    noisy = noisy.astype(np.uint8)
    return NoisyLabels(noisy, noisy != labels, moved)


def _move(labels: Array, keys: Array, step: NoiseStep) -> tuple[Array, Array]:
    rows, classes = np.nonzero(labels)
    picked = _uniform(step, "move", keys[rows], classes) < step.cut
    rows, classes = rows[picked], classes[picked]
    blocked = labels[rows] == 1 if step.spec.avoid_present else classes[:, None] == np.arange(labels.shape[1])
    weights = np.where(blocked, 0.0, step.class_counts)
    possible = weights.sum(axis=1) > 0
    rows, classes, edges = rows[possible], classes[possible], np.cumsum(weights[possible], axis=1)
    draws = _uniform(step, "target", keys[rows], classes)[:, None] * edges[:, -1:]
    noisy, moved = labels.copy(), np.zeros(labels.shape, dtype=np.bool_)
    moved[rows, classes] = True
    noisy[moved] = 0
    noisy[rows, (edges <= draws).sum(axis=1)] = 1
    return noisy, moved


def _uniform(step: NoiseStep, purpose: str, keys: Array, classes: Array) -> Array:
    # SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): one stream per row, its k-th number for class k.
    name = f"{int(step.spec.seed)}/{step.spec.kind}/{step.position}/{purpose}"
    start = np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big"))
    stream = _scramble(_scramble(keys + _GOLDEN) ^ start)
    draws = _scramble(stream + (classes.astype(np.uint64) + np.uint64(1)) * _GOLDEN) >> np.uint64(11)
    return np.asarray(draws * 2.0**-53)


def _scramble(x: Array) -> Array:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def _id_keys(ids: Any, n: int) -> npt.NDArray[np.uint64]:
    values = np.arange(n) if ids is None else np.asarray(ids)
    if values.shape != (n,):
        raise ValueError(f"Expected {n} ids, one per row, found shape {values.shape}. Pass one id per row.")
    if values.dtype.kind in "iu":
        return values.astype(np.uint64)
    texts = values.tolist()
    bad = [row for row, text in enumerate(texts) if not isinstance(text, str)]
    if bad:
        raise TypeError(
            f"Expected whole numbers or texts as ids, found {texts[bad[0]]!r} in row {bad[0]}. Correct it."
        )
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def _check_counts(class_counts: npt.ArrayLike, k: int | None = None) -> npt.NDArray[np.float64]:
    counts = np.asarray(class_counts, dtype=np.float64)
    if counts.ndim != 1 or k not in (None, counts.size) or not (np.isfinite(counts) & (counts >= 0)).all():
        raise ValueError(f"Expected {k or 'K'} class counts from 0 on, found {counts}. Pass the positives per class.")
    return counts
