"""The learning rate that the recipes ask for is the paper's: cosine to zero, per step."""

import pytest
from transformers import TrainerCallback

from hf_balancemix import MultiLabelTrainer
from tests import tiny


def test_cosine_to_zero(tmp_path, vectors):
    vector = vectors["18_schedules"]
    settings, expected = vector["inputs"]["cosine"], vector["expected"]["cosine"]
    seen = []

    class Rates(TrainerCallback):
        def on_step_begin(self, args, state, control, lr_scheduler, **kwargs):
            seen.append(lr_scheduler.get_last_lr()[0])

        def on_train_end(self, args, state, control, lr_scheduler, **kwargs):
            seen.append(lr_scheduler.get_last_lr()[0])

    args = tiny.arguments(
        tmp_path, learning_rate=settings["lr"], max_steps=settings["steps"], lr_scheduler_type="cosine"
    )
    trainer = MultiLabelTrainer(
        tiny.tiny_resnet(), args, train_dataset=tiny.tiny_dataset(32), processing_class=tiny.processor()
    )
    trainer.add_callback(Rates())
    trainer.train()
    assert seen == pytest.approx(expected, abs=1e-12)
