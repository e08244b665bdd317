"""The model card of a run, and its push: what a recipe knows beyond the trainer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

from hf_balancemix.backbones import SMALL_RESNET
from hf_balancemix.hub.card import DataFacts, Scores
from hf_balancemix.hub.contents import RESULTS, without_folder
from hf_balancemix.hub.push import Destination, PushError, push
from hf_balancemix.recipe.job import Job, write_json
from hf_balancemix.recipe.options import Plan, RecipeArguments, noise_rate
from hf_balancemix.training.multilabel import MultiLabelTrainer
from hf_balancemix.training.pushing import run_contents, upload_limit

_DATA = {
    "digits": "attributes of scikit-learn's handwritten digits",
    "scenes": "scenes of Fashion-MNIST's items on coloured canvases",
    "COCO": "MS COCO",
    "VOC": "Pascal VOC",
    "DeepFashion": "the fine-grained attributes of DeepFashion",
    "folder": "images of a folder",
}


def data_facts(data: Mapping[str, Any], options: RecipeArguments, images: Mapping[str, int]) -> DataFacts:
    """Return what a card says of a recipe's data.

    Args:
        data: What identifies them, of a plan's settings.
        options: Of the recipe; they say the noise.
        images: Number of images by split.
    """
    hub_id = data.get("dataset")
    name = hub_id or _DATA[data["recipe"]] + (f" {data['year']}" if data.get("year") else "")
    return DataFacts(name, hub_id, images, options.noise, noise_rate(options))


def describe_run(trainer: MultiLabelTrainer, job: Job, plan: Plan) -> None:
    """Tell a trainer, before it trains, what its cards are to say of data, backbone and command."""
    options, data = job.options, plan.settings["data"]
    trainer.card_details |= {
        "method": plan.settings["method"],
        "license": options.license,
        "data": data_facts(data, options, {name: len(split) for name, split in job.splits.items()}),
        **_origin(trainer, options.backbone, options.pretrained),
        "command": job.command_line,
    }
    if plan.args.hub_model_id is None:
        trainer.card_details["name"] = f"{data['recipe']}-{plan.folder.name}"
    if trainer.pushing is not None:
        trainer.pushing.final_follows = True


def write_card(
    trainer: MultiLabelTrainer, plan: Plan, entry: Mapping[str, Any], members: Mapping[str, Sequence[str]]
) -> None:
    """Write the card of a finished run, and beside it its entry of ``results.json``, whose numbers it shows.

    Args:
        trainer: That has trained it.
        plan: Its plan.
        entry: Of ``results.json``.
        members: Classes of each group.
    """
    settings = entry["settings"] | {"backbone": without_folder(entry["settings"]["backbone"])}
    write_json(plan.folder / RESULTS, {"runs": [{**entry, "settings": settings}]})
    trainer.card_details |= {
        "scores": Scores(
            entry["map"], entry["groups"], entry["per_class_ap"], entry.get("ema_map"), group_classes=members
        ),
        "diagnostics": entry["epochs"][-1] if entry["epochs"] else {},
        "seconds": entry["seconds"],
        "hardware": entry["hardware"],
        "versions": entry["versions"],
        "results_file": RESULTS,
    }
    trainer.create_model_card()


def push_run(trainer: MultiLabelTrainer, plan: Plan) -> str | None:
    """Push a finished run, on all processes; return what to tell the user if that failed."""
    done = trainer.push_to_hub()
    if done is not None:
        tqdm.write(f"{plan.label}: pushed to {done.commit_url}")
    return trainer.pushing.unpushed if trainer.pushing is not None else None


def push_kept(plan: Plan) -> str | None:
    """Push a run that was finished earlier, perhaps without reaching the Hub; return what to tell if that failed."""
    if not PartialState().is_main_process:
        return None
    args = plan.args
    destination = Destination(str(args.hub_model_id), args.hub_private_repo, args.hub_revision, args.hub_token)
    try:
        contents = run_contents(plan.folder, args.hub_strategy)
        done = push(contents, destination, "End of training", upload_limit(contents, args))
    except (PushError, ValueError) as error:  # the folder of a run that was finished earlier may be gone
        return f"{error} Later:\n  {destination.command(plan.folder, args.hub_strategy)}"
    tqdm.write(f"{plan.label}: pushed to {done.commit_url}")
    return None


def _origin(trainer: MultiLabelTrainer, backbone: str, pretrained: bool) -> dict[str, Any]:
    """Return what training started from."""
    if not pretrained or backbone == SMALL_RESNET:
        return {"base_model": None, "origin": f"weights drawn at random ({without_folder(backbone)})"}
    if os.path.isdir(backbone):
        return {"base_model": None, "origin": f"a checkpoint in a folder {Path(backbone).absolute().name}"}
    config: Any = trainer.model.config
    timm = getattr(getattr(config, "backbone_config", None) or config, "pretrained_cfg", None) or {}
    return {"base_model": backbone if "/" in backbone else timm.get("hf_hub_id")}
