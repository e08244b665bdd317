"""Writes the cards of this folder: ``python model_cards/write.py``, a few minutes on a CPU.

The digits are trained; their runs write their cards themselves, and these are copied with the results that they name.
So are the scenes, half an hour, if their data and a pretrained backbone are named:
``python model_cards/write.py --data_dir DIR --backbone DIR_OR_NAME``. The templates say what is to be trained, and no
result.
"""

import argparse
import shutil
from pathlib import Path

from hf_balancemix.hub.card import CardFacts, render_card
from hf_balancemix.hub.contents import CARD, RESULTS
from hf_balancemix.recipe import RECIPES, main
from hf_balancemix.recipe.cards import data_facts
from hf_balancemix.recipe.command import read_command, shown_line

FOLDER = Path(__file__).resolve().parent
RUNS = Path("runs/model_cards")
METHODS = {"digits": ("bce", "balancemix"), "scenes": ("bce", "mixup", "balancemix")}
BACKBONES = {
    "resnet50": "resnet50.tv_in1k",
    "resnet101": "resnet101.tv_in1k",
    "tresnet_l": "tresnet_l.miil_in1k_448",
}
CLASSES = {"coco": 80, "voc": 20, "deepfashion": 26}
PLAN = (
    "No run stands behind this card yet: it says what is to be trained, by the paper's settings, and holds no result."
)


def write_real(data: str, words: list[str]) -> None:
    """Train, and copy cards and results."""
    runs = RUNS / data
    shutil.rmtree(runs, ignore_errors=True)
    main(RECIPES[data], ["--methods", *METHODS[data], *words, "--output_dir", str(runs), "--license", "apache-2.0"])
    for method in METHODS[data]:
        target = FOLDER / f"{data}-{method}"
        target.mkdir(exist_ok=True)
        for name in (CARD, RESULTS):
            shutil.copyfile(runs / f"{method}-seed0" / name, target / name)


def write_templates() -> None:
    """Write the cards of what only a GPU can train."""
    (FOLDER / "templates").mkdir(exist_ok=True)
    for data, classes in CLASSES.items():
        recipe = RECIPES[data]
        for name, backbone in BACKBONES.items():
            words = ["--data_dir", f"path/to/{data}", "--backbone", backbone]
            command = read_command(recipe, words)
            args, options = command.args, command.options
            facts = CardFacts(
                name=f"{data}-{name}-balancemix",
                architecture="BalanceMixForImageClassification",
                class_names=[str(number) for number in range(classes)],
                trainer="BalanceMixTrainer",
                note=PLAN,
                trained=False,
                method="balancemix",
                head=options.head,
                base_model=f"timm/{backbone}",
                data=data_facts({"recipe": recipe.name}, options, {}),
                settings={
                    "image size": options.image_size,
                    "epochs": f"{args.num_train_epochs:g}",
                    "images per step": options.total_batch_size,
                    "learning rate": f"{args.learning_rate:g}",
                    "weight decay": f"{args.weight_decay:g}",
                    "warmup epochs": args.warmup_epochs,
                },
                command=shown_line(recipe.name, words, 1),
            )
            (FOLDER / "templates" / f"{data}-{name}.md").write_text(render_card(facts), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the model cards of this folder.")
    parser.add_argument("--data_dir", help="Folder with the four files of Fashion-MNIST, for the scenes.")
    parser.add_argument("--backbone", help="Pretrained backbone of the scenes, as --backbone of a recipe.")
    options = parser.parse_args()
    if (options.data_dir is None) != (options.backbone is None):
        parser.error("expected --data_dir and --backbone together, found one of them")
    write_templates()
    write_real("digits", [])
    if options.data_dir is not None:
        write_real("scenes", ["--data_dir", options.data_dir, "--backbone", options.backbone])
