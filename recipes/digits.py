"""BCE, Mixup and BalanceMix on 1,797 handwritten digits with long-tailed, 40% mislabelled attributes.

    accelerate launch recipes/digits.py

Needs: nothing but the package (the digits come with scikit-learn); runs offline.
"""

from hf_balancemix.data.digits import RARE_CLASSES, load_digits_attributes
from hf_balancemix.recipe import BOOKKEEPING, Recipe, main

RECIPE = Recipe(
    name="digits",
    load=load_digits_attributes,
    groups={"rare": RARE_CLASSES},
    description=__doc__,
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
        "save_strategy": "steps",
        "save_steps": 0.1,
    },
)

if __name__ == "__main__":
    main(RECIPE)
