"""What a recipe prints when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_balancemix.recipe.job import Job
from hf_balancemix.recipe.options import noise_rate
from hf_balancemix.reports.plots import plot_map_over_epochs
from hf_balancemix.reports.tables import method_table, text_table

_HARDLY_ANY = 0.001


def print_results(name: str, job: Job, shown: Sequence[dict[str, Any]], output_dir: Path) -> None:
    """Print the table, the refinement's quality and the reload snippet; draw the figure."""
    options = job.options
    noise = options.noise if noise_rate(options) is None else f"{options.noise} {options.noise_rate:.0%}"
    noise = "labels as given" if noise == "none" else noise
    title = f"{name}, {noise}"
    header, rows = method_table(shown)
    seeds = len({run["seed"] for run in shown})
    print(
        f"\n{title}: test mAP after the last epoch, in points, {seeds} seed{'s (mean ± standard error)' * (seeds > 1)}"
    )
    print(text_table(header, rows))
    for run in shown:
        if run["epochs"] and "clean" in run["epochs"][-1]:
            print(f"\n{run['method']}, seed {run['seed']}, final labels: {_labels(run['epochs'][-1])}")
    figure = output_dir / "map_over_epochs.png"
    plot_map_over_epochs(shown, figure, title)
    last_run = f"{shown[-1]['method']}-seed{shown[-1]['seed']}"
    checkpoint, example = output_dir / last_run, output_dir / "example.png"
    job.splits["test"][0]["image"].convert("RGB").save(example)
    print(f"\nresults: {output_dir / 'results.json'}\nfigure:  {figure}\n\nUse the model of {checkpoint}:\n")
    if options.head != "linear":
        print("    import hf_balancemix")
    print("    from transformers import pipeline")
    print(f'    classify = pipeline("image-classification", model={str(checkpoint)!r})')
    print(f"    print(classify({str(example)!r}, top_k=5))")


def _labels(last: dict[str, float]) -> str:
    """Say what refinement made of the labels, how right it was where that is known, and what looks wrong."""
    text = f"{last['clean']:.1%} taken for clean"
    if "label_precision" in last:
        text += f" with precision {last['label_precision']:.1%} and recall {last['label_recall']:.1%}"
    text += f"; {last['relabelled']:.1%} re-labelled"
    if last["relabelled"] and "relabel_accuracy" in last:
        text += f", {last['relabel_accuracy']:.1%} of them correct"
    text += f"; {last['ambiguous']:.1%} ambiguous"
    if last["relabelled"] < _HARDLY_ANY < last["ambiguous"]:
        text += (
            "\nHardly any label was re-labelled: the model is seldom as sure as --relabel_threshold asks. More "
            "epochs, or a lower threshold, may help."
        )
    return text


def print_evaluation(checkpoint: str, record: dict[str, Any], path: Path) -> None:
    """Print mAP, that of the groups and the five worst classes of one evaluated model."""
    groups = "".join(f", {name} {value:.1f}" for name, value in record["groups"].items())
    averaged = f", EMA mAP {record['ema_map']:.1f}" if "ema_map" in record else ""
    print(f"\n{checkpoint}: test mAP {record['map']:.1f}{averaged}{groups}")
    known = {name: ap for name, ap in record["per_class_ap"].items() if ap is not None}
    worst = sorted(known, key=lambda name: known[name])[:5]
    print(f"lowest AP: {', '.join(f'{name} {known[name]:.1f}' for name in worst)}\nall of it: {path}")


def print_unreadable(unreadable: dict[str, int], output_dir: Path) -> None:
    """Say how many images were left out, if any."""
    if any(unreadable.values()):
        counts = ", ".join(f"{count} of {name}" for name, count in unreadable.items())
        print(f"\nleft out as unreadable: {counts}; names in {output_dir / 'unreadable_images.json'}")
