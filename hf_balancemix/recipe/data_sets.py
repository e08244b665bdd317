"""The data sets by name: how each is loaded, its own options and the defaults of training on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_balancemix.data.coco import YEARS as COCO_YEARS
from hf_balancemix.data.coco import load_coco
from hf_balancemix.data.deepfashion import load_deepfashion
from hf_balancemix.data.digits import RARE_CLASSES, load_digits_attributes
from hf_balancemix.data.folder import load_folder
from hf_balancemix.data.scenes import load_scenes
from hf_balancemix.data.voc import DIFFICULT_EVAL, DIFFICULT_TRAIN, load_voc
from hf_balancemix.data.voc import YEARS as VOC_YEARS
from hf_balancemix.recipe.command import Recipe
from hf_balancemix.recipe.defaults import BOOKKEEPING, PAPER


@dataclass
class ScenesArguments:
    """Options of the scenes."""

    data_dir: str | None = field(default=None, metadata={"help": "Folder with the four files of Fashion-MNIST."})


@dataclass
class CocoArguments:
    """Options of the COCO data."""

    data_dir: str | None = field(default=None, metadata={"help": "Folder with annotations/ and the image folders."})
    year: str | None = field(
        default=None,
        metadata={
            "help": "2017 (the paper's) or 2014; the one that is there unless set.",
            "choices": list(COCO_YEARS),
        },
    )
    keep_empty: bool = field(
        default=False, metadata={"help": "Keep images without any box (dropped by default, as usual)."}
    )


@dataclass
class VocArguments:
    """Options of the VOC data."""

    data_dir: str | None = field(default=None, metadata={"help": "VOCdevkit, or the folder that holds it."})
    year: str = field(
        default="07+12",
        metadata={
            "help": "Training images: 07+12 (the paper's) or 07, tested on VOC2007 test; 12: VOC2012 train, tested on "
            "its val.",
            "choices": list(VOC_YEARS),
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


@dataclass
class DeepFashionArguments:
    """Options of the DeepFashion data."""

    data_dir: str | None = field(default=None, metadata={"help": "Folder with Anno_fine/ and the images."})


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


# The rate Δ of LL-R and LL-Ct follows the epochs: each run ends at about 2% of the labels, as the original's ten do.
RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        name="digits",
        load=load_digits_attributes,
        groups={"rare": RARE_CLASSES},
        description="""\
BCE, Mixup and BalanceMix on 1,797 handwritten digits with long-tailed, 40% mislabelled attributes.

Needs nothing but the package (the digits come with scikit-learn); runs offline.
""",
        defaults={
            **BOOKKEEPING,
            "output_dir": "runs/digits",
            "methods": ["bce", "mixup", "balancemix"],
            "noise": "mislabel",
            "noise_rate": 0.4,
            "backbone": "small_resnet",
            "pretrained": False,
            "image_size": 16,
            "augmentation": "affine",
            "cache_images": True,
            "num_train_epochs": 150,
            "total_batch_size": 64,
            "per_device_eval_batch_size": 256,
            "learning_rate": 5e-3,
            "weight_decay": 1e-4,
            "lr_scheduler_type": "cosine",
            "max_grad_norm": 0.0,
            "warmup_epochs": 30,
            "large_loss_rate": 0.0134,
            "save_strategy": "steps",
            "save_steps": 0.1,
        },
    ),
    "scenes": Recipe(
        name="scenes",
        load=load_scenes,
        data=ScenesArguments,
        description="""\
BCE, Mixup and BalanceMix with a pretrained backbone on scenes of clothes: Fashion-MNIST items on coloured canvases.

