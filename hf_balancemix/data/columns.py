"""Label columns of any shape → one multi-hot table, and the image column beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from hf_balancemix.checks import check_dataset
from hf_balancemix.messages import mistake, nearest, some

LABEL_COLUMNS = ("labels", "label", "label_names", "attributes", "tags", "classes", "categories", "targets", "target")
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "pixel_values")
ID_COLUMNS = ("id", "image_id")
DELIMITERS = (",", "|", ";")
_NUMERIC = ("bool", "int", "uint", "float")
_MAX_CLASSES, _ROWS_TOGETHER = 100_000, 2**16
_LISTS = (datasets.List, datasets.LargeList)

Array = npt.NDArray[Any]
Names = tuple[str, ...]
Columns = str | Sequence[str] | None


@dataclass(frozen=True)
class LabelTable:
    """The labels of one split, row n for row n: (N, K) uint8, K names, the source (a tuple: one column per class)."""

    labels: npt.NDArray[np.uint8]
    class_names: Names
    column: str | Names


@dataclass(frozen=True)
class LabelFormat:
    """How labels are written: decided once on a whole split, then valid for any batch of its rows.

    ``kind`` is "ids", "names" (in one text if there is a ``delimiter``), "multi_hot", or "columns" (one per class).
    """

    kind: str
    columns: Names
    class_names: Names
    delimiter: str | None = None


def encode_labels(
    dataset: datasets.Dataset,
    label_column: Columns = None,
    class_names: Sequence[str] | None = None,
    delimiter: str | None = None,
) -> LabelTable:
    """Read the labels of a data set, however they are written, as one multi-hot table (N, K) uint8.

    Without ``label_column`` the first of ``LABEL_COLUMNS`` that holds lists is taken, else the first that holds
    anything; without any of them the columns called like ``class_names``, or, if those are None, all columns (two or
    more, ids excepted) with nothing but 0 and 1. ``clean_labels`` and ``noise_mask`` are only taken when named.

    * list of ``ClassLabel``: the names are those of the feature; ``class_names``, if given, must be equal to them.
    * list of names, or text ("cat, dog", "cat|dog", "cat;dog"): ``class_names``, or all names found, sorted.
    * list of ids: ``class_names``, or "0", "1", ... up to the largest id.
    * multi-hot list of 0 and 1 (also booleans and floats): ``class_names``, or "0", "1", ...
    * one 0/1 column per class: the names of the columns; ``class_names`` gives their order.

    Multi-hot or ids? Lists with a fixed length in their feature, of booleans or of floats are multi-hot. Lists of
    whole numbers are multi-hot if all have one length (two or more; K if ``class_names`` are given) and hold only 0
    and 1; otherwise they are ids. What could be either is refused. None, an empty list and an empty text mean that
    no class is present; repeated ids count once.

    Args:
        dataset: N rows; its transforms are not run, selections and shuffles are respected.
        label_column: Name of the label column, or a list of names: one 0/1 column per class.
        class_names: K names. For an evaluation split pass those of the training split.
        delimiter: What separates the names, if the column is text; found if None.

    Raises:
        TypeError: ``dataset`` is no ``datasets.Dataset``, or ``class_names`` no list of texts.
        ValueError: No label column, an unreadable one, or a value that is no label; the first bad row is named.
    """
    label_format = find_label_format(dataset, label_column, class_names, delimiter)
    labels = read_labels(arrow_columns(dataset, label_format.columns), label_format)
    column = label_format.columns if label_format.kind == "columns" else label_format.columns[0]
    return LabelTable(labels, label_format.class_names, column)


def has_label_column(dataset: datasets.Dataset, label_column: Columns = None) -> bool:
    """Say whether ``encode_labels`` would find a label column; a set for prediction need not have one."""
    try:
        return bool(_find_columns(dataset, label_column, None))
    except ValueError:
        return False


def find_image_column(dataset: datasets.Dataset) -> str:
    """Name of the column with the images: of feature ``Image``, or arrays under a name of ``IMAGE_COLUMNS``.

    Raises:
        TypeError: ``dataset`` is no ``datasets.Dataset``.
        ValueError: No such column, or several, none of them called as in ``IMAGE_COLUMNS``.
    """
    check_dataset(dataset, "image")
    images = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    scalar = (datasets.Value, datasets.ClassLabel, dict)
    arrays = [name for name, feature in dataset.features.items() if not isinstance(feature, scalar)]
    known = [name for name in IMAGE_COLUMNS if name in (images or arrays)]
    if known or len(images) == 1:
        return (known or images)[0]
    found = f"{len(images)} of feature Image among {some(dataset.column_names)}"
    remedy = (
        'Use dataset.cast_column("image", datasets.Image()) on a column of paths, or rename the right one to image'
    )
    raise mistake("one column of feature Image", found, remedy)


def find_label_format(
    dataset: Any, label_column: Columns = None, class_names: Sequence[str] | None = None, delimiter: str | None = None
) -> LabelFormat:
    """Find the label column and how it is written; arguments, rules and errors as in ``encode_labels``."""
    check_dataset(dataset, "labelled")
    names = None if class_names is None else _check_names(class_names)
    column = _find_columns(dataset, label_column, names)
    if isinstance(column, tuple):
        _check_equal(sorted(names or column), sorted(column), "one column per class name")
        for name in column:
            if not getattr(dataset.features[name], "dtype", "").startswith(_NUMERIC):
                raise mistake(f"0/1 in column {name!r}", str(dataset.features[name]), "Convert the column with map()")
        return LabelFormat("columns", names or column, names or column)
    feature = dataset.features[column]
    inner = feature.feature if isinstance(feature, _LISTS) else feature
    if inner is not feature and isinstance(inner, datasets.ClassLabel):
        own = _check_names(inner.names)
        _check_equal(names or own, own, f"the given class_names in column {column!r}")
        return LabelFormat("ids", (column,), own)
    values = arrow_columns(dataset, (column,))[column]
    if getattr(inner, "dtype", None) in ("string", "large_string"):
        delimiter = (delimiter or _find_delimiter(column, values)) if inner is feature else None
        found = _texts(column, values, delimiter)[1].unique().to_pylist()
        return LabelFormat("names", (column,), names or _check_names(sorted(found)), delimiter)
    if inner is feature:
        raise _single_label(column, feature)
    if not getattr(inner, "dtype", "").startswith((*_NUMERIC, "null")):
        raise mistake(f"lists of names, ids or 0/1 in column {column!r}", str(feature), "Convert it with map()")
    return _numeric_lists(column, inner.dtype, getattr(feature, "length", -1), values, names)


def read_labels(table: pa.Table, label_format: LabelFormat) -> npt.NDArray[np.uint8]:
    """Encode B rows, a whole split or one batch, as (B, K) uint8; ``label_format`` is from ``find_label_format``.

    Raises:
        ValueError: A value is no label of this format; rows are counted from the start of ``table``.
    """
    labels = np.zeros((table.num_rows, len(label_format.class_names)), dtype=np.uint8)
    labels[read_positives(table, label_format)] = 1
    return labels


def read_positives(table: pa.Table, label_format: LabelFormat, first: int = 0) -> tuple[Array, Array]:
    """Find rows, from ``first`` on, and classes of positives, in any order, repeated or not; errors as above."""
    column, k, rows = label_format.columns[0], len(label_format.class_names), np.arange(first, first + table.num_rows)
    if label_format.kind == "columns":
        found = [
            np.flatnonzero(_zeros_and_ones(name, rows, _numbers(name, rows, table[name])))
            for name in label_format.columns
        ]
        return first + np.concatenate(found), np.repeat(np.arange(k), [len(part) for part in found])
    if label_format.kind == "names":
        owners, texts = _texts(column, table[column], label_format.delimiter, first)
        places = pc.index_in(texts, value_set=pa.array(label_format.class_names, pa.string()))
        if places.null_count:
            wrong_at = places.is_null().index(True).as_py()
            name = texts[wrong_at].as_py()
            wrong = f"{name!r} in row {owners[wrong_at]}{nearest(name, label_format.class_names)}"
            raise mistake(f"one of {k} class names in column {column!r}", wrong, "Correct it or extend class_names")
        return owners, np.asarray(places).copy()  # Arrow's own memory is not writable
    owners, values, lengths = _cells(table[column], first)
    numbers = _numbers(column, owners, values)
    if label_format.kind == "ids":
        bad = (numbers < 0) | (numbers >= k)
        _refuse(column, bad, owners, numbers, f"ids from 0 to {k - 1}, for {k} classes", "Correct or drop the row")
        return owners, numbers.astype(np.int64)
    bad = (lengths != k) & (lengths > 0)
    _refuse(column, bad, rows, lengths, f"multi-hot rows of length {k}", "Give every row one value per class")
    ones = np.flatnonzero(_zeros_and_ones(column, owners, numbers))
    return owners[ones], ones % k


def arrow_columns(dataset: datasets.Dataset, columns: Sequence[str]) -> pa.Table:
    """Read some columns as they are stored: no transform is run, no image decoded."""
    stored = dataset.select_columns([*columns]).with_format("arrow")
    if stored._indices is None or not len(stored):
        return stored[:]
    # Shuffled rows come in a piece of hundreds of bytes each.
    return pa.concat_tables([part.combine_chunks() for part in stored.iter(batch_size=_ROWS_TOGETHER)])


def _find_columns(dataset: datasets.Dataset, label_column: Columns, names: Names | None) -> str | Names:
    present = dataset.column_names
    if label_column is not None:
        wanted = (label_column,) if isinstance(label_column, str) else tuple(label_column)
        missing = [name for name in wanted if name not in present]
        if missing or not wanted or len(set(wanted)) < len(wanted):
            hint = nearest(missing[0], present) if missing else ""
            raise mistake(f"label column {some(wanted)}{hint}", f"the columns {some(present)}", "Name each once")
        return label_column if isinstance(label_column, str) else wanted
    known = [name for name in LABEL_COLUMNS if name in present]
    lists = [name for name in known if isinstance(dataset.features[name], _LISTS)]
    if known:
        return (lists or known)[0]
    if names is not None and set(names) <= set(present):
        return names
    binary = _binary_columns(dataset)
    if names is None and len(binary) >= 2:
        return binary
    lacking = [name for name in names or () if name not in present]
    hint = f", and {lacking[0]!r} of class_names{nearest(lacking[0], present)} is none of them" if lacking else ""
    expected = f"a label column ({some(LABEL_COLUMNS)}), or one 0/1 column per class"
    raise mistake(expected, f"the columns {some(present)}{hint}", "Name it, or a list of columns, in label_column")


def _binary_columns(dataset: datasets.Dataset) -> Names:
    values = {name: f for name, f in dataset.features.items() if isinstance(f, datasets.Value)}
    numeric = [name for name, f in values.items() if f.dtype.startswith(_NUMERIC) and name not in ID_COLUMNS]
    table = arrow_columns(dataset, numeric)
    # Gaps do not disqualify a column: reading it then names the row, where leaving the class out would be silent.
    found = {name: {v for v in pc.unique(table[name]).to_pylist() if v is not None and v == v} for name in numeric}
    return tuple(name for name in numeric if found[name] and found[name] <= {0, 1})


def _numeric_lists(column: str, dtype: str, width: int, values: Any, names: Names | None) -> LabelFormat:
    owners, flat, lengths = _cells(values)
    numbers = _numbers(column, owners, flat)
    kind, k = "multi_hot", len(names or ())
    if width < 0 and dtype.startswith(("bool", "float")):
        width = lengths[owners[0]] if numbers.size else k
    elif width < 0:
        kind = _ids_or_multi_hot(column, owners, numbers, lengths, k)
        width = lengths.max() if kind == "multi_hot" else numbers.max(initial=-1) + 1
        _refuse(column, numbers >= _MAX_CLASSES, owners, numbers, f"ids below {_MAX_CLASSES}", "Number them from 0")
    if kind == "multi_hot" and names is not None and width != k:
        expected = f"multi-hot rows of length {k}, one value per class name, in column {column!r}"
        raise mistake(expected, f"length {width}", f"Pass {width} class_names, in order")
    return LabelFormat(kind, (column,), names or _check_names([str(i) for i in range(width)]))


def _ids_or_multi_hot(column: str, owners: Array, numbers: Array, lengths: Array, k: int) -> str:
    if numbers.size == 0 or numbers.min() < 0 or numbers.max() > 1:
        return "ids"
    ones = np.bincount(owners, weights=numbers, minlength=lengths.size)
    repeats = bool(np.any(ones > 1) or np.any(lengths - ones > 1))  # multi-hot rows do, ids seldom
    widths = np.unique(lengths[lengths > 0])
    equal, width = widths.size == 1, widths[-1]
    if equal and width > 1 and (width == k or (k == 0 and repeats)):
        return "multi_hot"
    if not (repeats and (equal or k != 2)) and not (equal and (width, k) in ((2, 0), (1, 1))):
        return "ids"
    row = int(np.argmax(lengths == width))
    found = (
        f"only 0 and 1, in rows of length {some(widths.tolist())} (row {row}: {width}), and {k or 'no'} class_names"
    )
    remedy = "Pass class_names (for multi-hot rows one per value), or say what it is with cast_column: List(Value("
    remedy += f"'uint8'), length={width}) is multi-hot, List(ClassLabel(names=[...])) are ids"
    raise mistake(f"ids, or multi-hot rows of one length, in column {column!r}", found, remedy)


def _cells(column: Any, first: int = 0) -> tuple[Array, Any, Array]:
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    return np.repeat(np.arange(first, first + lengths.size), lengths), pc.list_flatten(column), lengths


def _texts(column: str, values: Any, delimiter: str | None, first: int = 0) -> tuple[Array, Any]:
    if delimiter is not None:
        values = pc.split_pattern(values.cast(pa.string()), delimiter)
    owners, texts, _ = _cells(values, first)
    texts = texts.cast(pa.string())
    _refuse(column, np.asarray(texts.is_null()), owners, None, "class names", "Fill or drop it")
    texts = texts if delimiter is None else pc.utf8_trim_whitespace(texts)
    named = pc.not_equal(texts, "")
    return owners[np.asarray(named)], texts.filter(named)


def _find_delimiter(column: str, values: Any) -> str:
    used = [d for d in DELIMITERS if pc.any(pc.match_substring(values, d)).as_py()]
    if not used:
        raise _single_label(column, "text without a delimiter; if it has one, pass it as delimiter (label_delimiter)")
    if pc.all(pc.match_substring_regex(values, r"^\s*\[.*\]\s*$")).as_py():
        raise mistake(
            f"names in column {column!r}", "lists written as text", "Parse them with map() and ast.literal_eval"
        )
    if len(used) > 1:
        raise mistake(
            f"one delimiter in column {column!r}", some(used), "Pass the right one as delimiter (label_delimiter)"
        )
    return used[0]


def _single_label(column: str, feature: Any) -> ValueError:
    cell = f"row[{column!r}]"
    if isinstance(feature, datasets.ClassLabel):
        cell = f"dataset.features[{column!r}].names[{cell}]"
    remedy = f'Turn it into a list: dataset = dataset.map(lambda row: {{"labels": [{cell}]}})'
    found = f"the single-label column {column!r} ({feature})"
    return mistake("a list of labels per row", found, f"{remedy}; or name the label column(s) in label_column")


def _numbers(column: str, rows: Array, values: Any) -> Array:
    if not pa.types.is_floating(values.type):
        values = values.cast(pa.int64())
    _refuse(column, np.asarray(pc.is_null(values, nan_is_null=True)), rows, None, "numbers", "Fill or drop it")
    return np.asarray(values)


def _zeros_and_ones(column: str, rows: Array, numbers: Array) -> Array:
    remedy = "Round soft labels to 0 or 1; if these are ids, use cast_column to List(Value('int64'))"
    _refuse(column, (numbers != 0) & (numbers != 1), rows, numbers, "0 or 1", remedy)
    return numbers.astype(np.uint8)


def _refuse(column: str, bad: Array, rows: Array, values: Array | None, expected: str, remedy: str) -> None:
    if bad.any():
        first = int(np.argmax(bad))
        found = "None or NaN" if values is None else values[first]
        raise mistake(f"{expected} in column {column!r}", f"{found} in row {rows[first]}", remedy)


def _check_names(class_names: Sequence[str]) -> Names:
    names = tuple(class_names)
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"Expected class_names as a list of texts, found {class_names!r}. Write ['cat', 'dog'].")
    if not names or len(set(names)) < len(names):
        found = some(sorted(name for name in set(names) if names.count(name) > 1))
        found = f"{found} more than once" if names else "no class at all"
        raise mistake("different class names, at least one", found, "Check class_names and the label column")
    return names


def _check_equal(expected: Sequence[str], found: Sequence[str], what: str) -> None:
    if list(expected) == list(found):
        return
    missing, extra = ([n for n in a if n not in set(b)] for a, b in ((expected, found), (found, expected)))
    wrong = f"{some(missing)} missing and {some(extra)} extra"
    if not missing and not extra:
        wrong = next(f"{b!r} in place of {a!r}" for a, b in zip(expected, found, strict=True) if a != b)
    raise mistake(what, wrong, "Use the same class names in the same order everywhere")
