"""Noise for the labels of a training split: mislabelling, random flipping, single positive; evaluation stays clean.

Every draw is a hash of (seed, kind, position in the sequence of noises, stable id of the row, class). So the same row
gets the same noise whatever the order, batch, number of processes or subset in which it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hf_balancemix.checks import nearest
from hf_balancemix.data.columns import ID_COLUMNS, LabelFormat, arrow_columns, find_label_format, read_labels

NOISE_KINDS = ("none", "mislabel", "flip", "single_positive")
NOISE_COLUMNS = ("labels", "clean_labels", "noise_mask")
_MARK = "Injected label noise: "
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Array = npt.NDArray[Any]


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
            hint = nearest(str(self.kind), NOISE_KINDS)
            raise ValueError(f"Expected a noise kind of {NOISE_KINDS}, found {self.kind!r}{hint}. Pass one of them.")
        if self.kind in ("mislabel", "flip"):
            number = isinstance(self.rate, int | float | np.number) and not isinstance(self.rate, bool)
            if self.rate is None or not number or not 0 <= self.rate <= 1:
                raise ValueError(f"Expected a rate from 0 to 1 for {self.kind!r}, found {self.rate!r}. Pass 0.2 for 20 %.")
        elif self.rate:
            reason = "it keeps one positive per image" if self.kind == "single_positive" else "it changes nothing"
            raise ValueError(f"Expected no rate for {self.kind!r}, found {self.rate!r}: {reason}. Leave the rate out.")
        if (self.avoid_present or self.exact) and self.kind != "mislabel":
            raise ValueError(
                f"Expected avoid_present and exact with 'mislabel' only, found {self.kind!r}. Leave them out."
            )
        if not isinstance(self.seed, int | np.integer) or isinstance(self.seed, bool):
            raise TypeError(f"Expected a whole number as seed, found {self.seed!r}. Pass for instance seed=0.")


@dataclass(frozen=True)
class NoisyLabels:
    """Labels after noise, each (N, K).

    Attributes:
        labels: uint8, the noisy labels.
        changed: bool, the entries that differ from the labels before.
        moved: bool, the positives that mislabelling moved away (a move may land on a class that was present, and then
            changes one entry only); None for the other kinds.
    """

    labels: npt.NDArray[np.uint8]
    changed: npt.NDArray[np.bool_]
    moved: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class NoiseStep:
    """A noise made ready for any batch: its place in the sequence and what it needs to know of the whole split."""

    spec: NoiseSpec
    position: int = 0
    class_counts: tuple[float, ...] = ()
    cut: float = 0.0


def transition_matrix(class_counts: npt.ArrayLike, rate: float) -> npt.NDArray[np.float64]:
    """Probability that a positive of class i ends as class j (Eq. 11): 1−τ on the diagonal, else τ·N_j/(S−N_i).

    N of Eq. 11 is read as S, the number of positives: with the number of images rows would not sum to one. A class
    without a possible target (a single class, or the only one with positives) keeps its positives.

    Args:
        class_counts: (K,) clean positives per class, N.
        rate: τ in [0, 1].

    Returns:
        (K, K), rows sum to one.

    Raises:
        ValueError: The rate is out of range or the counts are no K numbers from 0 on.
    """
    counts = _check_counts(class_counts, None)
    tau = NoiseSpec("mislabel", rate).rate
    others = counts.sum() - counts
    targets = np.tile(counts, (counts.size, 1))
    np.fill_diagonal(targets, 0.0)
    matrix: npt.NDArray[np.float64] = tau * targets / np.where(others > 0, others, 1.0)[:, None]
    np.fill_diagonal(matrix, np.where(others > 0, 1.0 - tau, 1.0))  # type: ignore[operator]
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
        class_counts: (K,) positives per class in the whole split; counted in ``labels`` if None, so pass it for batches.
        avoid_present: See ``NoiseSpec``.
        exact: See ``NoiseSpec``; the S positives are those of ``labels``.

    Returns:
        Noisy labels, changed entries and moved positives.

    Raises:
        TypeError: Ids are neither whole numbers nor texts.
        ValueError: Labels are not 0 and 1, the rate is out of range, or a shape does not fit.
    """
    return _one(labels, ids, NoiseSpec("mislabel", rate, seed, avoid_present, exact), class_counts)


def flip(labels: npt.ArrayLike, rate: float, seed: int, ids: Any = None) -> NoisyLabels:
    """Invert each of the N×K entries with probability ``rate``; arguments and errors as in ``mislabel``."""
    return _one(labels, ids, NoiseSpec("flip", rate, seed))


