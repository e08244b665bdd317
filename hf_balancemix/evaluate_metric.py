"""The same figures as an ``evaluate`` metric. A module of its own, because importing ``evaluate`` takes seconds."""

from collections.abc import Sequence
from typing import Any

import datasets  # type: ignore[import-untyped,unused-ignore]
import evaluate  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import numpy.typing as npt

from hf_balancemix.report import multilabel_report

_DESCRIPTION = "mAP, CF1 and OF1 of multi-label classification; mAP of many-, medium- and few-shot classes."
_INPUTS = """
Args:
    predictions: N lists of K logits (not probabilities).
    references: N lists of K integers: 1 positive, 0 negative, below 0 ignored.
    class_names, train_counts, group_thresholds, convention, threshold: see hf_balancemix.report.multilabel_report.
Returns:
    map, many, medium, few (the last three with train_counts only), cf1, of1, in points; num_classes_evaluated.
"""


class MultiLabelMAP(evaluate.Metric):  # type: ignore[misc,unused-ignore]
    """``evaluate`` adapter of ``multilabel_report``, for code that already collects its results with ``evaluate``.

    Instantiate it directly, which needs no network: ``MultiLabelMAP().compute(predictions=..., references=...)``.
    Inside a Trainer prefer ``build_compute_metrics``: ``evaluate`` passes every row through an Arrow table, which
    takes several times as long as the metric. Logits are kept in single precision.

    ``compute`` takes ``predictions`` (N, K) logits and ``references`` (N, K) integers, below 0 where an entry is
    ignored, and the optional arguments of ``multilabel_report`` but ``ignore``. It returns
    ``MultiLabelReport.metrics()``, in points, and raises ValueError for what ``multilabel_report`` rejects.
    """

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("int32")),
                }
            ),
        )

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[Sequence[int]], **settings: Any
    ) -> dict[str, float]:
        logits: npt.NDArray[np.float32] = np.asarray(predictions, dtype=np.float32)
        targets = np.asarray(references)
        return multilabel_report(logits, targets, ignore=targets < 0, **settings).metrics()
