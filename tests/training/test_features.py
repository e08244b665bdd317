"""What the Trainer offers goes on working, and every step is Algorithm 1, checked against plain loops."""

import math

import datasets
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from hf_balancemix import BalanceMixTrainer, MultiLabelTrainer
from hf_balancemix.label_files import FILE_NAME
from hf_balancemix.label_state import LabelState
from hf_balancemix.training import balancemix, statistics
from hf_balancemix.training.checkpoints import FINAL_STATE
from tests import tiny

ROWS, STEPS = 24, 3  # three steps of eight per epoch
TRAIN = tiny.tiny_dataset(ROWS)
EVAL = tiny.tiny_dataset(13, seed=9)


def make(folder, cls=BalanceMixTrainer, model=None, train=TRAIN, **changes):
    inputs = {
        name: changes.pop(name)
        for name in ("callbacks", "model_init", "optimizers", "eval_dataset")
        if name in changes
    }
    if "model_init" not in inputs:
        inputs["model"] = model if model is not None else tiny.tiny_vit()
    args = tiny.arguments(folder, **{"learning_rate": 0.01, "relabel_views": "epoch", **changes})
    trainer = cls(args=args, train_dataset=train, processing_class=tiny.processor(), **inputs)
    trainer.remove_callback(PrinterCallback)
    return trainer


class Watch(TrainerCallback):
    """Calls a function with the trainer's state at chosen events."""

    def __init__(self, **events):
        for event, action in events.items():
            setattr(self, event, lambda args, state, control, action=action, **kwargs: action(state))


# ---- features of the Trainer ----


@pytest.mark.parametrize("views", ["epoch", "step", "reuse"])
def test_bf16(tmp_path, views):
    trainer = make(tmp_path, bf16=True, relabel_views=views, eval_dataset=EVAL)
    start = tiny.weights_of(trainer.model)
    assert math.isfinite(trainer.train().training_loss)
    assert math.isfinite(trainer.evaluate()["eval_map"])
    after = tiny.weights_of(trainer.model)
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    # Every layer learns, also behind no-gradient forwards under the same autocast.
    assert not [name for name in start if name.endswith("weight") and torch.equal(start[name], after[name])]
    plain = make(tmp_path, relabel_views=views)
    plain.train()
    assert not tiny.same_weights(after, tiny.weights_of(plain.model))  # bf16 was really used


