"""BalanceMix on MS COCO with the paper's settings.

    accelerate launch recipes/coco.py --data_dir DIR [--noise mislabel --noise_rate 0.4]

DIR holds annotations/instances_train2017.json, annotations/instances_val2017.json and the folders train2017 and
val2017 with the images, or the same with 2014 (https://cocodataset.org/#download). A GPU is needed to finish: the
paper's 50 epochs are 91,600 steps of 64 image pairs at 448 px.
"""

from dataclasses import dataclass, field

from hf_balancemix.data.coco import YEARS, load_coco
from hf_balancemix.recipe import PAPER, Recipe, main


@dataclass
class CocoArguments:
    """Options of the COCO data."""

    data_dir: str | None = field(default=None, metadata={"help": "Folder with annotations/ and the image folders."})
    year: str | None = field(
        default=None,
        metadata={
            "help": "2017 (the paper's) or 2014; the one that is there unless set.",
            "choices": list(YEARS),
        },
    )
    keep_empty: bool = field(
        default=False, metadata={"help": "Keep images without any box (dropped by default, as usual)."}
    )


RECIPE = Recipe(
    name="COCO",
    load=load_coco,
    data=CocoArguments,
    description=__doc__,
    defaults={
        **PAPER,
        "output_dir": "runs/coco",
        "total_batch_size": 64,
        "num_train_epochs": 50,
        "warmup_epochs": 10,
    },
)

if __name__ == "__main__":
    main(RECIPE)
