"""BalanceMix on the fine-grained attributes of DeepFashion, whose labels are noisy as they come, as in the paper.

    accelerate launch recipes/deepfashion.py --data_dir DIR

DIR holds Anno_fine/ and Img/ of the "Category and Attribute Prediction Benchmark"
(https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html): 26 attributes, 16,000 training images (its train and val),
4,000 test images. A GPU is needed to finish: the paper's 40 epochs are 10,000 steps of 64 image pairs at 448 px.
"""

from dataclasses import dataclass, field

from hf_balancemix.data.deepfashion import load_deepfashion
from hf_balancemix.recipe import PAPER, Recipe, main


@dataclass
class DeepFashionArguments:
    """Options of the DeepFashion data."""

    data_dir: str | None = field(default=None, metadata={"help": "Folder with Anno_fine/ and the images."})


RECIPE = Recipe(
    name="DeepFashion",
    load=load_deepfashion,
    data=DeepFashionArguments,
    description=__doc__,
    defaults={
        **PAPER,
        "output_dir": "runs/deepfashion",
        "total_batch_size": 64,
        "num_train_epochs": 40,
        "warmup_epochs": 5,
    },
)

if __name__ == "__main__":
    main(RECIPE)