@pytest.mark.slow
def test_torch_compile(tmp_path):
    """Compiled and eager training agree; both modes of the model are compiled by schedule "step"."""
    weights = {}
    for compiled in (True, False):
        options = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}
        trainer = make(tmp_path, relabel_views="step", **options)
        trainer.train()
        weights[compiled] = tiny.weights_of(trainer.model)
    for name, tensor in weights[True].items():
        torch.testing.assert_close(tensor, weights[False][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("views", ["epoch", "step"])
def test_activation_checkpointing_changes_nothing(tmp_path, views):
    weights = []
    for on in (True, False):
        trainer = make(tmp_path, activation_checkpointing=on, relabel_views=views)
        trainer.train()
        assert trainer.model.is_gradient_checkpointing is on
        weights.append(tiny.weights_of(trainer.model))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-5, atol=1e-6)


def test_early_stopping_and_best_model(tmp_path):
    """mAP falls from the second epoch on: training stops and the first epoch's weights come back."""
    kept, scores = [], iter([50.0, 40.0, 30.0, 20.0, 10.0])
    trainer = make(
        tmp_path,
        num_train_epochs=5,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        eval_dataset=EVAL,
        callbacks=[
            EarlyStoppingCallback(early_stopping_patience=2),
            Watch(on_epoch_end=lambda state: kept.append(tiny.weights_of(trainer.model))),
        ],
    )
    assert trainer.args.metric_for_best_model == "map"
    assert trainer.args.greater_is_better is True
    trainer.compute_metrics = lambda _: {"map": next(scores)}
    trainer.train()
    assert len(kept) == 3
    assert trainer.state.best_metric == 50.0
    assert tiny.same_weights(kept[0], tiny.weights_of(trainer.model))
    assert not tiny.same_weights(kept[0], kept[2])
    # The last statistics describe the model that is handed over.
    logits = trainer.predict(TRAIN).predictions
    np.testing.assert_allclose(trainer.label_state.probs, 1 / (1 + np.exp(-logits)), rtol=1e-4, atol=1e-5)


def test_the_last_checkpoint_stays_unless_the_best_is_asked_for(tmp_path):
    scores = {"plain": iter([90.0, 10.0, 5.0]), "best": iter([90.0, 10.0, 5.0])}
    for name, kept in (("plain", {"checkpoint-9"}), ("best", {"checkpoint-3", "checkpoint-9"})):
        trainer = make(
            tmp_path / name,
            num_train_epochs=3,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=name == "best",
            eval_dataset=EVAL,
        )
        trainer.compute_metrics = lambda _, name=name: {"map": next(scores[name])}
        trainer.train()
        assert {path.name for path in (tmp_path / name).glob("checkpoint-*")} <= kept
        assert (trainer.state.best_metric == 90.0) == (name == "best")
        assert (tmp_path / name / ("checkpoint-3" if name == "best" else "checkpoint-9")).is_dir()


@pytest.mark.parametrize("cls", [MultiLabelTrainer, BalanceMixTrainer])
def test_evaluation_is_complete_although_training_drops_the_tail(tmp_path, cls):
    trainer = make(tmp_path, cls, per_device_eval_batch_size=4, eval_dataset=EVAL, eval_strategy="epoch")
    assert trainer.args.dataloader_drop_last is True
    trainer.train()
    output = trainer.predict(EVAL)
    assert output.predictions.shape == (13, 5)  # 13 % 4 != 0
    hot = np.zeros((13, 5))
    for row, ids in enumerate(EVAL["labels"]):
        hot[row, ids] = 1
    np.testing.assert_array_equal(output.label_ids, hot)
    present = hot.any(axis=0)
    expected = 100 * average_precision_score(hot[:, present], output.predictions[:, present], average="macro")
    logged = [entry["eval_map"] for entry in trainer.state.log_history if "eval_map" in entry]
    assert output.metrics["test_map"] == pytest.approx(expected)
    assert logged[-1] == pytest.approx(expected)
    assert trainer.args.dataloader_drop_last is True
    # One optimiser step less than with the tail: training dropped it.
    assert len(make(tmp_path, cls, train=tiny.tiny_dataset(28)).get_train_dataloader()) == STEPS


def test_eval_on_start_and_in_mid_epoch_change_nothing(tmp_path):
    weights = []
    for options in ({}, {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 1, "eval_dataset": EVAL}):
        trainer = make(tmp_path, **options)
        trainer.train()
        weights.append(tiny.weights_of(trainer.model))
    assert sum("eval_map" in entry for entry in trainer.state.log_history) == 1 + 2 * STEPS
    assert tiny.same_weights(*weights)


def test_hyperparameter_search_starts_every_trial_afresh(tmp_path):
    pytest.importorskip("optuna")
    begun, augmented = [], []

    def before_the_first_step(state):
        if state.global_step == 0:
            begun.append((trainer.label_state.prepared_epoch, set(trainer.label_state.statistics())))
            augmented.append(trainer.transform.augmentation)

    trainer = make(
        tmp_path,
        model_init=lambda trial=None: tiny.tiny_vit(),
        eval_dataset=EVAL,
        eval_strategy="epoch",
        callbacks=[Watch(on_step_begin=before_the_first_step)],
    )

    def space(trial):
        return {
            "mix_alpha": trial.suggest_float("mix_alpha", 1.0, 8.0),
            "augmentation": ("none", "affine")[trial.number],
        }

    best = trainer.hyperparameter_search(
        hp_space=space, n_trials=2, direction="maximize", compute_objective=lambda metrics: metrics["eval_map"]
    )
    assert "mix_alpha" in best.hyperparameters
    assert begun == [(-1, set()), (-1, set())]
    assert augmented == ["none", "affine"]
    bad = {"hp_space": lambda trial: {"mix_alpha": -1.0}, "n_trials": 1, "direction": "maximize"}
    with pytest.raises(ValueError, match="Expected `mix_alpha` at least 0"):
        trainer.hyperparameter_search(**bad)


def test_tensorboard_gets_the_diagnostics(tmp_path, monkeypatch):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    make(tmp_path, report_to="tensorboard", logging_strategy="steps", logging_steps=1).train()
    (file,) = (tmp_path / "logs").rglob("*tfevents*")  # the last refresh opens no second one
    events = reader.EventAccumulator(str(file))
    events.Reload()
    tags = events.Tags()["scalars"]
    for name in ("sampling_max", "mean_posterior", "clean", "relabelled", "ambiguous", "label_precision", "loss"):
        assert f"train/{name}" in tags
    assert [event.step for event in events.Scalars("train/sampling_max")] == [STEPS, 2 * STEPS]


def test_training_twice_with_model_init_is_one_run_done_twice(tmp_path):
    trainer = make(tmp_path, model_init=lambda: tiny.tiny_vit(dropout=0.1))
    runs = []
    for _ in range(2):
        trainer.train()
        runs.append((tiny.weights_of(trainer.model), trainer.label_state.digest()))
        assert trainer.model.config.id2label == dict(enumerate(tiny.NAMES))
    assert tiny.same_weights(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


@pytest.mark.parametrize(("max_steps", "epochs"), [(2, 1), (3, 1), (4, 2)])
def test_max_steps_in_mid_epoch(tmp_path, max_steps, epochs):
    trainer = make(tmp_path, max_steps=max_steps)
    trainer.train()
    assert trainer.state.global_step == max_steps
    assert trainer.label_state.prepared_epoch == epochs
    logits = trainer.predict(TRAIN).predictions
    np.testing.assert_allclose(trainer.label_state.probs, 1 / (1 + np.exp(-logits)), rtol=1e-4, atol=1e-5)


def test_an_optimizer_made_by_hand(tmp_path):
    model = tiny.tiny_vit()
    head = model.classifier.parameters()
    optimizer = torch.optim.SGD(head, lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    start = tiny.weights_of(model)
    make(tmp_path, model=model, optimizers=(optimizer, scheduler)).train()
    changed = {name for name, tensor in tiny.weights_of(model).items() if not torch.equal(tensor, start[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


# ---- the refresh and its file ----


@pytest.mark.parametrize("views", ["step", "epoch", "reuse", "carry"])
def test_state_files(tmp_path, views):
    trainer = make(tmp_path, relabel_views=views, save_strategy="epoch", num_train_epochs=3, warmup_epochs=1)
    trainer.train()
    for epoch in range(3):
        state, run = LabelState.load(tmp_path / f"checkpoint-{(epoch + 1) * STEPS}")
        assert state.prepared_epoch == (epoch or -1)  # epoch 0 is warm-up and uniform: nothing to prepare
        assert (state.posterior is not None) == (epoch >= 1)
        assert (state.confidence is not None) == (epoch >= 1 and views != "step")
        assert (state.carried is not None) == (epoch >= 1 and views == "carry")
        assert run["relabel_views"] == views
    state, _ = LabelState.load(tmp_path / FINAL_STATE)
    assert state.prepared_epoch == 3
    assert state.digest() == trainer.label_state.digest()
    assert state.confidence.shape == state.posterior.shape == state.probs.shape == (ROWS, 5)
    assert state.carried is None  # nothing reads it after training
    assert (tmp_path / FINAL_STATE / FILE_NAME).is_file()


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        # (clean view, augmented views, epoch); nothing is done twice
        ({"relabel_views": "epoch"}, [(True, 0, 1), (True, 2, 2), (True, 2, 3)]),
        ({"relabel_views": "reuse"}, [(True, 0, 1), (False, 2, 2), (False, 2, 3)]),
        ({"relabel_views": "step"}, [(True, 0, 1), (True, 0, 2), (True, 2, 3)]),
        ({"relabel_views": "epoch", "warmup_epochs": 0}, [(True, 2, 0), (True, 2, 1), (True, 2, 2), (True, 2, 3)]),
        ({"relabel_views": "carry"}, [(True, 0, 1), (False, 2, 2), (False, 2, 3)]),
        ({"relabel_views": "carry", "warmup_epochs": 0}, [(False, 2, 0), (False, 1, 1), (False, 1, 2), (False, 2, 3)]),
        ({"refinement": "clean"}, [(True, 0, 1), (True, 0, 2), (True, 0, 3)]),
        ({"refinement": "clean", "relabel_views": "carry"}, [(True, 0, 1), (True, 0, 2), (True, 0, 3)]),
        ({"refinement": "none"}, [(True, 0, 1), (True, 0, 2), (True, 0, 3)]),
        ({"refinement": "none", "second_sampler": "random"}, []),
        ({"second_sampler": "random"}, [(True, 2, 2), (True, 2, 3)]),  # the warm-up needs none
    ],
)
def test_one_pass_per_epoch(tmp_path, monkeypatch, changes, passes):
    calls, original = [], balancemix.predicted_views

    def counted(trainer, clean, augmented, epoch):
        before, rows = torch.get_rng_state(), 0
        for own, logits in original(trainer, clean, augmented, epoch):
            assert logits.shape == (len(own), clean + augmented, 5)
            assert not logits.requires_grad
            rows += len(own)
            yield own, logits
        assert rows == ROWS
        assert torch.equal(before, torch.get_rng_state())  # nothing is drawn from the global generator
        calls.append((clean, augmented, epoch))

    monkeypatch.setattr(balancemix, "predicted_views", counted)
    trainer = make(tmp_path, num_train_epochs=3, **{"warmup_epochs": 2, **changes})
    trainer.train()
    assert calls == passes
    before = trainer.label_state.digest()
    trainer.prepare_epoch(3, final=True)  # idempotent
    assert calls == passes
    assert trainer.label_state.digest() == before


def test_no_forward_of_a_pass_is_larger_than_one_of_an_evaluation(tmp_path):
    trainer = make(tmp_path, relabel_views="epoch", warmup_epochs=0, num_train_epochs=1, per_device_eval_batch_size=5)
    sizes, logits_of = [], trainer._logits

    def noted(model, images):
        if not model.training:
            sizes.append(len(images))
        return logits_of(model, images)

    trainer._logits = noted
    trainer.train()
    assert max(sizes) == 5
    assert sum(sizes) == 2 * 3 * ROWS  # before the epoch and after it, three views


def steps_of(trainer):
    """Train; what every step was given and what the loss was asked for, in order."""
    seen, step = [], trainer.compute_loss
    logits_of, losses_of, refined = trainer._logits, trainer._entry_losses, trainer._refined

    def compute_loss(model, inputs, *args, **kwargs):
        entry = {"epoch": trainer._epoch(), "inputs": {k: v.clone() for k, v in inputs.items()}}
        entry["statistics"] = {k: v.clone() for k, v in trainer.label_state.statistics().items()}
        entry["weights"] = tiny.weights_of(trainer.model)
        seen.append(entry)
        loss = step(model, inputs, *args, **kwargs)
        entry["loss"] = float(loss.detach())
        return loss

    def predicted(model, pixels):
        if torch.is_grad_enabled():  # not the views of the schedule "step"
            seen[-1]["pixels"] = pixels
        return logits_of(model, pixels)

    def compared(logits, targets):
        seen[-1]["targets"] = targets
        return losses_of(logits, targets)

    def managed(*args):
        result = refined(*args)
        seen[-1].setdefault("entry_weights", result.entry_weights)  # of the random half, which comes first
        return result

    trainer.compute_loss, trainer._refined = compute_loss, managed
    trainer._logits, trainer._entry_losses = predicted, compared
    trainer.train()
    return seen


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_warm_up(tmp_path, warmup):
    trainer = make(tmp_path, warmup_epochs=warmup, num_train_epochs=3, relabel_threshold=0.5, mix_alpha=0.0)
    labels = trainer.label_state.labels.float()
    for step in steps_of(trainer):
        epoch, statistics = step["epoch"], step["statistics"]
        assert ("sampling_probability" in statistics) == (epoch > 0 or warmup == 0)
        assert ("posterior" in statistics) == ("confidence" in statistics) == (epoch >= warmup)
        given = labels[step["inputs"]["index"][:, 0]]  # λ = 1: the pair is its random half
        if epoch < warmup:
            assert torch.equal(step["targets"], given)
            assert bool((step["entry_weights"] == 1).all())
        else:  # ε = ½ replaces every label that is not clean and not what the model says
            assert not torch.equal(step["targets"], given)


def test_the_first_epoch_draws_uniformly_and_later_ones_do_not(tmp_path):
    """The minority half follows `sampling_probability` once it exists."""
    trainer = make(tmp_path, num_train_epochs=2, refinement="none")
    sampler = trainer._train_sampler(TRAIN)

    def share_of_row_0(probability):
        trainer.label_state.sampling_probability = probability
        return np.mean([members[1] == 0 for members, _, _ in sampler])

    only = torch.full((ROWS,), 1e-12, dtype=torch.float64)
    only[0] = 1
    assert share_of_row_0(None) < 0.5
    assert share_of_row_0(only / only.sum()) == 1.0


# ---- Algorithm 1, step by step, against loops ----


def bce(logit, target):
    p = 1 / (1 + math.exp(-logit))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def naive_half(trainer, statistics, rows, confidence=None):
    """Targets and weights of each row and class, one by one (Eq. 8-10)."""
    args, given = trainer.args, trainer.label_state.labels
    targets, weights = [], []
    for i, row in enumerate(rows):
        for k in range(5):
            target, weight = float(given[row, k]), 1.0
            if args.refinement != "none" and statistics.get("posterior") is not None:
                posterior = float(statistics["posterior"][row, k])
                if posterior <= 0.5:
                    if args.refinement == "clean":
                        weight = 0.0
                    else:
                        c = float(statistics["confidence"][row, k] if confidence is None else confidence[i, k])
                        if c > args.relabel_threshold:
                            target = 1.0
                        elif c < 1 - args.relabel_threshold:
                            target = 0.0
                        else:
                            weight = posterior if args.refinement == "full" else 0.0
            targets.append(target)
            weights.append(weight)
    shape = (len(rows), 5)
    return np.reshape(targets, shape), np.reshape(weights, shape)


@torch.no_grad()
def predicted(trainer, weights, pixels, training=False):
    model = tiny.tiny_resnet() if "resnet.embedder.embedder.convolution.weight" in weights else tiny.tiny_vit()
    model.load_state_dict(weights)
    return model.train(training)(pixel_values=pixels).logits


CASES = {
    "full": {"relabel_threshold": 0.55},
    "everything is relabelled": {"relabel_threshold": 0.5},
    "nothing is relabelled": {"relabel_threshold": 1.0},
    "relabelled": {"refinement": "relabelled", "relabel_threshold": 0.55},
    "clean": {"refinement": "clean"},
    "none": {"refinement": "none"},
    "batch lambda": {"mix_lambda_per": "batch", "relabel_threshold": 0.55},
    "mean over classes": {"class_reduction": "mean", "learning_rate": 0.25, "relabel_threshold": 0.55},
    "step": {"relabel_views": "step", "relabel_threshold": 0.55},
    "reuse": {"relabel_views": "reuse", "relabel_threshold": 0.55},
    "no mixing": {"mix_alpha": 0.0, "relabel_threshold": 0.55},
    "random second half": {"second_sampler": "random", "relabel_threshold": 0.55},
}


@pytest.mark.parametrize("case", CASES)
def test_every_step_agrees_with_plain_loops(tmp_path, case):
    trainer = make(tmp_path, **{"learning_rate": 0.05, **CASES[case]})
    steps = steps_of(trainer)
    assert len(steps) == 2 * STEPS
    states = set()
    for step in steps:
        inputs, after_warmup = step["inputs"], step["epoch"] >= 1
        pixels, index = inputs["pixel_values"].double(), inputs["index"]
        at_the_step = trainer.args.relabel_views == "step" and after_warmup
        assert pixels.shape[2] == (2 if at_the_step else 1)
        halves = []
        for m in (0, 1):
            confidence = None
            if at_the_step:
                views = [
                    predicted(trainer, step["weights"], inputs["pixel_values"][:, m, v]).sigmoid() for v in (0, 1)
                ]
                confidence = (views[0] + views[1]) / 2
            statistics = step["statistics"] if after_warmup else {}
            halves.append(naive_half(trainer, statistics, index[:, m].tolist(), confidence))
        mixed, targets = np.zeros(pixels[:, 0, 0].shape), np.zeros((8, 5))
        for i in range(8):
            share = float(inputs["mix_lambda"][0 if case == "batch lambda" else i])
            assert 0.5 <= share <= 1
            mixed[i] = share * pixels[i, 0, 0].numpy() + (1 - share) * pixels[i, 1, 0].numpy()
            targets[i] = share * halves[0][0][i] + (1 - share) * halves[1][0][i]
        np.testing.assert_allclose(step["pixels"], mixed, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(step["targets"], targets, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(step["entry_weights"], halves[0][1], rtol=1e-5, atol=1e-5)
        logits = predicted(trainer, step["weights"], torch.from_numpy(mixed).float(), training=True).double()
        loss = 0.0
        for i in range(8):
            for k in range(5):
                loss += halves[0][1][i, k] * bce(float(logits[i, k]), targets[i, k])
        loss /= 8 * (5 if case == "mean over classes" else 1)
        assert step["loss"] == pytest.approx(loss, rel=1e-5)
        if after_warmup:
            given = trainer.label_state.labels[index[:, 0]].numpy()
            states |= {"weighted"} if (halves[0][1] < 1).any() else set()
            states |= {"flipped"} if (halves[0][0] != given).any() else set()
    # The case is not an empty one.
    expected = {
        "none": set(),
        "clean": {"weighted"},
        "nothing is relabelled": {"weighted"},
        "everything is relabelled": {"flipped"},
    }.get(case, {"weighted", "flipped"})
    assert states == expected


def test_if_every_posterior_is_one_the_step_is_a_warm_up_step(tmp_path, monkeypatch):
    weights = []
    for warmup in (1, 9):
        with monkeypatch.context() as patch:
            if warmup == 1:
                patch.setattr(statistics, "posteriors", lambda losses, *rest: torch.ones_like(losses))
            trainer = make(tmp_path, num_train_epochs=3, warmup_epochs=warmup, relabel_threshold=0.5)
            trainer.train()
            weights.append(tiny.weights_of(trainer.model))
    assert tiny.same_weights(*weights)


def test_without_mixing_the_minority_half_does_not_matter(tmp_path):
    weights = {}
    for alpha in (0.0, 4.0):
        for half in ("minority", "random"):
            trainer = make(tmp_path, mix_alpha=alpha, second_sampler=half, refinement="none", augmentation="none")
            trainer.train()
            weights[alpha, half] = tiny.weights_of(trainer.model)
    bce = make(tmp_path, MultiLabelTrainer, augmentation="none")
    bce.train()

    def close(first, second):
        return all(torch.allclose(first[name], second[name], rtol=1e-5, atol=1e-6) for name in first)

    assert close(weights[0.0, "minority"], weights[0.0, "random"])
    assert close(weights[0.0, "minority"], tiny.weights_of(bce.model))  # then it is plain BCE
    assert not close(weights[4.0, "minority"], weights[4.0, "random"])


@pytest.mark.parametrize(("mode", "updates"), [("eval", 1), ("train", 5)])
def test_views_at_the_step_move_batch_norm_only_in_train_mode(tmp_path, mode, updates):
    """Four no-gradient forwards and one with gradient: the counter of a batch norm tells which were in train mode."""
    model = tiny.tiny_resnet()
    trainer = make(tmp_path, model=model, relabel_views="step", relabel_bn=mode, warmup_epochs=1)
    counts = []
    counter = next(b for name, b in model.named_buffers() if name.endswith("num_batches_tracked"))
    trainer.add_callback(Watch(on_step_end=lambda state: counts.append(int(counter))))
    trainer.train()
    assert np.diff([0, *counts]).tolist() == [1] * STEPS + [updates] * STEPS
    assert int(counter) == counts[-1]  # the last refresh moves nothing


@pytest.mark.parametrize("method", ["eq3", "mean_positive"])
def test_statistics_agree_with_loops(tmp_path, method):
    """Eq. 2-4 and 6 on the final model's own predictions."""
    trainer = make(tmp_path, minority_score=method)
    trainer.train()
    state, n = trainer.label_state, ROWS
    logits = trainer.predict(TRAIN).predictions.astype(float)
    p, y = 1 / (1 + np.exp(-logits)), state.labels.numpy()
    presence = [np.mean([p[i, k] for i in range(n) if y[i, k]]) for k in range(5)]
    absence = [np.mean([1 - p[i, k] for i in range(n) if not y[i, k]]) for k in range(5)]
    np.testing.assert_allclose(state.class_confidence, [absence, presence], rtol=1e-5)
    scores = []
    for i in range(n):
        own = [presence[k] for k in range(5) if y[i, k]]
        if method == "eq3":
            scores.append(sum(own) + sum(absence[k] for k in range(5) if not y[i, k]))
        else:
            scores.append(np.mean(own) if own else None)
    best = max(score for score in scores if score is not None)
    inverse = [1 / (best if score is None else score) for score in scores]
    np.testing.assert_allclose(state.sampling_probability, np.array(inverse) / sum(inverse), rtol=1e-5)


def test_clean_labels_reach_the_diagnostics_and_nothing_else(tmp_path):
    values = TRAIN["clean_labels"]
    other = TRAIN.remove_columns("clean_labels").add_column(
        "clean_labels", [values[i] for i in np.random.default_rng(0).permutation(ROWS)]
    )
    other = other.cast_column("clean_labels", datasets.List(datasets.ClassLabel(names=list(tiny.NAMES))))
    runs = []
    for train in (TRAIN, other, TRAIN.remove_columns("clean_labels")):
        trainer = make(tmp_path, train=train, relabel_threshold=0.6)
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "clean" in entry][-1]
        runs.append((tiny.weights_of(trainer.model), trainer.label_state.digest(), log.get("label_precision")))
    assert tiny.same_weights(runs[0][0], runs[1][0])
    assert tiny.same_weights(runs[0][0], runs[2][0])
    assert runs[0][1] == runs[1][1] == runs[2][1]
    assert runs[0][2] != runs[1][2]
    assert runs[2][2] is None


def test_a_warm_up_longer_than_the_run_is_told(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        make(tmp_path, num_train_epochs=2, warmup_epochs=2).train()
    assert any("No label will be refined" in record.message for record in caplog.records)


@pytest.mark.parametrize("method", ["bce", "balancemix"])
def test_resume_from_the_end_of_an_epoch_that_is_evaluated(tmp_path, method):
    """With dropout and `save_steps` equal to an epoch: the stock Trainer saves before it evaluates."""
    cls = MultiLabelTrainer if method == "bce" else BalanceMixTrainer
    options = {"eval_dataset": EVAL, "eval_strategy": "epoch", "save_strategy": "steps", "save_steps": STEPS}
    options |= {"num_train_epochs": 3, "relabel_threshold": 0.55}
    alone = make(tmp_path / "alone", cls, tiny.tiny_vit(dropout=0.1), **options)
    alone.train()
    for epoch in (1, 2):
        resumed = make(tmp_path / "resumed", cls, tiny.tiny_vit(dropout=0.1), **options)
        resumed.train(resume_from_checkpoint=tmp_path / "alone" / f"checkpoint-{epoch * STEPS}")
        assert tiny.same_weights(tiny.weights_of(resumed.model), tiny.weights_of(alone.model))
        assert [e["epoch"] for e in resumed.state.log_history if "eval_map" in e] == [1, 2, 3]
