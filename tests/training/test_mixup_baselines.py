"""Focal, ASL, LL-R and LL-Ct with plain Mixup: every step against plain loops, however it is divided or resumed."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import PrinterCallback, TrainerCallback

from hf_balancemix import BalanceMixTrainer, MultiLabelTrainer
from hf_balancemix.data.pairs import PairSampler
from hf_balancemix.training import objective
from hf_balancemix.training.methods import METHODS
from tests import tiny
from tests.distributed.launch import records, run

ROWS, STEPS, K = 24, 3, 5  # three steps of eight per epoch
TRAIN = tiny.tiny_dataset(ROWS)
EVAL = tiny.tiny_dataset(13, seed=9)
BASELINES = ("focal", "asl", "ll_r", "ll_ct")
# Values that differ from the defaults, so that one that is not handed on shows.
LOSS_OPTIONS = {
    "focal_gamma": 1.5,
    "focal_alpha": 0.3,
    "asl_gamma_negative": 3.0,
    "asl_gamma_positive": 1.0,
    "asl_margin": 0.1,
    "asl_detach": False,
    "large_loss_rate": 5.0,
}
# Of the 40 entries of a batch: none in the first epoch, then 2, then 4.
CHANGED = (0, 2, 4)


def make(folder, method, model=None, train=TRAIN, callbacks=(), cls=None, **changes):
    options = {"learning_rate": 0.01, **LOSS_OPTIONS, **METHODS[method].options, **changes}
    trainer = (cls or METHODS[method].trainer)(
        model if model is not None else tiny.tiny_vit(),
        tiny.arguments(folder, **options),
        train_dataset=train,
        eval_dataset=EVAL,
        processing_class=tiny.processor(),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def recorded(trainer):
    """Train; per optimiser step the epoch, a copy of the model before it, its micro-batches and its gradients."""
    steps, batches, compute_loss = [], [], trainer.compute_loss

    def remember(model, inputs, *args, **kwargs):
        loss = compute_loss(model, inputs, *args, **kwargs)
        batches.append({**inputs, "loss": float(loss.detach())})
        return loss

    class BeforeStep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            model = copy.deepcopy(trainer.model)  # without gradients
            gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
            steps.append({"epoch": trainer._epoch(), "model": model, "gradients": gradients, "batches": list(batches)})
            batches.clear()

    trainer.compute_loss = remember
    trainer.add_callback(BeforeStep())
    trainer.train()
    return steps


# ---- the losses again, an entry at a time ----


def bce(x, y):
    return F.softplus(-x if y else x)


def focal(x, y):
    f = torch.sigmoid(x)
    weight, missing = (0.3, 1 - f) if y else (0.7, f)
    return weight * missing**1.5 * bce(x, y)


def asl(x, y):
    f = torch.sigmoid(x)
    if y:
        return -(1 - f) * torch.log(f)
    if f <= 0.1:
        return 0 * x
    return -((f - 0.1) ** 3) * torch.log(1.1 - f)


def plain_entries(method, epoch, logits, labels):
    """B × K losses of one member's labels, in lists."""
    pairs = [list(zip(*rows, strict=True)) for rows in zip(logits.double(), labels.tolist(), strict=True)]
    if method in ("focal", "asl"):
        return [[{"focal": focal, "asl": asl}[method](x, y) for x, y in row] for row in pairs]
    losses = [[bce(x, y) for x, y in row] for row in pairs]
    places = [(i, k) for i, row in enumerate(pairs) for k, (_, y) in enumerate(row) if not y]
    places.sort(key=lambda place: -float(losses[place[0]][place[1]].detach()))
    for i, k in places[: math.ceil(CHANGED[epoch] * len(pairs) / 8)]:
        losses[i][k] = bce(pairs[i][k][0], 1) if method == "ll_ct" else 0 * pairs[i][k][0]
    return losses


