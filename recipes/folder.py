"""BalanceMix on your own images: a folder with metadata.jsonl or CSV, Parquet, a saved data set, or one of the Hub.

    accelerate launch recipes/folder.py --data_dir DIR
    accelerate launch recipes/folder.py --dataset NAME_ON_THE_HUB

DIR holds train/ and test/, each with images and a metadata.jsonl with lines such as
{"file_name": "0001.jpg", "labels": ["cat", "dog"]}; with one part only, a fifth is held out for the test. Labels may
be names, ids, multi-hot, one 0/1 column per class or text such as "cat|dog".
"""

from dataclasses import dataclass, field

from hf_balancemix.data.folder import load_folder
from hf_balancemix.recipe import BOOKKEEPING, Recipe, main


@dataclass
class FolderArguments:
    """Options of the data."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Image folder with metadata, folder of Parquet files, or a saved data set."}
    )
    dataset: str | None = field(default=None, metadata={"help": "Name of a data set on the Hub."})
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration, if it has several."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str | None = field(
        default=None, metadata={"help": "Split to test on; test, validation, val, ... unless set."}
    )
    test_fraction: float = field(
        default=0.2, metadata={"help": "Share of the training split held out if there is no test split."}
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the classes, in the order of ids or columns; found unless given."}
    )


RECIPE = Recipe(
    name="folder",
    load=load_folder,
    data=FolderArguments,
    trainer_options=("image_column", "label_column", "label_delimiter"),
    description=__doc__,
    defaults={
        **BOOKKEEPING,
        "output_dir": "runs/folder",
        "total_batch_size": 32,
        "num_train_epochs": 20,
        "warmup_epochs": 5,
        "learning_rate": 1e-4,
        "weight_decay": 0.05,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "max_grad_norm": 0.0,
        "image_size": 224,
        "medium_shot_from": 100,
        "many_shot_from": 1000,
    },
)

if __name__ == "__main__":
    main(RECIPE)