def single_positive(labels: npt.ArrayLike, seed: int, ids: Any = None) -> NoisyLabels:
    """Keep one positive per image, chosen uniformly, and none elsewhere; arguments and errors as in ``mislabel``."""
    return _one(labels, ids, NoiseSpec("single_positive", None, seed))


def inject_noise(
    dataset: datasets.Dataset,
    specs: NoiseSpec | Sequence[NoiseSpec],
    *,
    label_column: str | Sequence[str] | None = None,
    id_column: str | None = None,
    class_names: Sequence[str] | None = None,
    delimiter: str | None = None,
    batch_size: int = 1000,
    num_proc: int | None = None,
) -> datasets.Dataset:
    """Add noise to the labels of a training split, and keep the truth aside.

    The label column is replaced by ``labels`` (noisy) and ``clean_labels``, both lists of ``ClassLabel`` with the class
    names, and ``noise_mask``, K values of 0 and 1 that mark the changed entries. All other columns are kept. Several
    noises are applied one after the other. Noise is keyed by id, so each row needs its own: ``id_column``, else a
    column ``id`` or ``image_id``, else row numbers in a new column ``id``. ``noise_of`` tells the settings later on.

    Args:
        dataset: N rows.
        specs: One noise, or several in order.
        label_column: As in ``encode_labels``.
        id_column: Column of whole numbers or texts, each once.
        class_names: As in ``encode_labels``.
        delimiter: As in ``encode_labels``.
        batch_size: Rows per call; without effect on the result.
        num_proc: Processes; without effect on the result.

    Returns:
        The data set with noisy labels; only the new columns are written (and cached), images are not copied.

    Raises:
        TypeError: ``dataset`` is no ``datasets.Dataset``, or ids are neither whole numbers nor texts.
        ValueError: No labels or unusable ones, no distinct ids, or noise has been injected before.
    """
    transform = NoiseTransform._plan(dataset, specs, label_column, id_column, class_names, delimiter)
    sources = [*transform.label_format.columns, *([transform.id_column] if transform.id_column else [])]
    small = dataset.select_columns(list(dict.fromkeys(sources))).with_format("arrow")
    noisy = small.map(
        _noise_table,
        with_indices=True,
        batched=True,
        batch_size=batch_size,
        num_proc=num_proc,
        remove_columns=small.column_names,
        features=_features(transform),
        fn_kwargs={"transform": transform},
        desc="Injecting label noise",
    ).with_format(None)
    rest = dataset.remove_columns(list(transform.label_format.columns)).with_format(None)
    if rest.column_names:
        noisy = datasets.concatenate_datasets([rest, noisy], split=dataset.split, axis=1)
    settings = _MARK + json.dumps([dataclasses.asdict(step.spec) for step in transform.steps])
    noisy.info.description = "\n".join(filter(None, [dataset.info.description, settings]))
    kept = dataset.format
    return noisy.with_format(kept["type"], **kept["format_kwargs"])


def noise_of(dataset: datasets.Dataset) -> list[dict[str, Any]]:
    """Settings of the noises that ``inject_noise`` applied, in order; an empty list for a clean data set.

    They live in the description of the data set and survive map, select, splits and ``save_to_disk``.
    """
    lines = (dataset.info.description or "").splitlines()
    return [spec for line in lines if line.startswith(_MARK) for spec in json.loads(line.removeprefix(_MARK))]