def multi_hot(dataset):
    hot = torch.zeros(len(dataset), K)
    for row, ids in enumerate(dataset["labels"]):
        hot[row, ids] = 1
    return hot


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (4, 2)])
@pytest.mark.parametrize("method", BASELINES)
def test_every_step_agrees_with_plain_loops(tmp_path, method, batch, accumulation):
    """Pixels, partners, λ, loss and gradient. The large losses are ranked per member and micro-batch."""
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    trainer = make(tmp_path, method, augmentation="none", num_train_epochs=3, **sizes)
    hot, images = multi_hot(TRAIN), torch.stack([row["pixel_values"] for row in tiny.plain_rows(ROWS)])
    steps = recorded(trainer)
    assert [step["epoch"] for step in steps] == [0] * STEPS + [1] * STEPS + [2] * STEPS
    for number, step in enumerate(steps):
        stream = list(PairSampler(ROWS, 42, lambda step=step: step["epoch"], "batch", batch_size=8))
        items = stream[number % STEPS * 8 :][:8]
        assert sorted(m[0] for m, _, _ in items) == sorted(m[1] for m, _, _ in items)
        total = 0.0
        for part, found in enumerate(step["batches"]):
            own = items[part * batch :][:batch]
            assert found["index"].tolist() == [list(members) for members, _, _ in own]
            shares = [float(np.random.default_rng((token, 9)).beta(4, 4)) for _, token, _ in own]
            pairs = zip(shares, (members for members, _, _ in own), strict=True)
            mixed = [share * images[i] + (1 - share) * images[j] for share, (i, j) in pairs]
            logits = step["model"](pixel_values=torch.stack(mixed)).logits
            first, second = (
                plain_entries(method, step["epoch"], logits, hot[[members[m] for members, _, _ in own]])
                for m in (0, 1)
            )
            loss = sum(
                share * one + (1 - share) * other
                for share, ones, others in zip(shares, first, second, strict=True)
                for one, other in zip(ones, others, strict=True)
            )
            loss = loss / batch
            assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
            total = total + loss / accumulation
        total.backward()
        for name, parameter in step["model"].named_parameters():
            torch.testing.assert_close(step["gradients"][name], parameter.grad, rtol=1e-3, atol=1e-5)


# ---- the stream ----


@pytest.mark.parametrize(("rows", "drop_last"), [(24, True), (26, True), (26, False)])
def test_each_row_is_once_a_first_and_once_a_second_member(tmp_path, rows, drop_last):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trainer = make(tmp_path, "asl", train=tiny.tiny_dataset(rows), dataloader_drop_last=drop_last, **sizes)
    epochs = {}
    for step in recorded(trainer):
        index = torch.cat([batch["index"] for batch in step["batches"]])
        assert index.shape[1] == 2
        assert sorted(index[:, 0].tolist()) == sorted(index[:, 1].tolist())
        epochs.setdefault(step["epoch"], []).append(index)
    for index in epochs.values():
        for member in torch.cat(index).T.tolist():
            assert len(set(member)) == len(member) == (24 if drop_last else rows)
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))


def test_shares_are_not_folded(tmp_path):
    shares = torch.cat(
        [batch["mix_lambda"] for step in recorded(make(tmp_path, "focal")) for batch in step["batches"]]
    )
    assert (shares < 0.5).any()
    assert (shares > 0.5).any()
    balancemix = recorded(make(tmp_path, "balancemix", cls=BalanceMixTrainer, second_sampler="batch", loss="asl"))
    assert min(float(batch["mix_lambda"].min()) for step in balancemix for batch in step["batches"]) >= 0.5


@pytest.mark.parametrize("method", BASELINES)
def test_without_mixing_the_partners_do_not_matter(tmp_path, method):
    """α = 0 makes every λ 1; then it is the loss without pairs, bit for bit."""
    weights = []
    for changes in ({"mix_alpha": 0.0}, {"second_sampler": "none"}, {"mix_alpha": 4.0}):
        trainer = make(tmp_path, method, augmentation="none", **changes)
        trainer.train()
        weights.append(tiny.weights_of(trainer.model))
    assert tiny.same_weights(weights[0], weights[1])
    assert not tiny.same_weights(weights[0], weights[2])


def test_samplers_of_balancemix_make_no_pairs_here(tmp_path):
    for second in ("none", "minority", "random"):
        for step in recorded(make(tmp_path, "focal", second_sampler=second, max_steps=1)):
            assert step["batches"][0]["index"].shape == (8, 1)


# ---- one step, divided ----


def norms(folder, method, batch, accumulation):
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 2}
    steps = recorded(make(folder, method, train=tiny.tiny_dataset(32), **sizes))
    return [float(torch.stack([g.norm() for g in step["gradients"].values()]).double().norm()) for step in steps]


