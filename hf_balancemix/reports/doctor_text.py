"""What the doctor found, for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from hf_balancemix.messages import some
from hf_balancemix.reports.doctor_checkup import Checkup
from hf_balancemix.reports.doctor_images import SplitImages
from hf_balancemix.reports.doctor_page import shown_ratio, shown_time
from hf_balancemix.reports.tables import text_table

_CLASSES = 20
_SHOWN = 5
_WIDTH = 100


def shown_text(checkup: Checkup) -> str:
    """Return all that fits a screen or two; names are quoted, so that they cannot move the cursor."""
    sections = {
        "Labels": _labels(checkup),
        "Classes": _classes(checkup),
        "Classes together": _together(checkup),
        "Images": "\n".join(_images(name, found) for name, found in checkup.images.items()),
        "Duplicates (equal pixels, among the images that were read)": _duplicates(checkup),
        "Loss, time and memory": _costs(checkup),
        "Advice": "\n".join(
            textwrap.fill(text, _WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False)
            for text in checkup.advice
        ),
    }
    return "\n".join(f"\n{title}\n{'=' * len(title)}\n{text}" for title, text in sections.items())


def _labels(checkup: Checkup) -> str:
    splits = list(checkup.labels.values())
    rows = [
        ["images", *(f"{split.num_images:,}" for split in splits)],
        ["without a positive", *(f"{len(split.empty):,}" for split in splits)],
        ["positives per image", *(shown_ratio(split.mean_positives) for split in splits)],
        ["class imbalance (Eq. 12)", *(shown_ratio(split.class_imbalance) for split in splits)],
        ["the same of classes with positives", *(shown_ratio(split.present_imbalance) for split in splits)],
        [
            "positive-negative imbalance (Eq. 13)",
            *(shown_ratio(split.positive_negative_imbalance) for split in splits),
        ],
        ["mAP at chance (points)", *(shown_ratio(split.chance_map()) for split in splits)],
        ["classes without positives", *(f"{len(split.without_positives):,}" for split in splits)],
    ]
    return text_table(["", *checkup.labels], rows)


def _classes(checkup: Checkup) -> str:
    train, test = checkup.labels["train"], checkup.labels["test"]
    order = np.argsort(-np.array(train.positives), kind="stable").tolist()
    left_out = max(0, len(order) - _CLASSES)
    chosen = order if not left_out else order[: _CLASSES // 2] + order[-_CLASSES // 2 :]
    rows = [[repr(checkup.class_names[k]), f"{train.positives[k]:,}", f"{test.positives[k]:,}"] for k in chosen]
    if left_out:
        rows.insert(_CLASSES // 2, [f"... {left_out} more", "", ""])
    return text_table(["class", "train", "test"], rows)


def _together(checkup: Checkup) -> str:
    found = checkup.together
    lines = [f"most:  {a!r} and {b!r}: {both:,} images" for a, b, both, _ in found.most[:_SHOWN]]
    lines += [
        f"never: {a!r} and {b!r}, of which {expected:.0f} images were to be expected if they were independent"
        for a, b, _, expected in found.never[:_SHOWN]
    ]
    if found.num_never > _SHOWN:
        lines.append(f"       and {found.num_never - _SHOWN} more such pairs")
    return "\n".join(lines) or "no image has two positives"


def _images(name: str, found: SplitImages) -> str:
    line = f"{name}: {found.num_read:,} of {found.num_images:,} read"
    if len(found.sampled) + len(found.missing) < found.num_images:
        line += ", a random sample (--max_images)"
    if found.sizes:
        widths, heights = zip(*found.sizes, strict=True)
        line += f"; {min(widths)}×{min(heights)} to {max(widths)}×{max(heights)} pixels"
    if found.missing:
        line += f"\n  missing: {some(found.missing)}"
    if found.unreadable:
        more = len(found.unreadable) - _SHOWN
        line += f"\n  cannot be read: {'; '.join(found.unreadable[:_SHOWN])}{f' and {more} more' if more > 0 else ''}"
    return line


def _duplicates(checkup: Checkup) -> str:
    found = checkup.duplicates
    if not found:
        return "none"
    across, differ = sum(one.across for one in found), sum(one.labels_differ for one in found)
    lines = [f"groups of equal images: {len(found)}, {across} of them in both splits, {differ} with different labels"]
    lines += [f"  {_same(one.images)}{' (labels differ)' if one.labels_differ else ''}" for one in found[:_SHOWN]]
    return "\n".join(lines)


def _same(images: Sequence[tuple[str, str]]) -> str:
    shown = " = ".join(f"{split} {name!r}" for split, name in images[:3])
    return shown + (f" and {len(images) - 3} more" if images[3:] else "")


def _costs(checkup: Checkup) -> str:
    cost, speed = checkup.estimate, checkup.images["train"].images_per_second
    return "\n".join(
        [
            f"loss of the untrained model {checkup.loss:.3f}; at chance, K·ln 2: {checkup.chance_loss:.3f}; knowing "
            f"the class frequencies only: {checkup.labels['train'].frequency_loss():.3f}",
            f"steps per epoch: {cost.steps_per_epoch:,}, batches of {checkup.settings.total_batch_size} pairs",
            f"reading an epoch's {cost.reads_per_epoch:,} images by one process at {speed:,.0f} a second: "
            f"{shown_time(cost.reading_seconds)}",
            f"the model in an epoch: {shown_time(cost.model_seconds)} on {cost.device}, measured with small batches",
            f"memory of the model, with a batch and AdamW, in float32: at least {cost.model_bytes / 1e6:,.0f} MB",
            f"label state {cost.state_bytes / 1e6:,.1f} MB; all training images in memory (--cache_images) "
            f"{cost.cache_bytes / 1e6:,.1f} MB",
        ]
    )
