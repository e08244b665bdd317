"""Private hooks and facts of transformers that the trainers stand on: when an upgrade changes one, this says which."""

import inspect

import pytest
import torch
from safetensors import safe_open
from transformers import AutoImageProcessor, Trainer, TrainingArguments

from hf_balancemix.build import build_model
from hf_balancemix.label_files import FILE_NAME
from hf_balancemix.training.multilabel import MultiLabelTrainer
from tests import tiny

PARAMETERS = {
    "_get_dataloader": ["dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_load_best_model": [],
    "_save_optimizer_and_scheduler": ["output_dir"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
    "_get_output_dir": ["trial"],
    "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "create_scheduler": ["num_training_steps", "optimizer"],
    "evaluation_loop": ["dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_signatures(name):
    assert list(inspect.signature(getattr(Trainer, name)).parameters)[1:] == PARAMETERS[name]


def test_the_switch_for_loss_scaling_exists():
    assert hasattr(Trainer, "loss_is_scaled_for_ga")
    assert MultiLabelTrainer.loss_is_scaled_for_ga is False


def test_the_private_hooks_are_called(tmp_path, monkeypatch):
    called = []
    for name in ("_load_from_checkpoint", "_save_optimizer_and_scheduler", "_load_optimizer_and_scheduler"):
        original = getattr(MultiLabelTrainer, name)

        def spy(self, *args, original=original, name=name, **kwargs):
            called.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(MultiLabelTrainer, name, spy)
    args = tiny.arguments(tmp_path, save_strategy="epoch")
    for resume in (None, True):
        trainer = MultiLabelTrainer(
            tiny.tiny_resnet(), args, train_dataset=tiny.tiny_dataset(16), processing_class=tiny.processor()
        )
        trainer.train(resume_from_checkpoint=resume)
    save = "_save_optimizer_and_scheduler"
    assert called == [save, save, "_load_from_checkpoint", "_load_optimizer_and_scheduler"]
    assert all((folder / FILE_NAME).is_file() for folder in tmp_path.glob("checkpoint-*"))


def test_random_state_is_restored_before_an_epoch_and_after_its_first_batch():
    """Where `_run_epoch` restores it decides what may draw random numbers before (see `training/refresh.py`)."""
    source = inspect.getsource(Trainer._run_epoch)
    assert source.count("_load_rng_state") == 2
    assert source.index("_load_rng_state") < source.index("iter(train_dataloader)") < source.rindex("_load_rng_state")


def test_every_batch_is_normalised_on_its_way_to_the_model(tmp_path):
    """Loaders give bytes; `_prepare_inputs` has the last word on batches of training, evaluation and prediction."""
    dataset, seen = tiny.tiny_dataset(16), []
    args = tiny.arguments(tmp_path, num_train_epochs=1, augmentation="none", second_sampler="none")
    trainer = MultiLabelTrainer(
        tiny.tiny_resnet(), args, train_dataset=dataset, eval_dataset=dataset, processing_class=tiny.processor()
    )
    trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    expected = tiny.processor()(list(dataset["image"]), return_tensors="pt")["pixel_values"]
    for work in (trainer.train, trainer.evaluate, lambda: trainer.predict(dataset)):
        seen.clear()
        work()
        pixels = torch.cat(seen)
        assert pixels.dtype == torch.float32
        order = [int((expected - row).abs().flatten(1).amax(dim=1).argmin()) for row in pixels]
        assert sorted(order) == list(range(16))
        torch.testing.assert_close(pixels, expected[order], atol=1e-6, rtol=0)
    assert next(iter(trainer.get_train_dataloader()))["pixel_values"].dtype == torch.uint8


def test_accelerate_keeps_a_sampler_that_is_no_random_sampler(tmp_path):
    trainer = MultiLabelTrainer(
        tiny.tiny_resnet(),
        tiny.arguments(tmp_path),
        train_dataset=tiny.tiny_dataset(16),
        processing_class=tiny.processor(),
    )
    assert type(trainer.get_train_dataloader().batch_sampler.sampler).__name__ == "PairSampler"


def test_the_stock_trainer_cannot_reload_a_vit(tmp_path):
    """Why `checkpoints.load_weights` exists: the file's names are not the model's. Equal: mended upstream."""
    model = tiny.tiny_vit()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        written = set(file.keys())
    assert written != set(model.state_dict())
    assert len(written & set(model.state_dict())) < len(written) / 2


def test_the_stock_trainer_drops_evaluation_images_with_drop_last(tmp_path):
    """Why our evaluation loaders switch `dataloader_drop_last` off."""
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, per_device_eval_batch_size=4, dataloader_drop_last=True, report_to="none"
    )
    model = tiny.tiny_vit()
    model.config.problem_type = "multi_label_classification"
    assert len(Trainer(model, args).predict(tiny.plain_rows(10)).predictions) == 8
    ours = MultiLabelTrainer(
        tiny.tiny_vit(), tiny.arguments(tmp_path, per_device_eval_batch_size=4), processing_class=tiny.processor()
    )
    assert len(ours.predict(tiny.tiny_dataset(10)).predictions) == 10


def test_a_saved_timm_model_ignores_the_processor_file(tmp_path):
    """Why `build_model` writes the preprocessing of a timm backbone into its configuration."""
    model, _ = build_model("resnet10t", tiny.NAMES, 32, pretrained=False)
    model.save_pretrained(tmp_path)
    tiny.processor(48).save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "TimmWrapperImageProcessor"
    assert loaded(tiny.tiny_dataset(1)[0]["image"])["pixel_values"].shape[-2:] == (32, 32)