@pytest.mark.parametrize("method", ["focal", "asl"])
def test_accumulation_changes_nothing(tmp_path, method):
    reference = norms(tmp_path, method, 16, 1)
    assert reference[0] > 0
    assert norms(tmp_path, method, 4, 4) == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize("method", ["ll_r", "ll_ct"])
def test_large_losses_are_those_of_their_micro_batch(tmp_path, method):
    """What is promised: in the first epoch nothing is changed; later another division changes other entries."""
    options = {"train": tiny.tiny_dataset(16), "num_train_epochs": 2, "learning_rate": 0.0}
    found = {}
    for batch, accumulation in ((16, 1), (4, 4)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        found[batch] = recorded(make(tmp_path, method, **options, **sizes))
    for step in (0, 1):
        loss = [sum(b["loss"] for b in found[n][step]["batches"]) / len(found[n][step]["batches"]) for n in (16, 4)]
        assert (loss[0] == pytest.approx(loss[1], rel=1e-5)) == (step == 0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["focal", "asl"])
def test_two_processes_take_the_same_step(tmp_path, method):
    """Partners come from the whole optimiser step, also from what the other process reads."""
    options = {"max_steps": 2, "learning_rate": 0.01, **LOSS_OPTIONS, **METHODS[method].options}
    job = {"output_dir": str(tmp_path / "two"), "rows": 32, "model": "vit", "method": method, "world_size": 2}
    results = run({**job, "options": {**options, "per_device_train_batch_size": 8}})
    found = [entry["norm"] for entry in records(job) if "norm" in entry]
    assert found == pytest.approx(norms(tmp_path / "one", method, 16, 1), rel=1e-5)
    (_, first, _), (_, other, _) = (result["seen"][0] for result in results)
    crossing = {pair[1] for pair in first} - {pair[0] for pair in first}
    assert crossing
    assert crossing <= {pair[0] for pair in other}
    assert sorted(pair[0] for pair in first + other) == sorted(pair[1] for pair in first + other)


# ---- resuming ----


@pytest.fixture
def rates(monkeypatch):
    """The rate of every large loss, in order."""
    seen, original = [], objective.large_loss

    def spy(logits, targets, rate, *args):
        seen.append(rate)
        return original(logits, targets, rate, *args)

    monkeypatch.setattr(objective, "large_loss", spy)
    return seen


@pytest.mark.parametrize("method", BASELINES)
def test_resume_is_exact_and_the_rate_follows_the_epoch(tmp_path, method, rates):
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3, "optim": "adamw_torch"}
    alone = make(tmp_path / "alone", method, tiny.tiny_vit(dropout=0.1), **options)
    alone.train()
    expected = [0.0] * STEPS + [0.05] * STEPS + [0.1] * STEPS if method.startswith("ll") else []
    assert rates == pytest.approx([rate for rate in expected for _ in (0, 1)])
    for done in (4, 6):  # in an epoch, and at its end
        rates.clear()
        resumed = make(tmp_path / "resumed", method, tiny.tiny_vit(dropout=0.1), **options)
        resumed.train(resume_from_checkpoint=tmp_path / "alone" / f"checkpoint-{done}")
        assert tiny.same_weights(tiny.weights_of(resumed.model), tiny.weights_of(alone.model))
        assert rates == pytest.approx([rate for rate in expected[done:] for _ in (0, 1)])


def test_another_loss_is_told_when_resuming(tmp_path, caplog):
    make(tmp_path, "asl", save_strategy="steps", save_steps=2).train()
    with caplog.at_level("WARNING"):
        make(tmp_path, "focal", asl_margin=0.2).train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    told = " ".join(record.message for record in caplog.records)
    assert "`loss` was 'asl', is now 'focal'" in told
    assert "`asl_margin` was 0.1, is now 0.2" in told


# ---- evaluation ----


@pytest.mark.parametrize("method", BASELINES)
def test_evaluation_is_bce_and_map(tmp_path, method):
    """One scale for all methods; a loss that depends on the epoch or the batch could not be compared."""
    trainer = make(tmp_path, method, eval_strategy="epoch")
    trainer.train()
    logits = torch.from_numpy(trainer.predict(EVAL).predictions)
    expected = F.binary_cross_entropy_with_logits(logits, multi_hot(EVAL)) * K
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert 0 <= metrics["eval_map"] <= 100
    assert [entry["epoch"] for entry in trainer.state.log_history if "eval_map" in entry] == [1, 2, 2]


