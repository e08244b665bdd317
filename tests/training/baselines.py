"""What the tests of the baselines with plain Mixup share: data, a quick trainer, the steps of a run, ASL by hand."""

import copy

import torch
from transformers import PrinterCallback, TrainerCallback

from hf_balancemix.training.methods import METHODS
from tests import tiny

ROWS, STEPS, K = 24, 3, 5  # three steps of eight per epoch
TRAIN = tiny.tiny_dataset(ROWS)
EVAL = tiny.tiny_dataset(13, seed=9)
BASELINES = ("focal", "asl", "ll_r", "ll_ct")
# Values that differ from the defaults, so that one that is not handed on shows.
LOSS_OPTIONS = {
    "focal_gamma": 1.5,
    "focal_alpha": 0.3,
    "asl_gamma_negative": 3.0,
    "asl_gamma_positive": 1.0,
    "asl_margin": 0.1,
    "asl_detach": False,
    "large_loss_rate": 5.0,
}


def make(folder, method, model=None, train=TRAIN, callbacks=(), cls=None, **changes):
    options = {"learning_rate": 0.01, **LOSS_OPTIONS, **METHODS[method].options, **changes}
    trainer = (cls or METHODS[method].trainer)(
        model if model is not None else tiny.tiny_vit(),
        tiny.arguments(folder, **options),
        train_dataset=train,
        eval_dataset=EVAL,
        processing_class=tiny.processor(),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def recorded(trainer):
    """Train; per optimiser step the epoch, a copy of the model before it, its micro-batches and its gradients."""
    steps, batches, compute_loss = [], [], trainer.compute_loss

    def remember(model, inputs, *args, **kwargs):
        loss = compute_loss(model, inputs, *args, **kwargs)
        batches.append({**inputs, "loss": float(loss.detach())})
        return loss

    class BeforeStep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            model = copy.deepcopy(trainer.model)  # without gradients
            gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
            steps.append({"epoch": trainer._epoch(), "model": model, "gradients": gradients, "batches": list(batches)})
            batches.clear()

    trainer.compute_loss = remember
    trainer.add_callback(BeforeStep())
    trainer.train()
    return steps


def asl(x, y):
    f = torch.sigmoid(x)
    if y:
        return -(1 - f) * torch.log(f)
    if f <= 0.1:
        return 0 * x
    return -((f - 0.1) ** 3) * torch.log(1.1 - f)


def multi_hot(dataset):
    hot = torch.zeros(len(dataset), K)
    for row, ids in enumerate(dataset["labels"]):
        hot[row, ids] = 1
    return hot
