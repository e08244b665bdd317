"""Labels that are left out of the evaluation (`ignored_labels`)."""

import datasets
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from hf_balancemix import MultiLabelTrainer
from tests import tiny

LISTS = datasets.List(datasets.ClassLabel(names=list(tiny.NAMES)))


def with_ignored(dataset, ignored):
    lists = [np.flatnonzero(row).tolist() for row in ignored]
    return dataset.add_column("ignored_labels", lists).cast_column("ignored_labels", LISTS)


def make(folder, **inputs):
    return MultiLabelTrainer(tiny.tiny_resnet(), tiny.arguments(folder), processing_class=tiny.processor(), **inputs)


def multi_hot(dataset):
    labels = np.zeros((len(dataset), len(tiny.NAMES)), dtype=int)
    for row, ids in enumerate(dataset["labels"]):
        labels[row, ids] = 1
    return labels


def test_map_and_loss_without_the_ignored(tmp_path):
    plain = tiny.tiny_dataset(40).remove_columns("clean_labels")
    labels = multi_hot(plain)
    ignored = (np.random.default_rng(1).random(labels.shape) < 0.3) & (labels == 0)
    marked = with_ignored(plain, ignored)
    trainer = make(tmp_path, eval_dataset=marked)
    metrics = trainer.evaluate()
    predicted = trainer.predict(marked)
    assert (predicted.label_ids == np.where(ignored, -1, labels)).all()
    counted = ~ignored
    logits = predicted.predictions
    expected = [
        average_precision_score(labels[counted[:, k], k], logits[counted[:, k], k]) for k in range(len(tiny.NAMES))
    ]
    assert metrics["eval_map"] == pytest.approx(100 * np.mean(expected))
    assert metrics["eval_map"] != pytest.approx(make(tmp_path, eval_dataset=plain).evaluate()["eval_map"])
    entries = torch.nn.BCEWithLogitsLoss(reduction="none")(torch.tensor(logits), torch.tensor(labels).float())
    # The mean of batch means: 32 and 8 images.
    per_image = (entries.numpy() * counted).sum(axis=1)
    assert metrics["eval_loss"] == pytest.approx(per_image.mean(), rel=1e-5)


def test_present_and_ignored_at_once_is_refused_before_training(tmp_path):
    plain = tiny.tiny_dataset(8)
    ignored = np.zeros((8, len(tiny.NAMES)), dtype=bool)
    row, k = next((row, ids[0]) for row, ids in enumerate(plain["labels"]) if ids)
    ignored[row, k] = True
    with pytest.raises(ValueError, match=f"found '{tiny.NAMES[k]}' in both, in row {row}"):
        make(tmp_path, train_dataset=tiny.tiny_dataset(16), eval_dataset=with_ignored(plain, ignored))


def test_training_refuses_ignored_labels(tmp_path):
    marked = with_ignored(tiny.tiny_dataset(8), np.zeros((8, len(tiny.NAMES)), dtype=bool))
    with pytest.raises(ValueError, match="only evaluation leaves labels out"):
        make(tmp_path, train_dataset=marked)
