"""One optimiser step of the stock Trainer with a loss of ours: the norm of its gradient.

In its own process or processes: ``python -m tests.losses.stock_step '[{"loss": "asl", ...}, ...]'``.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import ConvNextConfig, ConvNextForImageClassification, Trainer, TrainerCallback, TrainingArguments

from hf_balancemix.losses import AsymmetricLoss, BCELoss, FocalLoss, LargeLoss
from hf_balancemix.recipe.processes import leave_process_group
from tests import tiny

LOSSES = {
    "bce": BCELoss,
    "bce, mean": lambda: BCELoss("mean"),
    "focal": lambda: FocalLoss(gamma=1.5, alpha=0.3),
    "asl": AsymmetricLoss,
    # Rankings are per batch; with this rate every negative is changed, whatever the batch.
    "ll_ct": lambda: LargeLoss(rate=1.0, correct=True),
}


def tiny_convnext():
    """A model whose forward takes no loss arguments, and that has no batch statistics."""
    torch.manual_seed(0)
    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=len(tiny.NAMES))
    return ConvNextForImageClassification(config)


MODELS = {"vit": tiny.tiny_vit, "convnext": tiny_convnext}


def gradient_norm(model):
    return float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).double().norm())


def train(output_dir, loss, model, batch, accumulation, **options):
    """Train for a step on 16 images; the trainer and the gradient's norm before the step."""
    quiet = {"use_cpu": True, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    values = {"max_steps": 1, "max_grad_norm": 0.0, **quiet, **options}
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    args = TrainingArguments(str(output_dir), **sizes, **values)
    rows = tiny.plain_rows(16)
    trainer = Trainer(MODELS[model](), args, train_dataset=rows, eval_dataset=rows, compute_loss_func=LOSSES[loss]())
    norms = []

    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            norms.append(gradient_norm(trainer.model))

    trainer.add_callback(Norm())
    trainer.train()
    return trainer, norms[0]


if __name__ == "__main__":
    results = []
    for job in json.loads(sys.argv[1]):
        finished, norm = train(**job)
        loss = finished.evaluate()["eval_loss"]
        results.append({"norm": norm, "eval_loss": loss, "world_size": finished.args.world_size})
    (Path(job["output_dir"]) / f"result-{finished.args.process_index}.json").write_text(json.dumps(results), "utf-8")
    del finished
    leave_process_group()
