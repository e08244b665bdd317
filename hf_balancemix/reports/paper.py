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
from collections.abc import Mapping
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


def paper_number(
    run: Mapping[str, Any], label: str | None, group: str, paper_table: str | None = None
) -> float | None:
    """Return the paper's number for a run: same data set, noise, rate, method and class group.

    Args:
        run: A result, with its ``settings``.
        label: Of its row, if it has one: it is then looked for among the paper's rows, and not the method.
        group: "all", "many", "medium" or "few", or what Tables 14 and 15 have in its place.
        paper_table: The table whose number counts first.

    Returns:
        The number, or None if the paper has none.
    """
    data = run["settings"]["data"]
    name = str(data.get("recipe", "")).lower()
    dataset = "coco2014" if name == "coco" and data.get("year") == "2014" else name
    methods = PAPER_NAMES.get(run["method"], ()) if label is None else (label,)
    found = [
        row
        for row in paper_results()
        if row["dataset"] == dataset
        and row["method"] in methods
        and row["class_group"] == group
        and _same_noise(row, run["noise"], run["noise_rate"])
    ]
    found.sort(key=lambda row: (row["table"] != paper_table, int(row["table"])))
    return float(found[0]["map"]) if found else None


def _same_noise(row: Mapping[str, str], kind: str, rate: float | None) -> bool:
    theirs = float(row["noise_rate"]) if row["noise_rate"] else None
    if kind == "none":  # the noise of DeepFashion is its own
        return row["noise"] in ("none", "real") or theirs == 0
    return row["noise"] == kind and theirs == rate
