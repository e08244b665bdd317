"""One-cycle schedule and weight decay: reference numbers, every length, exact resume."""

import pytest
import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from hf_balancemix import MultiLabelTrainer
from hf_balancemix.training.optimisation import decay_parameter_names, one_cycle
from tests import tiny

TRAIN = tiny.tiny_dataset(32)  # four steps of eight per epoch


class Groups(TrainerCallback):
    """Learning rate and momentum of every optimiser step."""

    def __init__(self):
        self.rates, self.momenta = [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        (momentum,) = {
            group["betas"][0] if "betas" in group else group["momentum"] for group in optimizer.param_groups
        }
        self.rates.append(rate)
        self.momenta.append(momentum)


def make(folder, groups, **changes):
    values = {"one_cycle": True, "learning_rate": 1e-4, "optim": "adamw_torch", "num_train_epochs": 3, **changes}
    trainer = MultiLabelTrainer(
        tiny.tiny_vit(dropout=0.1),
        tiny.arguments(folder, **values),
        train_dataset=TRAIN,
        processing_class=tiny.processor(),
        callbacks=[groups],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def sgd(momentum=0.9, lr=1e-4):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=momentum)


def walk(optimizer, steps):
    schedule, rates, momenta = one_cycle(optimizer, steps), [], []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0].get("momentum"))
        optimizer.step()
        schedule.step()
    return rates, momenta


# ---- the schedule ----


def test_reference_numbers(vectors):
    vector = vectors["18_schedules"]
    settings = vector["inputs"]["onecycle"]
    rates, momenta = walk(sgd(lr=settings["max_lr"]), settings["total_steps"])
    assert rates == pytest.approx(vector["expected"]["onecycle"], abs=1e-12)
    # Momentum mirrors the rate: 0.95 at both ends, 0.85 at the peak.
    assert momenta[0] == momenta[-1] == pytest.approx(0.95)
    assert momenta[1] == pytest.approx(0.85)
    assert sorted(momenta[1:]) == momenta[1:]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_a_run_follows_it(tmp_path, vectors, accumulation, optim):
    """Per optimiser step, whatever ``lr_scheduler_type`` says; the optimiser's own momentum gives way."""
    settings = vectors["18_schedules"]["inputs"]["onecycle"]
    groups = Groups()
    trainer = make(
        tmp_path,
        groups,
        learning_rate=settings["max_lr"],
        max_steps=settings["total_steps"],
        gradient_accumulation_steps=accumulation,
        optim=optim,
        optim_args="momentum=0.9" if optim == "sgd" else None,
        lr_scheduler_type="cosine",
        warmup_steps=3,
    )
    trainer.train()
    assert groups.rates == pytest.approx(vectors["18_schedules"]["expected"]["onecycle"], abs=1e-12)
    assert groups.momenta[:2] == pytest.approx([0.95, 0.85])


@pytest.mark.parametrize("steps", range(1, 13))
def test_any_length(steps):
    rates, _ = walk(sgd(lr=1.0), steps)
    assert rates[-1] == pytest.approx(1 / 250_000)
    peak = max(range(steps), key=rates.__getitem__)
    assert peak <= steps / 5
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if steps >= 5:
        assert rates[0] == pytest.approx(1 / 25)


def test_an_optimiser_without_momentum_gets_none():
    assert set(walk(sgd(momentum=0.0), 10)[1]) == {0.0}
    assert set(walk(torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(1))]), 10)[1]) == {None}


def test_groups_keep_their_own_peaks():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(parameters, (0.1, 1.0), strict=True)])
    schedule = one_cycle(optimizer, 10)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.1, 1.0])


# ---- resumed and repeated ----


def test_resume_is_exact(tmp_path):
    alone = Groups()
    first = make(tmp_path, alone, save_strategy="steps", save_steps=3)
    first.train()
    assert len(alone.rates) == 12
    for step in (3, 6):
        groups = Groups()
        resumed = make(tmp_path / "resumed", groups)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert groups.rates == alone.rates[step:]
        assert groups.momenta == alone.momenta[step:]
        assert tiny.same_weights(tiny.weights_of(resumed.model), tiny.weights_of(first.model))


def test_another_length_or_schedule_is_refused(tmp_path):
    make(tmp_path, Groups(), save_strategy="epoch").train()
    checkpoint = str(tmp_path / "checkpoint-4")
    longer = make(tmp_path, Groups(), num_train_epochs=5)
    parts = ("one-cycle run over 20 optimiser steps, found one over 12", "same `num_train_epochs`")
    tiny.refused(ValueError, parts, longer.train, checkpoint)
    other = make(tmp_path, Groups(), one_cycle=False)
    tiny.refused(ValueError, ("Cannot resume", "`one_cycle` was True, is now False"), other.train, checkpoint)
    other = make(tmp_path, Groups(), weight_decay_on="matrices")
    parts = ("Cannot resume", "`weight_decay_on` was 'weights', is now 'matrices'")
    tiny.refused(ValueError, parts, other.train, checkpoint)


def test_a_second_run_of_one_trainer_has_the_same_peak(tmp_path):
    groups = Groups()
    trainer = make(tmp_path, groups)
    trainer.train()
    trainer.train()
    assert groups.rates[:12] == groups.rates[12:]
    assert max(groups.rates) > 0.9e-4


# ---- weight decay ----


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_weight_decay_on_matrices(tmp_path, kind):
    model = tiny.tiny_resnet() if kind == "resnet" else tiny.tiny_vit()
    names = decay_parameter_names(model, "matrices", ["not asked for"])
    assert not [name for name in names if name.endswith("bias") or "norm" in name]
    norms = (torch.nn.LayerNorm, torch.nn.BatchNorm2d)
    matrices = {
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if getattr(module, "weight", None) is not None and not isinstance(module, norms)
    }
    embeddings = {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"} if kind == "vit" else set()
    assert set(names) == matrices | embeddings


@pytest.mark.parametrize("kind", ["resnet", "vit"])
@pytest.mark.parametrize("which", ["weights", "all", "matrices"])
def test_the_optimiser_decays_what_was_asked_for(tmp_path, kind, which):
    model = tiny.tiny_resnet() if kind == "resnet" else tiny.tiny_vit()
    args = tiny.arguments(tmp_path, weight_decay=0.1, weight_decay_on=which)
    trainer = MultiLabelTrainer(model, args, train_dataset=TRAIN, processing_class=tiny.processor())
    decayed = {
        id(p) for group in trainer.create_optimizer().param_groups for p in group["params"] if group["weight_decay"]
    }
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    every = {name for name, _ in model.named_parameters()}
    flat = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    stock = set(Trainer.get_decay_parameter_names(trainer, model))
    assert names == {"all": every, "matrices": every - flat, "weights": stock}[which]
    # The Trainer's choice is another one: batch norm weights are in.
    assert (stock == every - flat) == (kind == "vit")
