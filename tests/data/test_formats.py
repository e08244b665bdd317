"""Formats and transforms of the data sets that users hand to the trainers."""

import pytest

from hf_balancemix import BalanceMixTrainer
from hf_balancemix.data.formats import as_stored
from hf_balancemix.data.noise import NoiseSpec, NoiseTransform, inject_noise
from tests import tiny

SPECS = [NoiseSpec("mislabel", 0.5, 3), NoiseSpec("flip", 0.1, 4)]


def clean_set():
    dataset = tiny.tiny_dataset(24).remove_columns("clean_labels")
    return dataset.add_column("id", range(100, 124))


def trained(folder, dataset):
    args = tiny.arguments(folder, num_train_epochs=2)
    trainer = BalanceMixTrainer(tiny.tiny_resnet(), args, train_dataset=dataset, processing_class=tiny.processor())
    trainer.train()
    return trainer


def test_noise_on_the_fly_trains_as_noise_in_columns(tmp_path):
    dataset = clean_set()
    mapped = trained(tmp_path, inject_noise(dataset, SPECS))
    on_the_fly = trained(tmp_path, dataset.with_transform(NoiseTransform.from_dataset(dataset, SPECS)))
    plain = trained(tmp_path, dataset)
    assert on_the_fly.label_state.digest() == mapped.label_state.digest()
    assert tiny.same_weights(tiny.weights_of(on_the_fly.model), tiny.weights_of(mapped.model))
    assert plain.label_state.digest() != mapped.label_state.digest()
    assert on_the_fly.clean_labels.equal(plain.label_state.labels)
    assert on_the_fly.run_facts()["noise"] == mapped.run_facts()["noise"] != []


@pytest.mark.parametrize("layout", ["torch", "numpy", "arrow"])
def test_an_output_format_changes_nothing(tmp_path, layout):
    dataset = clean_set()
    plain, formatted = trained(tmp_path, dataset), trained(tmp_path, dataset.with_format(layout))
    assert tiny.same_weights(tiny.weights_of(plain.model), tiny.weights_of(formatted.model))


def test_any_other_transform_is_refused():
    def brighten(batch):
        return batch

    with pytest.raises(ValueError, match=r"without transform, found one with brighten.*with_format\(None\)"):
        as_stored(clean_set().with_transform(brighten))
