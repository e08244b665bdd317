"""Same seed, same result, whatever the loader's workers; the truth is never read."""

import datasets
import numpy as np
import pytest

from hf_balancemix.training.methods import METHODS
from tests import tiny


def trained(folder, dataset, method="balancemix", **changes):
    args = tiny.arguments(folder, num_train_epochs=3, relabel_threshold=0.55, **{**METHODS[method].options, **changes})
    trainer = METHODS[method].trainer(
        tiny.tiny_resnet(), args, train_dataset=dataset, processing_class=tiny.processor()
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("schedule", ["step", "epoch", "reuse"])
def test_same_seed_same_result_with_any_number_of_workers(tmp_path, schedule):
    dataset = tiny.tiny_dataset(32)
    reference = trained(tmp_path, dataset, relabel_views=schedule)
    for changes in ({}, {"dataloader_num_workers": 2}, {"cache_images": True}):
        again = trained(tmp_path, dataset, relabel_views=schedule, **changes)
        assert tiny.same_weights(tiny.weights_of(again.model), tiny.weights_of(reference.model)), changes
        assert again.label_state.digest() == reference.label_state.digest()
    other = trained(tmp_path, dataset, relabel_views=schedule, seed=1)
    assert not tiny.same_weights(tiny.weights_of(other.model), tiny.weights_of(reference.model))


@pytest.mark.parametrize("method", METHODS)
def test_training_never_reads_the_clean_labels(tmp_path, method):
    dataset = tiny.tiny_dataset(32)
    clean = dataset["clean_labels"]
    order = np.random.default_rng(0).permutation(len(dataset))
    permuted = dataset.remove_columns("clean_labels").add_column(
        "clean_labels", [clean[int(i)] for i in order], feature=dataset.features["clean_labels"]
    )
    assert list(permuted["clean_labels"]) != list(clean)
    first, second = trained(tmp_path, dataset, method), trained(tmp_path, permuted, method)
    without = trained(tmp_path, dataset.remove_columns("clean_labels"), method)
    weights = tiny.weights_of(first.model)
    assert tiny.same_weights(weights, tiny.weights_of(second.model))
    assert tiny.same_weights(weights, tiny.weights_of(without.model))
    if method == "balancemix":  # the diagnostics do read them
        assert first.state.log_history[-1]["label_precision"] != second.state.log_history[-1]["label_precision"]
        assert "label_precision" not in without.state.log_history[-1]


def test_rows_read_from_disk_are_the_rows_in_memory(tmp_path):
    dataset = tiny.tiny_dataset(32)
    dataset.save_to_disk(tmp_path / "set")
    first = trained(tmp_path, dataset)
    second = trained(tmp_path, datasets.load_from_disk(tmp_path / "set"))
    assert tiny.same_weights(tiny.weights_of(first.model), tiny.weights_of(second.model))
