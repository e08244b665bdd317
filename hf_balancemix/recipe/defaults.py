"""Default options that recipes share."""

from __future__ import annotations

from typing import Any

# Results once per epoch, one checkpoint per epoch of which the last is kept, nothing sent anywhere.
BOOKKEEPING: dict[str, Any] = {
    "seed": 0,
    "eval_strategy": "epoch",
    "logging_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "log_level": "warning",
    "report_to": "none",
}

# The paper's training, common to COCO, VOC and DeepFashion (its appendix; what it leaves open is said in the help).
PAPER: dict[str, Any] = {
    **BOOKKEEPING,
    "backbone": "resnet50.tv_in1k",
    "head": "ml_decoder",  # the paper says "a Transformer decoder" and cites it among others
    "image_size": 448,
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "learning_rate": 0.01,
    "weight_decay": 1e-4,
    "weight_decay_on": "all",
    "lr_scheduler_type": "cosine",  # to zero, per step, without warm-up
    "max_grad_norm": 0.0,  # clipping would undo the scale of a loss that sums over classes
    "augmentation": "randaugment_asl",
    "mix_alpha": 4.0,
    "relabel_views": "step",
}
