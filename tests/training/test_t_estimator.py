"""The three stages of T-estimator, checked against plain computations, and what stops them."""

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from transformers import PrinterCallback, TrainerCallback

from hf_balancemix.label_state import LabelState
from hf_balancemix.method import empirical_transition, estimate_transition, label_posteriors, transition
from hf_balancemix.training import t_estimator
from hf_balancemix.training.checkpoints import FINAL_STATE
from hf_balancemix.training.methods import METHODS
from hf_balancemix.training.t_estimator import FILE_NAME, TEstimatorTrainer
from tests import tiny

ROWS, HELD_OUT, STEPS, WARMUP, EPOCHS = 30, 6, 3, 3, 5  # 24 images in three steps of eight
TRAIN = tiny.tiny_dataset(ROWS)
LABELS = torch.tensor([[int(k in row) for k in range(5)] for row in TRAIN["labels"]])
CLEAN = torch.tensor([[int(k in row) for k in range(5)] for row in TRAIN["clean_labels"]])


SHORT = {"num_train_epochs": 2, "warmup_epochs": 1}


def make(folder, train=TRAIN, model=None, callbacks=(), **changes):
    values = {
        "num_train_epochs": EPOCHS,
        "warmup_epochs": WARMUP,
        "validation_fraction": 0.2,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
        **METHODS["t_estimator"].options,
        **changes,
    }
    inputs = {"model_init": values.pop("model_init")} if "model_init" in values else {"model": model}
    if "model_init" not in inputs and model is None:
        inputs["model"] = tiny.tiny_vit()
    args = tiny.arguments(folder, **values)
    trainer = TEstimatorTrainer(
        args=args, train_dataset=train, processing_class=tiny.processor(), callbacks=list(callbacks), **inputs
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class Watch(TrainerCallback):
    """Calls functions with everything that a callback is told."""

    def __init__(self, **events):
        for event, action in events.items():
            setattr(self, event, lambda args, state, control, action=action, **kwargs: action(state, **kwargs))


def logits_on_plain_images(weights):
    model = tiny.tiny_vit()
    model.load_state_dict(weights)
    pixels = tiny.processor()(list(TRAIN["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model.eval()(pixels).logits


# ---- stage by stage ----


def test_held_out_images_are_never_trained_on(tmp_path):
    seen = {}
    for seed in (0, 1):
        trainer, rows = make(tmp_path, seed=seed, **SHORT), []
        loss = trainer.compute_loss
        trainer.compute_loss = lambda m, i, *a, rows=rows, loss=loss, **k: (rows.append(i["index"]), loss(m, i))[1]
        trainer.train()
        assert trainer.state.global_step == STEPS * 2
        assert len(trainer.label_state) == ROWS
        for epoch in range(2):
            index = torch.cat(rows[epoch * STEPS : (epoch + 1) * STEPS])
            assert index.shape == (24, 2)
            for column in (0, 1):  # both members of every pair, each row once per epoch
                assert len(set(index[:, column].tolist())) == ROWS - HELD_OUT
            seen.setdefault(seed, set()).update(index.flatten().tolist())
        assert seen[seed] == set(trainer._split()[0].tolist())
        assert set(range(ROWS)) - seen[seed] == set(trainer._split()[1].tolist())
    assert seen[0] != seen[1]


def test_at_least_one_image_is_held_out(tmp_path):
    trainer = make(tmp_path, validation_fraction=0.001, **SHORT)
    assert [len(rows) for rows in trainer._split()] == [ROWS - 1, 1]
    trainer.train()
    assert trainer.label_state.transition.isfinite().all()


@pytest.fixture
def controlled(tmp_path, monkeypatch):
    """A run whose second epoch is the best one, and what was seen of it: weights, rates, the optimiser's state."""
    scores = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr(t_estimator, "mean_average_precision", lambda ap: next(scores))
    monkeypatch.setattr(t_estimator, "AVERAGED_EPOCHS", 2)
    monkeypatch.setattr(transition, "MIN_SELECTED", 2)
    ends, begins, rates, losses = [], [], [], []

    def begin(state, model, optimizer, lr_scheduler, **kwargs):
        begins.append((tiny.weights_of(model), len(optimizer.state)))
        rates.append(lr_scheduler.get_last_lr()[0])

    def end(state, model, **kwargs):
        ends.append(tiny.weights_of(model))

    watch = Watch(on_step_begin=begin, on_epoch_end=end)
    trainer = make(tmp_path, callbacks=[watch], lr_scheduler_type="cosine")
    compute = trainer.compute_loss

    def compute_loss(model, inputs, *rest, **kwargs):
        loss = compute(model, inputs, *rest, **kwargs)
        losses.append((loss.item(), float(plain_loss(model, inputs, trainer.label_state.transition))))
        return loss

    trainer.compute_loss = compute_loss
    trainer.train()
    return trainer, ends, begins, rates, losses


def plain_loss(model, inputs, T):
    """The pair rule, entry by entry, with β written as it is defined."""
    total, mix_lambda, index = 0.0, inputs["mix_lambda"], inputs["index"]
    pixels = inputs["pixel_values"][:, :, 0]
    share = mix_lambda.view(-1, 1, 1, 1)
    with torch.no_grad():
        logits = model(pixel_values=share * pixels[:, 0] + (1 - share) * pixels[:, 1]).logits
    for b, member, k in itertools.product(range(len(index)), range(2), range(5)):
        label = int(LABELS[index[b, member], k])
        f = logits[b, k].sigmoid()
        beta = 1.0
        if T is not None:
            g = torch.stack([1 - f, f]).double()
            beta = g[label] / (T[k].T @ g)[label]
        entry = beta * F.binary_cross_entropy_with_logits(logits[b, k], torch.tensor(float(label)))
        total += (mix_lambda[b] if member == 0 else 1 - mix_lambda[b]) * entry
    return total / len(index)


def test_the_stages(controlled):
    trainer, ends, begins, rates, losses = controlled
    boundary = STEPS * WARMUP
    # Stage 1 is BCE with Mixup, stage 3 is reweighted.
    for found, expected in losses:
        assert found == pytest.approx(expected, rel=1e-5)
    state, rows = trainer.label_state, trainer._split()[0]
    # Stage 2: losses of the last two of three epochs, normalised and averaged; mixtures; matrices.
    tables = []
    for weights in ends[1:3]:
        logits = logits_on_plain_images(weights)[rows]
        loss = F.binary_cross_entropy_with_logits(logits, LABELS[rows].float(), reduction="none").numpy()
        for k, value in itertools.product(range(5), (0, 1)):
            member = LABELS[rows][:, k].numpy() == value
            one = loss[member, k]
            loss[member, k] = (one - one.min()) / (one.max() - one.min())
        tables.append(loss)
    averaged = torch.from_numpy(np.mean(tables, axis=0))
    selected = label_posteriors(averaged, LABELS[rows]).posterior > 0.5
    assert 0.1 < selected.double().mean() < 0.9
    probs = best_probs(trainer, ends[:3])
    fit = estimate_transition(LABELS[rows], selected, probs[rows], "medoid")
    assert 0 < (fit.n_candidates > 0).sum() < 5  # candidates for some classes, Dual-T for others
    torch.testing.assert_close(state.transition, fit.transition, atol=1e-5, rtol=0)
    assert state.loss_sum is state.best_probs is state.best_loss is None
    # Stage 3 starts from the weights of the second epoch, without momenta; the rate goes on.
    weights, moments = begins[boundary]
    assert tiny.same_weights(weights, ends[1])
    assert not tiny.same_weights(weights, ends[2])
    assert moments == 0
    assert begins[boundary - 1][1] > 0
    total = STEPS * EPOCHS
    expected_rates = [1e-2 * 0.5 * (1 + math.cos(math.pi * step / total)) for step in range(total)]
    assert rates == pytest.approx(expected_rates, abs=1e-9)


def best_probs(trainer, ends):
    """Per class the predictions of the epoch with the least loss on the held-out images."""
    held_out = trainer._split()[1]
    logits = torch.stack([logits_on_plain_images(weights) for weights in ends])  # (epochs, N, K)
    probs = torch.empty(ROWS, 5)
    epochs = []
    for k in range(5):
        target = LABELS[held_out, k].float()
        loss = [float(F.binary_cross_entropy_with_logits(one[held_out, k], target)) for one in logits]
        epochs.append(int(np.argmin(loss)))
        probs[:, k] = logits[epochs[-1], :, k].sigmoid()
    assert len(set(epochs)) > 1  # else this could not fail
    return probs


def test_what_is_logged_and_written(tmp_path):
    ends = []
    trainer = make(tmp_path, callbacks=[Watch(on_epoch_end=lambda s, model, **_: ends.append(tiny.weights_of(model)))])
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "validation_map" in entry]
    assert [entry["epoch"] for entry in logs] == [1.0, 2.0, 3.0]
    held_out, rows = trainer._split()[1], trainer._split()[0]
    for entry, weights in zip(logs, ends, strict=False):
        scores, targets = logits_on_plain_images(weights)[held_out].numpy(), LABELS[held_out].numpy()
        ap = [average_precision_score(t, s) for t, s in zip(targets.T, scores.T, strict=True) if t.any()]
        assert entry["validation_map"] == pytest.approx(100 * np.mean(ap))
    last, T = logs[-1], trainer.label_state.transition
    assert last["classes_from_dual_t"] == 5  # 24 images are too few for candidates
    assert last["classes_from_candidates"] == 0
    assert last["false_positive_rate"] == pytest.approx(float(T[:, 0, 1].mean()))
    assert last["false_negative_rate"] == pytest.approx(float(T[:, 1, 0].mean()))
    truth = empirical_transition(CLEAN[rows], LABELS[rows])
    assert not truth.isnan().any()
    assert last["transition_error"] == pytest.approx(float((T - truth).abs().mean()))
    assert 0 < last["selected"] <= 1
    json.dumps(logs)
    state, run = LabelState.load(tmp_path / FINAL_STATE)
    assert torch.equal(state.transition, T)
    assert run["trainer"] == "TEstimatorTrainer"
    plain = make(tmp_path, train=TRAIN.remove_columns("clean_labels"), **SHORT)
    plain.train()
    assert not [entry for entry in plain.state.log_history if "transition_error" in entry]


def test_without_a_positive_among_the_held_out_labels(tmp_path):
    held_out = make(tmp_path)._split()[1].tolist()
    labels = [[] if row in held_out else ids for row, ids in enumerate(TRAIN["labels"])]
    train = TRAIN.remove_columns("labels").add_column("labels", labels, feature=TRAIN.features["labels"])
    ends, begins = [], []
    watch = Watch(
        on_epoch_end=lambda s, model, **_: ends.append(tiny.weights_of(model)),
        on_step_begin=lambda s, model, **_: begins.append(tiny.weights_of(model)),
    )
    make(tmp_path, train=train, callbacks=[watch]).train()
    assert tiny.same_weights(begins[STEPS * WARMUP], ends[0])


@pytest.mark.parametrize("choice", ["medoid", "residual"])
def test_bf16_without_mixup_and_with_either_choice(tmp_path, monkeypatch, choice):
    choices = []

    def estimate(labels, selected, probs, choice):
        assert probs.dtype == torch.float32
        choices.append(choice)
        return estimate_transition(labels, selected, probs, choice)

    monkeypatch.setattr(t_estimator, "estimate_transition", estimate)
    trainer = make(tmp_path, bf16=True, second_sampler="none", transition_choice=choice, **SHORT)
    trainer.train()
    assert choices == [choice]
    T = trainer.label_state.transition
    assert T.dtype == torch.float64
    torch.testing.assert_close(T.sum(dim=-1), torch.ones(5, 2).double())
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


def test_an_average_of_the_weights_begins_with_the_last_stage(tmp_path):
    begins = []
    watch = Watch(on_step_begin=lambda s, model, **_: begins.append(tiny.weights_of(model)))
    trainer = make(tmp_path, callbacks=[watch], ema_decay=0.999999, **SHORT)
    trainer.train()
    for name, tensor in trainer.average.average.items():
        torch.testing.assert_close(tensor, begins[STEPS][name], rtol=0, atol=1e-5)
    assert max(float((begins[STEPS][name] - begins[0][name]).abs().max()) for name in begins[0]) > 1e-3


def test_a_second_run_of_one_trainer_starts_anew(tmp_path):
    trainer = make(tmp_path, model_init=lambda: tiny.tiny_vit(), **SHORT)
    weights, digests = [], []
    for _ in range(2):
        trainer.train()
        weights.append(tiny.weights_of(trainer.model))
        digests.append(trainer.label_state.digest())
    assert tiny.same_weights(*weights)
    assert digests[0] == digests[1]


def test_nothing_of_an_interrupted_run_gets_into_the_next_one(tmp_path):
    stop, changes = [STEPS + 1], {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 3, "warmup_epochs": 2}

    def interrupt(state, **kwargs):
        if state.global_step in stop:
            stop.clear()
            raise KeyboardInterrupt

    trainer = make(tmp_path, callbacks=[Watch(on_step_end=interrupt)], **changes)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert not (tmp_path / "checkpoint-1" / FILE_NAME).exists()
    assert (tmp_path / f"checkpoint-{STEPS + 1}" / FILE_NAME).exists()


# ---- checkpoints ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with a checkpoint at every step; copied by the tests that write."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = make(folder, model=tiny.tiny_vit(dropout=0.1), save_strategy="steps", save_steps=1)
    trainer.train()
    return folder, tiny.weights_of(trainer.model), trainer.label_state.digest()


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.mark.parametrize("step", [2, 4, 9, 10])
def test_resume_is_exact_in_and_between_all_stages(folder, finished, step):
    trainer = make(folder, model=tiny.tiny_vit(dropout=0.1, seed=7), save_strategy="no")
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert tiny.same_weights(tiny.weights_of(trainer.model), finished[1])
    assert trainer.label_state.digest() == finished[2]


def test_the_best_weights_are_in_checkpoints_only_while_they_are_needed(finished):
    having = [int(p.parent.name.split("-")[1]) for p in finished[0].glob(f"checkpoint-*/{FILE_NAME}")]
    assert sorted(having) == list(range(STEPS + 1, STEPS * WARMUP + 1))


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_missing_or_damaged_best_weights_are_refused(folder, content):
    path = folder / "checkpoint-5" / FILE_NAME
    path.unlink() if content is None else path.write_bytes(content)
    train = make(folder, model=tiny.tiny_vit(dropout=0.1)).train
    parts = (f"best weights of the first stage in {path}", "Resume from another checkpoint")
    tiny.refused(ValueError, parts, train, str(path.parent))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"seed": 3}, "`seed` was 42, is now 3"),
        ({"validation_fraction": 0.21}, "`validation_fraction` was 0.2, is now 0.21"),
        ({"transition_choice": "residual"}, "`transition_choice` was 'medoid', is now 'residual'"),
        ({"warmup_epochs": 2}, "`warmup_epochs` was 3, is now 2"),
    ],
)
def test_other_settings_cannot_go_on(folder, changes, part):
    train = make(folder, model=tiny.tiny_vit(dropout=0.1), **changes).train
    tiny.refused(ValueError, (part, "builds on what it gathered before"), train, str(folder / "checkpoint-7"))


