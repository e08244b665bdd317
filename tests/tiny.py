"""Tiny data sets, models and processors for the tests, made from nothing."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification
from transformers import ViTImageProcessor as Processor

from hf_balancemix import BalanceMixTrainingArguments

NAMES = ("ant", "bee", "cat", "dog", "eel")
SIZE = 16


def tiny_dataset(rows=48, seed=0, size=SIZE, names=NAMES):
    """Pictures whose colours tell the labels, some given labels wrong; one class is rare."""
    rng = np.random.default_rng(seed)
    clean = rng.random((rows, len(names))) < np.linspace(0.6, 0.1, len(names))
    pixels = rng.integers(0, 80, (rows, size, size, 3))
    for k in range(len(names)):
        pixels[:, k * 3 : k * 3 + 3, :, k % 3] += 150 * clean[:, k, None, None]
    given = clean ^ (rng.random(clean.shape) < 0.15)
    feature = datasets.List(datasets.ClassLabel(names=list(names)))
    features = datasets.Features({"image": datasets.Image(), "labels": feature, "clean_labels": feature})
    columns = {
        "image": [Image.fromarray(p.astype(np.uint8)) for p in pixels],
        "labels": [np.flatnonzero(row).tolist() for row in given],
        "clean_labels": [np.flatnonzero(row).tolist() for row in clean],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def plain_rows(rows):
    """The same pictures as the stock Trainer wants them: a list of tensors."""
    dataset = tiny_dataset(rows)
    pixels = processor()(list(dataset["image"]), return_tensors="pt")["pixel_values"]
    labels = torch.zeros(rows, len(NAMES))
    for row, ids in enumerate(dataset["labels"]):
        labels[row, ids] = 1
    return [{"pixel_values": p, "labels": y} for p, y in zip(pixels, labels, strict=True)]


def processor(size=SIZE):
    return Processor(size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def tiny_vit(num_labels=len(NAMES), dropout=0.0, seed=0):
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIZE,
        patch_size=8,
        num_labels=num_labels,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return ViTForImageClassification(config)


def tiny_resnet(num_labels=len(NAMES), seed=0):
    torch.manual_seed(seed)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=num_labels,
    )
    return ResNetForImageClassification(config)


def arguments(output_dir, **changes):
    """Arguments of a quick run; everything that writes or reports is off unless asked for."""
    values = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 32,
        "num_train_epochs": 2,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "warmup_epochs": 1,
        "augmentation": "affine",
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
        **changes,
    }
    return BalanceMixTrainingArguments(**values)


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def refused(error, parts, call, *args, **kwargs):
    """The call raises ``error`` with a message that has all ``parts``."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    print(message)
    for part in parts:
        assert part in message, f"{part!r} is missing in: {message}"