@dataclass(frozen=True)
class NoiseTransform:
    """Noise on the fly, for ``dataset.with_transform``: the columns of ``inject_noise``, with equal values.

    Make it with ``from_dataset``. It can be given to worker processes.

    Attributes:
        label_format: How the labels of the data set are written.
        steps: The noises, with the statistics of the whole split.
        id_column: The column of stable ids.
    """

    label_format: LabelFormat
    steps: tuple[NoiseStep, ...]
    id_column: str | None

    @classmethod
    def from_dataset(
        cls,
        dataset: datasets.Dataset,
        specs: NoiseSpec | Sequence[NoiseSpec],
        *,
        label_column: str | Sequence[str] | None = None,
        id_column: str | None = None,
        class_names: Sequence[str] | None = None,
        delimiter: str | None = None,
    ) -> NoiseTransform:
        """Read the labels once for the statistics of the whole split; arguments and errors as in ``inject_noise``.

        Raises:
            ValueError: Besides, there is no id column; row numbers would change with every selection.
        """
        transform = cls._plan(dataset, specs, label_column, id_column, class_names, delimiter)
        if transform.id_column is None:
            raise ValueError(
                f"Expected an id column ({', '.join(ID_COLUMNS)}, or id_column=) for noise on the fly, found the columns "
                f'{dataset.column_names}. Add one: dataset = dataset.add_column("id", list(range(len(dataset)))).'
            )
        return transform

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Replace the labels of a batch by noisy ones; its other columns are passed on."""
        sources = (*self.label_format.columns, self.id_column)
        noisy = _noise_table(pa.table({name: pa.array(batch[name]) for name in sources}), None, self)
        kept = {name: column for name, column in batch.items() if name not in self.label_format.columns}
        return kept | {name: noisy[name].to_pylist() for name in NOISE_COLUMNS}

    @classmethod
    def _plan(
        cls, dataset: Any, specs: Any, label_column: Any, id_column: str | None, class_names: Any, delimiter: Any
    ) -> NoiseTransform:
        label_format = find_label_format(dataset, label_column, class_names, delimiter)
        taken = [c for c in NOISE_COLUMNS if c in dataset.column_names and c not in label_format.columns]
        if taken or noise_of(dataset):
            raise ValueError(
                f"Expected a clean data set without {', '.join(NOISE_COLUMNS[1:])} (and with no other `labels` than "
                f"{label_format.columns}), found {taken or noise_of(dataset)}. Start from the clean data set and give "
                "several noises at once, as in inject_noise(dataset, [first, second])."
            )
        id_column = _find_id_column(dataset, id_column)
        labels = read_labels(arrow_columns(dataset, label_format.columns), label_format)
        ids = None if id_column is None else _read_ids(arrow_columns(dataset, (id_column,)), id_column)
        keys = _id_keys(ids, len(dataset))
        _, first, counts = np.unique(keys, return_index=True, return_counts=True)
        if counts.max() > 1:
            row = int(first[np.argmax(counts > 1)])
            raise ValueError(
                f"Expected each id of column {id_column!r} once, found {dataset.select([row])[id_column][0]!r} (row "
                f"{row}) {counts.max()} times or more. Name another column in id_column, or drop the repeated rows."
            )
        return cls(label_format, _plan_steps(labels, keys, specs), id_column)


def _noise_table(table: pa.Table, indices: list[int] | None, transform: NoiseTransform) -> pa.Table:
    ids = indices if transform.id_column is None else _read_ids(table, transform.id_column)
    clean = read_labels(table, transform.label_format)
    noisy, keys = clean, _id_keys(ids, table.num_rows)
    for step in transform.steps:
        noisy = _apply(noisy, keys, step).labels
    mask = pa.array((noisy != clean).astype(np.uint8).ravel())
    columns = {"labels": _id_lists(noisy), "clean_labels": _id_lists(clean)}
    columns["noise_mask"] = pa.FixedSizeListArray.from_arrays(mask, clean.shape[1])
    return pa.table(columns if transform.id_column else columns | {"id": pa.array(ids, pa.int64())})


def _features(transform: NoiseTransform) -> datasets.Features:
    names = transform.label_format.class_names
    ids = datasets.List(datasets.ClassLabel(names=list(names)))
    mask = datasets.List(datasets.Value("uint8"), length=len(names))
    features = {"labels": ids, "clean_labels": ids, "noise_mask": mask}
    return datasets.Features(features if transform.id_column else features | {"id": datasets.Value("int64")})


def _id_lists(labels: Array) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(labels.sum(axis=1, dtype=np.int32))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, np.nonzero(labels)[1])


def _one(labels: Any, ids: Any, spec: NoiseSpec, class_counts: Any = None) -> NoisyLabels:
    labels = _check_labels(labels)
    keys = _id_keys(ids, len(labels))
    counts = _check_counts(labels.sum(axis=0) if class_counts is None else class_counts, labels.shape[1])
    return _apply(labels, keys, _plan_step(labels, keys, NoiseStep(spec), counts))


def _plan_steps(labels: Array, keys: Array, specs: NoiseSpec | Sequence[NoiseSpec]) -> tuple[NoiseStep, ...]:
    steps: list[NoiseStep] = []
    for position, spec in enumerate([specs] if isinstance(specs, NoiseSpec) else specs):
        steps.append(_plan_step(labels, keys, NoiseStep(spec, position), labels.sum(axis=0)))
        labels = _apply(labels, keys, steps[-1]).labels
    return tuple(steps)


def _plan_step(labels: Array, keys: Array, step: NoiseStep, counts: Array) -> NoiseStep:
    cut = float(step.spec.rate or 0.0)
    if step.spec.exact:
        rows, classes = np.nonzero(labels)
        possible = (counts > 0) & (labels == 0) if step.spec.avoid_present else np.tile(counts > 0, (len(labels), 1))
        possible = possible.sum(axis=1)[rows] > (0 if step.spec.avoid_present else counts[classes] > 0)
        draws = np.sort(_uniform(step, "move", keys[rows], classes)[possible])
        wanted = math.floor(cut * rows.size + 1e-9)
        cut = float(draws[wanted]) if wanted < draws.size else 1.0
    return dataclasses.replace(step, class_counts=tuple(counts.tolist()), cut=cut)


def _apply(labels: Array, keys: Array, step: NoiseStep) -> NoisyLabels:
    if step.spec.kind == "mislabel":
        return _move(labels, keys, step)
    noisy = labels
    if step.spec.kind == "flip":
        noisy = labels ^ (_uniform(step, "flip", keys[:, None], np.arange(labels.shape[1])) < step.cut)
    elif step.spec.kind == "single_positive":
        draws = np.where(labels == 1, _uniform(step, "keep", keys[:, None], np.arange(labels.shape[1])), -1.0)
        noisy = labels * (np.arange(labels.shape[1]) == draws.argmax(axis=1)[:, None])
    noisy = noisy.astype(np.uint8)
    return NoisyLabels(noisy, noisy != labels)


def _move(labels: Array, keys: Array, step: NoiseStep) -> NoisyLabels:
    rows, classes = np.nonzero(labels)
    picked = _uniform(step, "move", keys[rows], classes) < step.cut
    rows, classes = rows[picked], classes[picked]
    weights = np.tile(np.asarray(step.class_counts, dtype=np.float64), (rows.size, 1))
    weights[np.arange(rows.size), classes] = 0.0
    if step.spec.avoid_present:
        weights[labels[rows] == 1] = 0.0
    possible = weights.sum(axis=1) > 0
    rows, classes, edges = rows[possible], classes[possible], np.cumsum(weights[possible], axis=1)
    draws = _uniform(step, "target", keys[rows], classes)[:, None] * edges[:, -1:]
    noisy, moved = labels.copy(), np.zeros(labels.shape, dtype=np.bool_)
    moved[rows, classes] = True
    noisy[moved] = 0
    noisy[rows, (edges <= draws).sum(axis=1)] = 1
    return NoisyLabels(noisy, noisy != labels, moved)


def _uniform(step: NoiseStep, purpose: str, keys: Array, classes: Array) -> Array:
    """Draws in [0, 1): SplitMix64 (Steele, Lea and Flood 2014), one stream per row, one element per class."""
    name = f"{int(step.spec.seed)}/{step.spec.kind}/{step.position}/{purpose}"
    start = np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big"))
    values = _scramble(_scramble(keys + _GOLDEN) ^ start) + (classes.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    return (_scramble(values) >> np.uint64(11)) * 2.0**-53


def _scramble(x: Array) -> Array:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _find_id_column(dataset: datasets.Dataset, id_column: str | None) -> str | None:
    if id_column is not None and id_column not in dataset.column_names:
        hint = nearest(id_column, dataset.column_names)
        found = f"found the columns {dataset.column_names}"
        raise ValueError(f"Expected an id column {id_column!r}{hint}, {found}. Leave id_column out to use row numbers.")
    return id_column or next((name for name in ID_COLUMNS if name in dataset.column_names), None)


def _id_keys(ids: Any, n: int) -> npt.NDArray[np.uint64]:
    values = np.arange(n) if ids is None else np.asarray(ids)
    if values.shape != (n,):
        raise ValueError(f"Expected {n} ids, one per row, found shape {values.shape}. Pass one id per row.")
    if values.dtype.kind in "iu":
        return values.astype(np.uint64)
    bad = next(((row, value) for row, value in enumerate(values.tolist()) if not isinstance(value, str)), None)
    if bad is not None:
        found = f"found {bad[1]!r} in row {bad[0]}"
        raise TypeError(f"Expected ids that are whole numbers or texts, {found}. Pass another id_column, or none.")
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in values.tolist())
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def _check_labels(labels: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    values = np.asarray(labels)
    if values.ndim != 2:
        raise ValueError(f"Expected labels of shape (N, K), found shape {values.shape}. Use encode_labels.")
    bad = np.argwhere((values != 0) & (values != 1))
    if bad.size:
        row, column = bad[0]
        found = f"found {values[row, column]} in row {row}, class {column}"
        raise ValueError(f"Expected labels of 0 and 1, {found}. Use encode_labels, or round soft labels.")
    return values.astype(np.uint8)


def _check_counts(class_counts: npt.ArrayLike, k: int | None) -> npt.NDArray[np.float64]:
    counts = np.asarray(class_counts, dtype=np.float64)
    if counts.ndim != 1 or k not in (None, counts.size) or not (np.isfinite(counts) & (counts >= 0)).all():
        expected = f"{'K' if k is None else k} class counts from 0 on"
        raise ValueError(f"Expected {expected}, found {counts.tolist()}. Pass the positives per class.")
    return counts
