"""One evaluation result for all uses: the Trainer's ``compute_metrics``, tables, plots and model cards."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from hf_balancemix.metrics import (
    Convention,
    IndexArray,
    average_precision,
    class_groups,
    f1_scores,
    mean_average_precision,
    single_precision,
)

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped,unused-ignore]


class Predictions(Protocol):
    """What ``build_compute_metrics`` reads from the Trainer's ``EvalPrediction``."""

    @property
    def predictions(self) -> Any:
        """(N, K) logits, or a tuple that starts with them."""

    @property
    def label_ids(self) -> Any:
        """(N, K) multi-hot labels, below 0 where an entry is to be ignored."""


@dataclass(frozen=True, eq=False)
class MultiLabelReport:
    """Average precision and F1 of one evaluated set.

    Attributes:
        class_names: K names.
        ap: (K,) average precision as a fraction; NaN for a class without positives, unless the convention is "strict".
        positives: (K,) positives in the evaluated set, ignored entries left out.
        train_counts: (K,) positives of each class in the clean training labels, or None if not known.
        groups: Class indices under ``"many"``, ``"medium"`` and ``"few"``; empty without ``train_counts``.
        f1: What ``f1_scores`` returns, in points.
        map: Mean average precision in points over the classes that have a value.
    """

    class_names: tuple[str, ...]
    ap: npt.NDArray[np.float64]
    positives: npt.NDArray[np.int64]
    train_counts: npt.NDArray[Any] | None
    groups: Mapping[str, IndexArray]
    f1: Mapping[str, float]
    map: float

    @property
    def num_classes_evaluated(self) -> int:
        """How many classes ``map`` is the mean of."""
        return int(np.count_nonzero(~np.isnan(self.ap)))

    def metrics(self) -> dict[str, float]:
        """The figures to log.

        Returns:
            ``map``, the mAP of each of ``many``, ``medium`` and ``few`` that has an evaluated class, ``cf1`` and
            ``of1``, all in points, and ``num_classes_evaluated``.
        """
        groups = {name: mean_average_precision(self.ap[members]) for name, members in self.groups.items()}
        return {
            "map": self.map,
            **{name: value for name, value in groups.items() if not np.isnan(value)},
            "cf1": self.f1["cf1"],
            "of1": self.f1["of1"],
            "num_classes_evaluated": float(self.num_classes_evaluated),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each class.

        Returns:
            The columns ``class``, ``ap`` in points, ``positives``, ``train_positives`` and ``group``; the last two are
            None without ``train_counts``.
        """
        import pandas as pd

        group_of = {int(k): name for name, members in self.groups.items() for k in members}
        return pd.DataFrame(
            {
                "class": self.class_names,
                "ap": 100.0 * self.ap,
                "positives": self.positives,
                "train_positives": self.train_counts,
                "group": [group_of.get(k) for k in range(len(self.class_names))],
            }
        )

    def to_markdown(self) -> str:
        """Per-class AP as a Markdown table, the lowest first, and mAP below; columns without values are left out."""
        table = self.to_pandas().sort_values("ap", kind="stable")
        numbers = table[["positives", *(["train_positives"] if self.train_counts is not None else [])]]
        lines = [["class", "AP", *(name.replace("_", " ") for name in numbers.columns), "group"]]
        lines.append(["---", *["---:"] * (len(numbers.columns) + 1), "---"])
        for name, ap, counts, group in zip(
            table["class"], table["ap"], numbers.to_numpy().tolist(), table["group"], strict=True
        ):
            plain = re.sub(r"([\\|*_<>`\[\]])", r"\\\1", " ".join(name.split()))
            lines.append([plain, "-" if np.isnan(ap) else f"{ap:.1f}", *map(str, counts), group or ""])
        width = len(lines[0]) if self.groups else len(lines[0]) - 1
        rows = [f"| {' | '.join(line[:width])} |" for line in lines]
        metrics = self.metrics()
        groups = "".join(f", {name} {metrics[name]:.1f}" for name in self.groups if name in metrics)
        return "\n".join([*rows, "", f"mAP {self.map:.1f}{groups} ({self.num_classes_evaluated} classes)"])

    def plot(self, path: str | os.PathLike[str], title: str = "") -> None:
        """Draw AP of each class, the highest above, in the colour of its group.

        Args:
            path: Where the picture goes; the ending decides the format. The numbers go beside it, as ``.csv``.
            title: Above the axes.

        Raises:
            ValueError: If the ending is not that of a picture.
        """
        from hf_balancemix.drawing import plot_class_ap

        plot_class_ap(self.class_names, (100.0 * self.ap).tolist(), self.groups, path, title)


def multilabel_report(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    class_names: Sequence[str] | None = None,
    train_counts: npt.ArrayLike | None = None,
    group_thresholds: tuple[float, float] = (1000, 10000),
    ignore: npt.ArrayLike | None = None,
    convention: Convention = "non_interpolated",
    threshold: npt.ArrayLike = 0.5,
) -> MultiLabelReport:
    """Evaluate logits against multi-hot targets.

    Average precision ranks the logits in at least single precision; F1 uses their sigmoid.

    Args:
        logits: (N, K) raw scores, not probabilities.
        targets: (N, K) multi-hot.
        class_names: K names; ``LABEL_0`` and so on by default, as in a Transformers configuration.
        train_counts: (K,) positives of each class in the *clean* training labels; adds the class groups.
        group_thresholds: (t0, t1) in images: few < t0 ≤ medium < t1 ≤ many.
        ignore: (N, K) bool, True where an entry is left out of its class.
        convention: See ``average_precision``.
        threshold: One probability or (K,) probabilities from which F1 predicts a positive.

    Returns:
        The report.

    Raises:
        ValueError: For names or counts that are not K, and for whatever ``average_precision``, ``class_groups`` and
            ``f1_scores`` reject.
    """
    logits, targets = single_precision(logits), np.asarray(targets)
    ap = average_precision(logits, targets, ignore, convention)
    names = tuple(f"LABEL_{k}" for k in range(ap.size)) if class_names is None else tuple(class_names)
    counts = None if train_counts is None else np.asarray(train_counts)
    if len(names) != ap.size or (counts is not None and counts.shape != ap.shape):
        raise ValueError(
            f"Expected {ap.size} class names and training counts, one for each column of the logits, found "
            f"{len(names)} names and {'no counts' if counts is None else f'counts of shape {counts.shape}'}."
        )
    positive = targets == 1 if ignore is None else (targets == 1) & ~np.asarray(ignore, dtype=bool)
    return MultiLabelReport(
        class_names=names,
        ap=ap,
        positives=np.count_nonzero(positive, axis=0).astype(np.int64),
        train_counts=counts,
        groups={} if counts is None else class_groups(counts, group_thresholds),
        f1=f1_scores(0.5 + 0.5 * np.tanh(0.5 * logits), targets, threshold, ignore),  # a sigmoid without overflow
        map=mean_average_precision(ap),
    )


def build_compute_metrics(
    class_names: Sequence[str],
    train_counts: npt.ArrayLike | None = None,
    group_thresholds: tuple[float, float] = (1000, 10000),
    convention: Convention = "non_interpolated",
    threshold: npt.ArrayLike = 0.5,
) -> Callable[[Predictions], dict[str, float]]:
    """The ``compute_metrics`` of a Trainer.

    Label entries below 0 are ignored: the difficult images of VOC, or rows that distributed evaluation pads.

    Args:
        class_names: K names, in the order of the logits.
        train_counts: (K,) positives of each class in the clean training labels; adds ``many``, ``medium``, ``few``.
        group_thresholds: (t0, t1) in images: few < t0 ≤ medium < t1 ≤ many.
        convention: See ``average_precision``.
        threshold: One probability or (K,) probabilities from which F1 predicts a positive.

    Returns:
        A function from an ``EvalPrediction`` with (N, K) predictions, or a tuple that starts with them, and (N, K)
        ``label_ids`` to ``MultiLabelReport.metrics()``.

    Raises:
        ValueError: At once if the arguments do not fit together; later for what ``multilabel_report`` rejects.
    """

    def report(logits: npt.ArrayLike, targets: npt.ArrayLike, ignore: npt.ArrayLike | None) -> MultiLabelReport:
        return multilabel_report(
            logits, targets, class_names, train_counts, group_thresholds, ignore, convention, threshold
        )

    # Evaluate nothing once, so that a wrong argument stops the run before training and not after its first epoch.
    nothing = np.empty((0, len(class_names)))
    report(nothing, nothing, None)

    def compute_metrics(evaluated: Predictions) -> dict[str, float]:
        predictions = evaluated.predictions
        logits = predictions[0] if isinstance(predictions, tuple) else predictions
        targets = np.asarray(evaluated.label_ids)
        return report(logits, targets, targets < 0).metrics()

    return compute_metrics