# ---- refused ----


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"warmup_epochs": 0}, ("at least 1 and below the 5 epochs", "found 0", "A fifth to a quarter")),
        ({"warmup_epochs": 5}, ("below the 5 epochs", "found 5")),
        ({"warmup_epochs": 2, "max_steps": 6}, ("below the 2 epochs", "found 2")),
        ({"validation_fraction": 0.0}, ("`validation_fraction` above 0", "found 0", "0.1")),
        ({"loss": "focal"}, ("`loss='bce'`", "found 'focal'")),
        ({"per_device_train_batch_size": 25}, ("one batch of 25", "found 24 images")),
    ],
)
def test_what_cannot_work_is_refused_before_training(tmp_path, changes, parts):
    tiny.refused(ValueError, parts, make(tmp_path, **changes).train)


def test_the_shortest_run(tmp_path):
    trainer = make(tmp_path, warmup_epochs=1, max_steps=STEPS + 1)
    trainer.train()
    assert trainer.state.global_step == STEPS + 1
    assert trainer.label_state.transition is not None


def test_sharded_models_are_refused(tmp_path):
    trainer = make(tmp_path)
    trainer.is_deepspeed_enabled = True
    tiny.refused(ValueError, ("without FSDP or DeepSpeed", "plain data parallelism"), trainer.get_train_dataloader)
