"""Where images are augmented changes neither what is trained nor what is measured."""

import pytest
import torch
from transformers import TrainerCallback

from hf_balancemix import BalanceMixTrainer, BalanceMixTrainingArguments, MultiLabelTrainer
from hf_balancemix.training.methods import METHODS
from tests import tiny

TRAIN = tiny.tiny_dataset(40)


def trained(folder, trainer, place, **changes):
    options = {"learning_rate": 0.01, "warmup_epochs": 1, "num_train_epochs": 3, "relabel_threshold": 0.55, **changes}
    made = trainer(
        tiny.tiny_vit(),
        tiny.arguments(folder / place, augment_on=place, **options),
        train_dataset=TRAIN,
        eval_dataset=tiny.tiny_dataset(10, seed=1),
        processing_class=tiny.processor(),
    )
    seen = []

    class Seen(TrainerCallback):
        def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
            batch = next(iter(train_dataloader.base_dataloader))
            seen.append("drawn" in batch)

    made.add_callback(Seen())
    made.train()
    assert set(seen) == {place == "device"}
    return tiny.weights_of(made.model), made.label_state.digest()


CASES = {
    "plain, randaugment_asl": (MultiLabelTrainer, {"augmentation": "randaugment_asl"}),
    "mixup, cutout": (MultiLabelTrainer, {"second_sampler": "batch", "cutout": 0.5}),
    "reuse": (BalanceMixTrainer, {"relabel_views": "reuse", "augmentation": "randaugment_asl"}),
    "epoch, workers": (BalanceMixTrainer, {"relabel_views": "epoch", "dataloader_num_workers": 2}),
    "step, accumulated": (BalanceMixTrainer, {"relabel_views": "step", "gradient_accumulation_steps": 2}),
    "stream, randaugment": (BalanceMixTrainer, {"relabel_views": "stream", "augmentation": "randaugment"}),
    "no augmentation": (BalanceMixTrainer, {"augmentation": "none"}),
    "t_estimator": (METHODS["t_estimator"].trainer, {"second_sampler": "batch", "augmentation": "randaugment_asl"}),
    "co_teaching": (METHODS["co_teaching"].trainer, {"second_sampler": "batch", "augmentation": "randaugment_asl"}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_device_trains_what_the_workers_do(tmp_path, case):
    trainer, options = CASES[case]
    (weights, state), (others, other_state) = (trained(tmp_path, trainer, p, **options) for p in ("workers", "device"))
    assert tiny.same_weights(weights, others)
    assert state == other_state


def test_the_cpu_leaves_it_to_the_workers():
    options = {"output_dir": ".", "report_to": "none", "use_cpu": True}
    found = [
        BalanceMixTrainingArguments(**options, augment_on=p).augments_on_device for p in ("auto", "workers", "device")
    ]
    assert found == [False, False, True]
    args = BalanceMixTrainingArguments(**options)
    args.__dict__["_setup_devices"] = torch.device("cuda")  # cached there
    assert args.augments_on_device
    tiny.refused(ValueError, ["`augment_on`", "'gpu'"], BalanceMixTrainingArguments, **options, augment_on="gpu")