def test_class_reduction_scales_the_losses(tmp_path):
    for method in ("bce", "asl"):
        whole, mean = (
            recorded(make(tmp_path, method, class_reduction=reduction, max_steps=1))[0]["batches"][0]["loss"]
            for reduction in ("sum", "mean")
        )
        assert whole == pytest.approx(K * mean, rel=1e-6)


# ---- with BalanceMix ----


@pytest.mark.parametrize("refinement", ["full", "relabelled", "clean"])
def test_refined_pairs_take_the_pair_rule_and_the_random_halfs_weights(tmp_path, refinement):
    options = {"loss": "asl", "relabel_views": "epoch", "relabel_threshold": 0.55, "refinement": refinement}
    trainer = make(tmp_path, "balancemix", learning_rate=0.05, **options)
    statistics, prepare = {}, trainer.prepare_epoch

    def prepare_epoch(epoch, final=False):
        prepare(epoch, final)
        statistics[epoch] = (trainer.label_state.posterior, trainer.label_state.confidence)

    trainer.prepare_epoch = prepare_epoch
    given, met = multi_hot(TRAIN), set()
    for step in recorded(trainer):
        (batch,) = step["batches"]
        pixels, shares = batch["pixel_values"][:, :, 0], batch["mix_lambda"].tolist()
        mixed = [share * x[0] + (1 - share) * x[1] for share, x in zip(shares, pixels, strict=True)]
        logits = step["model"](pixel_values=torch.stack(mixed)).logits.double()
        posterior, confidence = statistics[step["epoch"]] if step["epoch"] else (None, None)
        loss = 0.0
        for i, rows in enumerate(batch["index"].tolist()):
            for k in range(K):
                targets, weight = [], None
                for row in rows:
                    target, own = float(given[row, k]), 1.0
                    if posterior is not None and posterior[row, k] <= 0.5:
                        if refinement != "clean" and confidence[row, k] > 0.55:
                            target = 1.0
                        elif refinement != "clean" and confidence[row, k] < 0.45:
                            target = 0.0
                        else:
                            own = float(posterior[row, k]) if refinement == "full" else 0.0
                    met |= {"weighed"} if own < 1 else set()
                    met |= {"changed"} if target != given[row, k] else set()
                    weight = own if weight is None else weight  # the random half's
                    targets.append(target)
                one, other = (asl(logits[i, k], target) for target in targets)
                loss += weight * (shares[i] * one + (1 - shares[i]) * other)
        assert batch["loss"] == pytest.approx(float(loss.detach()) / 8, rel=1e-4)
    assert met == ({"weighed"} if refinement == "clean" else {"weighed", "changed"})


@pytest.mark.parametrize("loss", ["ll_r", "ll_ct"])
def test_large_losses_and_refinement_exclude_each_other(tmp_path, loss):
    parts = ("Expected `loss` bce, focal or asl", "refinement='full'", f"found '{loss}'", "refinement='none'")
    tiny.refused(ValueError, parts, make(tmp_path, "balancemix", loss=loss).train)
    make(tmp_path, "minority", loss=loss).train()  # without refinement it is a loss like others


# ---- mistakes ----


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"loss": "als"}, ("`loss`", "'als'", "asl")),
        ({"second_sampler": "batches"}, ("`second_sampler`", "'batches'", "batch")),
        ({"focal_gamma": -1.0}, ("`focal_gamma` at least 0", "found -1.0")),
        ({"focal_alpha": 25.0}, ("`focal_alpha` between 0.0 and 1.0", "found 25.0")),
        ({"asl_margin": -0.05}, ("`asl_margin`", "found -0.05")),
        ({"asl_gamma_negative": math.nan}, ("`asl_gamma_negative`", "found nan")),
        ({"large_loss_rate": -0.1}, ("`large_loss_rate`", "found -0.1", "percent")),
    ],
)
def test_wrong_options(tmp_path, changes, parts):
    tiny.refused(ValueError, parts, tiny.arguments, tmp_path, **changes)


def test_the_table_of_methods():
    assert METHODS["bce"].options["second_sampler"] == "none"
    for method in BASELINES:
        assert METHODS[method].trainer is MultiLabelTrainer
        assert METHODS[method].options == {"loss": method, "second_sampler": "batch"}
