"""Data sets as the trainers read them: no output format, no transform, noise on the fly worked in."""

from __future__ import annotations

import datasets

from hf_balancemix.data.noise import NoiseTransform, inject_noise


def as_stored(dataset: datasets.Dataset) -> datasets.Dataset:
    """Return a data set whose rows are what it stores.

    The trainers read labels column-wise and make the transforms themselves, from the image processor. A format
    ("torch", "numpy", …) is taken off. A :class:`NoiseTransform` is worked into the columns, with the same labels.

    Raises:
        ValueError: If the data set has any other transform: what it does to labels cannot be known.
    """
    layout = dataset.format
    if layout["type"] != "custom":
        return dataset.with_format(None) if layout["type"] else dataset
    transform = layout["format_kwargs"]["transform"]
    if not isinstance(transform, NoiseTransform):
        raise ValueError(
            "Expected a data set without transform, found one with "
            f"{getattr(transform, '__name__', type(transform).__name__)}: the trainer makes its transforms from the "
            "image processor and `augmentation`. Take it off with `dataset.with_format(None)`; what changes labels or "
            "pictures for good belongs into `dataset.map(...)`."
        )
    columns = transform.label_format.columns
    return inject_noise(
        dataset.with_format(None),
        [step.spec for step in transform.steps],
        label_column=list(columns) if transform.label_format.kind == "columns" else columns[0],
        id_column=transform.id_column,
        class_names=transform.label_format.class_names,
        delimiter=transform.label_format.delimiter,
    )
