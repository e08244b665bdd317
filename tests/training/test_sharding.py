"""FSDP is refused where accelerate would pass it over in silence, or fail in its own code."""

import pytest

from hf_balancemix import MultiLabelTrainer
from hf_balancemix.checks import check_sharding
from tests import tiny


@pytest.mark.parametrize("said", ["true", "True"])
def test_fsdp_that_would_be_passed_over_is_refused(tmp_path, monkeypatch, said):
    data = {"train_dataset": tiny.tiny_dataset(16), "processing_class": tiny.processor()}
    trainer = MultiLabelTrainer(tiny.tiny_vit(), tiny.arguments(tmp_path), **data)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", said)  # as `accelerate launch` sets it
    tiny.refused(ValueError, ("Expected several GPUs with FSDP", "Start without FSDP"), trainer.train)


def test_models_that_accelerate_cannot_divide_are_refused():
    parts = ("input embeddings", "ResNetForImageClassification", "plain data parallelism")
    tiny.refused(ValueError, parts, check_sharding, tiny.tiny_resnet(), True, True)
    check_sharding(tiny.tiny_vit(), True, True)
    check_sharding(tiny.tiny_resnet(), False, False)
