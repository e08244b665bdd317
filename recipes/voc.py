"""BalanceMix on Pascal VOC with the paper's settings.

    accelerate launch recipes/voc.py --data_dir DIR [--noise mislabel --noise_rate 0.4]

DIR holds VOCdevkit/VOC2007 and VOCdevkit/VOC2012, as the official archives unpack. Trained on 07+12 trainval (16,551
images), tested on VOC2007 test. A GPU is needed to finish: the paper's 20 epochs are 10,340 steps of 32 image pairs at
448 px.
"""

from dataclasses import dataclass, field

from hf_balancemix.data.voc import DIFFICULT_EVAL, DIFFICULT_TRAIN, YEARS, load_voc
from hf_balancemix.recipe import PAPER, Recipe, main


@dataclass
class VocArguments:
    """Options of the VOC data."""

    data_dir: str | None = field(default=None, metadata={"help": "VOCdevkit, or the folder that holds it."})
    year: str = field(
        default="07+12",
        metadata={
            "help": "Training images: 07+12 (the paper's) or 07, tested on VOC2007 test; 12: VOC2012 train, tested on "
            "its val.",
            "choices": list(YEARS),
        },
    )
    difficult_train: str = field(
        default="negative",
        metadata={"help": "Classes with difficult objects only, in training.", "choices": list(DIFFICULT_TRAIN)},
    )
    difficult_eval: str = field(
        default="ignore",
        metadata={
            "help": "The same in evaluation: ignore is the official rule. Compare mAP within one convention only.",
            "choices": list(DIFFICULT_EVAL),
        },
    )


RECIPE = Recipe(
    name="VOC",
    load=load_voc,
    data=VocArguments,
    description=__doc__,
    defaults={
        **PAPER,
        "output_dir": "runs/voc",
        "total_batch_size": 32,
        "num_train_epochs": 20,
        "warmup_epochs": 5,
    },
)

if __name__ == "__main__":
    main(RECIPE)
