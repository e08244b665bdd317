"""The recipes' defaults are the paper's: what the optimiser and the schedule that were built really do."""

import pytest
import torch

from hf_balancemix.recipe.command import read_command
from hf_balancemix.training.methods import METHODS
from recipes import coco, deepfashion, folder, voc
from tests import tiny
from tests.distributed.launch import ROOT

PAPER = {
    # epochs, warm-up epochs, images per step (appendix, "Implementation details")
    "coco": (coco.RECIPE, 50, 10, 64),
    "voc": (voc.RECIPE, 20, 5, 32),
    "deepfashion": (deepfashion.RECIPE, 40, 5, 64),
}


def plan(recipe, tmp_path, *options):
    command = read_command(recipe, ["--use_cpu", "--output_dir", str(tmp_path), *options])
    return command.plans(recipe.name)[0]


def build(recipe, tmp_path, *options, steps=200):
    args = plan(recipe, tmp_path, *options).args
    args.cache_images = False
    trainer = METHODS["balancemix"].trainer(
        tiny.tiny_resnet(),
        args,
        train_dataset=tiny.tiny_dataset(64),
        eval_dataset=tiny.tiny_dataset(8),
        processing_class=tiny.processor(),
    )
    trainer.create_optimizer_and_scheduler(steps)
    return trainer


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_training(name, tmp_path):
    recipe, epochs, warmup, batch = PAPER[name]
    trainer = build(recipe, tmp_path)
    optimizer, schedule = trainer.optimizer, trainer.lr_scheduler
    assert type(optimizer) is torch.optim.SGD
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert {id(p) for p in decayed} == {id(p) for p in trainer.model.parameters()}
    for group in optimizer.param_groups:
        assert group["momentum"] == 0.9
        assert not group["nesterov"]
        assert group["dampening"] == 0
        assert group["initial_lr"] == 0.01
        assert group["weight_decay"] in ([1e-4] if group["params"] else [0, 1e-4])
    rates = []
    for _ in range(200):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    rates.append(schedule.get_last_lr()[0])
    # cosine per step from the first one, to zero, without restart
    expected = [0.005 * (1 + torch.cos(torch.tensor(t / 200 * torch.pi)).item()) for t in range(201)]
    assert rates == pytest.approx(expected, abs=1e-8)
    args = trainer.args
    assert args.max_grad_norm == 0
    assert (args.num_train_epochs, args.warmup_epochs, args.per_device_train_batch_size) == (epochs, warmup, batch)
    assert args.mix_alpha == 4
    assert args.relabel_threshold == 0.975
    assert args.class_reduction == "sum"
    assert args.augmentation == "randaugment_asl"
    assert args.relabel_views == "step"
    command = read_command(recipe, ["--output_dir", str(tmp_path)])
    assert (command.options.backbone, command.options.image_size) == ("resnet50.tv_in1k", 448)
    assert command.methods == ["balancemix"]
    assert command.steps == {"do_train"}


def test_weight_decay_without_norms_and_biases(tmp_path):
    trainer = build(coco.RECIPE, tmp_path, "--weight_decay_on", "weights")
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    plain = {names[id(p)] for g in trainer.optimizer.param_groups if not g["weight_decay"] for p in g["params"]}
    assert plain
    assert all(name.endswith("bias") or "norm" in name for name in plain)


@pytest.mark.parametrize(
    ("options", "threshold"),
    [
        (("--noise", "single_positive"), 0.55),
        (("--noise", "single_positive", "--relabel_threshold", "0.7"), 0.7),
        (("--noise", "single_positive", "--relabel_threshold", "0.975"), 0.975),
        (("--noise", "flip", "--noise_rate", "0.2"), 0.975),
    ],
)
def test_threshold_of_single_positive_noise(options, threshold, tmp_path):
    assert plan(coco.RECIPE, tmp_path, *options).args.relabel_threshold == threshold


def test_total_batch_size(tmp_path):
    def found(*options, recipe=coco.RECIPE):
        made = plan(recipe, tmp_path, *options)
        return made.args.per_device_train_batch_size, made.settings["images_per_step"]

    assert found() == (64, 64)
    assert found("--gradient_accumulation_steps", "4") == (16, 64)
    assert found("--total_batch_size", "24", "--gradient_accumulation_steps", "3") == (8, 24)
    # the Trainer's own option takes over from the recipe's default
    assert found("--per_device_train_batch_size", "7", "--gradient_accumulation_steps", "2") == (7, 14)
    with pytest.raises(ValueError, match="divide, found 64. Choose a multiple of 3"):
        found("--gradient_accumulation_steps", "3")
    with pytest.raises(ValueError, match="found both"):
        found("--total_batch_size", "8", "--per_device_train_batch_size", "8")


def test_folder_recipe_passes_on_what_loading_needs(tmp_path):
    command = read_command(
        folder.RECIPE, ["--output_dir", str(tmp_path), "--label_column", "tags", "--class_names", "a", "b"]
    )
    assert command.data["label_column"] == "tags"
    assert command.data["class_names"] == ["a", "b"]
    assert command.args.label_column is None
    assert command.plans("folder")[0].settings["data"]["label_column"] == "tags"


def test_the_example_of_a_configuration_file(tmp_path):
    for recipe in (coco.RECIPE, voc.RECIPE):
        words = ["--use_cpu", f"--output_dir={tmp_path}", f"--config={ROOT / 'recipes' / 'mislabel40.yaml'}"]
        plans = read_command(recipe, words).plans(recipe.name)
        methods = ("bce", "mixup", "balancemix")
        assert [p.label for p in plans] == [f"{m}, seed {seed}" for seed in (0, 1, 2) for m in methods]
        assert {(p.settings["noise"], p.settings["noise_rate"]) for p in plans} == {("mislabel", 0.4)}
