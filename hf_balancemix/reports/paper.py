"""The paper's printed results, to set ours beside.

Source: H. Song, M. Kim, J.-G. Lee, "Toward Robustness in Multi-label Classification: A Data Augmentation Strategy
against Imbalance and Noise", AAAI 2024 (arXiv:2312.07087v1), Tables 1-6 and 8-15, as printed. ``paper_results.csv``
holds one number a row: mAP in points at the last epoch (Table 6: at the best), or for the tables 14 and 15 percent of
the labels. The paper disagrees with itself in places, for instance on plain BCE at 40% mislabelling (63.8 in Table 1,
63.3 in Table 5), so a table's own number counts first. Table 6 borrows the numbers of other methods.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

# Our names for the rows of its tables.
PAPER_NAMES: dict[str, tuple[str, ...]] = {
    "bce": ("BCE Loss", "Default (BCE Loss)"),
    "co_teaching": ("Co-teaching",),
    "asl": ("ASL",),
    "t_estimator": ("T-estimator",),
    "ll_r": ("LL-R",),
    "ll_ct": ("LL-Ct",),
    "mixup": ("Random Sampler (= Mixup)",),
    "minority": ("Minority Sampler (Eq. 4)",),
    "clean": ("Clean Labels (Eq. 8)",),
    "relabelled": ("Re-labeled Labels (Eq. 9)",),
    "balancemix": ("BalanceMix", "Ambiguous Labels (Eq. 10)"),
    "balancemix_no_minority": ("BalanceMix (wo Min.)",),
}


@functools.cache
def paper_results() -> tuple[Mapping[str, str], ...]:
    """Return the rows of ``paper_results.csv``, as text by column."""
    path = files("hf_balancemix") / "data_files" / "paper_results.csv"
    return tuple(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def tables_data(table: str) -> list[str]:
    """Return the data sets of one of the paper's tables, as recipes call them; none for a table that is not there."""
    shown = {"coco": "COCO", "coco2014": "COCO 2014", "voc": "VOC", "deepfashion": "DeepFashion"}
    return [shown[name] for name in dict.fromkeys(row["dataset"] for row in paper_results() if row["table"] == table)]


def has_number(dataset: str, method: str, noise: str, noise_rate: float | None) -> bool:
    """Say whether the paper has a number for one of its rows on a data set, of any year, under a noise."""
    return any(
        row["dataset"] in (dataset.lower(), f"{dataset.lower()}2014")
        and row["method"] == method
        and _same_noise(row, noise, noise_rate)
        for row in paper_results()
    )


def paper_number(
    data: Mapping[str, Any],
    methods: Sequence[str],
    noise: tuple[str, float | None],
    group: str,
    paper_table: str | None = None,
) -> tuple[float, str] | None:
    """Return the paper's number for one of its rows.

    Args:
        data: Of a run's settings: ``recipe``, and for COCO ``year``.
        methods: Rows of its tables that show the same, the preferred one first.
        noise: Kind and rate; "mean" for that over the noises.
        group: "all", "many", "medium" or "few", or what Tables 14 and 15 have in its place.
        paper_table: The table whose number counts first.

    Returns:
        The number and its table, or None if the paper has none.
    """
    name = str(data.get("recipe", "")).lower()
    dataset = "coco2014" if name == "coco" and data.get("year") == "2014" else name
    found = [
        row
        for row in paper_results()
        if row["dataset"] == dataset
        and row["method"] in methods
        and row["class_group"] == group
        and _same_noise(row, *noise)
    ]
    found.sort(key=lambda row: (row["table"] != paper_table, methods.index(row["method"]), int(row["table"])))
    return (float(found[0]["map"]), found[0]["table"]) if found else None


def _same_noise(row: Mapping[str, str], kind: str, rate: float | None) -> bool:
    theirs = float(row["noise_rate"]) if row["noise_rate"] else None
    if kind == "none":  # the noise of DeepFashion is its own
        return row["noise"] in ("none", "real") or theirs == 0
    return row["noise"] == kind and theirs == rate