--data_dir DIR holds the four files of Fashion-MNIST (train-images-idx3-ubyte.gz and so on), 30 MB, of
https://github.com/zalandoresearch/fashion-mnist. 1,500 training scenes with ten classes, the most
frequent in 939 of them, the rarest in 10; 40% of the positives are moved to another class.
""",
        defaults={
            **BOOKKEEPING,
            "output_dir": "runs/scenes",
            "methods": ["bce", "mixup", "balancemix"],
            "noise": "mislabel",
            "noise_rate": 0.4,
            "backbone": "tf_efficientnet_lite0.in1k",
            "image_size": 96,
            "augmentation": "affine",
            "cache_images": True,
            "num_train_epochs": 10,
            "total_batch_size": 32,
            "per_device_eval_batch_size": 128,
            "learning_rate": 1e-3,
            "weight_decay": 1e-4,
            "lr_scheduler_type": "cosine",
            "max_grad_norm": 0.0,
            "warmup_epochs": 2,
            "large_loss_rate": 0.2,
            "channels_last": True,
            "medium_shot_from": 50,
            "many_shot_from": 300,
        },
    ),
    "coco": Recipe(
        name="COCO",
        load=load_coco,
        data=CocoArguments,
        description="""\
BalanceMix on MS COCO with the paper's settings.

--data_dir DIR holds annotations/instances_train2017.json, annotations/instances_val2017.json and the folders train2017
and val2017 with the images, or the same with 2014 (https://cocodataset.org/#download). A GPU is needed to finish: the
paper's 50 epochs are 91,600 steps of 64 image pairs at 448 px.
""",
        defaults={
            **PAPER,
            "output_dir": "runs/coco",
            "total_batch_size": 64,
            "num_train_epochs": 50,
            "warmup_epochs": 10,
            "large_loss_rate": 0.04,
        },
    ),
    "voc": Recipe(
        name="VOC",
        load=load_voc,
        data=VocArguments,
        description="""\
BalanceMix on Pascal VOC with the paper's settings.

--data_dir DIR holds VOCdevkit/VOC2007 and VOCdevkit/VOC2012, as the official archives unpack. Trained on 07+12
trainval (16,551 images), tested on VOC2007 test. A GPU is needed to finish: the paper's 20 epochs are 10,340 steps of
32 image pairs at 448 px.
""",
        defaults={
            **PAPER,
            "output_dir": "runs/voc",
            "total_batch_size": 32,
            "num_train_epochs": 20,
            "warmup_epochs": 5,
            "large_loss_rate": 0.1,
        },
    ),
    "deepfashion": Recipe(
        name="DeepFashion",
        load=load_deepfashion,
        data=DeepFashionArguments,
        description="""\
BalanceMix on the fine-grained attributes of DeepFashion, whose labels are noisy as they come.

--data_dir DIR holds Anno_fine/ and Img/ of the "Category and Attribute Prediction Benchmark"
(https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html): 26 attributes, 16,000 training images (its train and val),
4,000 test images. A GPU is needed to finish: the paper's 40 epochs are 10,000 steps of 64 image pairs at 448 px.
""",
        defaults={
            **PAPER,
            "output_dir": "runs/deepfashion",
            "total_batch_size": 64,
            "num_train_epochs": 40,
            "warmup_epochs": 5,
            "large_loss_rate": 0.05,
        },
    ),
    "folder": Recipe(
        name="folder",
        load=load_folder,
        data=FolderArguments,
        trainer_options=("image_column", "label_column", "label_delimiter"),
        description="""\
BalanceMix on your own images: a folder with metadata.jsonl or CSV, Parquet, a saved data set, or one of the Hub.

--data_dir DIR, or --dataset NAME_ON_THE_HUB. DIR holds train/ and test/, each with images and a metadata.jsonl with
lines such as {"file_name": "0001.jpg", "labels": ["cat", "dog"]}; with one part only, a fifth is held out for the
test. Labels may be names, ids, multi-hot, one 0/1 column per class or text such as "cat|dog".
""",
        defaults={
            **BOOKKEEPING,
            "output_dir": "runs/folder",
            "total_batch_size": 32,
            "num_train_epochs": 20,
            "large_loss_rate": 0.1,
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
    ),
}
