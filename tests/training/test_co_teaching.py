"""Co-teaching: every step against plain loops, what is saved, and what is refused."""

import copy
import json

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from transformers import AutoModelForImageClassification, Trainer, TrainerCallback, pipeline
from transformers.trainer_callback import PrinterCallback

from hf_balancemix import MultiLabelTrainer
from hf_balancemix.build import build_model
from hf_balancemix.label_state import LabelState
from hf_balancemix.predict import load_checkpoint
from hf_balancemix.training import co_teaching
from hf_balancemix.training.checkpoints import FINAL_STATE
from hf_balancemix.training.co_teaching import CoTeachingTrainer
from hf_balancemix.training.diagnostics import selection_diagnostics
from hf_balancemix.training.network_pair import SECOND_NETWORK, NetworkPair, with_new_head
from tests import tiny

ROWS, STEPS = 24, 3  # three steps of eight per epoch
TRAIN = tiny.tiny_dataset(ROWS)
EVAL = tiny.tiny_dataset(13, seed=9)


def make(folder, model=None, train=TRAIN, **changes):
    names = ("second_model", "callbacks", "model_init", "optimizers", "eval_dataset")
    inputs = {name: changes.pop(name) for name in names if name in changes}
    if "model_init" not in inputs:
        inputs["model"] = model if model is not None else tiny.tiny_vit()
    args = tiny.arguments(folder, **{"learning_rate": 0.01, "second_sampler": "batch", **changes})
    trainer = CoTeachingTrainer(args=args, train_dataset=train, processing_class=tiny.processor(), **inputs)
    trainer.remove_callback(PrinterCallback)
    return trainer


def select(trainer, first, second):
    """As if the networks had selected these rows; the first epoch is the one that is trained."""
    posterior = torch.zeros(ROWS, 2)
    posterior[first, 0], posterior[second, 1] = 0.9, 0.7
    trainer.label_state.instance_posterior = posterior
    trainer.label_state.prepared_epoch = 0


def batches(trainer):
    loader = trainer.get_train_dataloader()
    trainer.prepare_epoch(0)
    return [trainer._prepare_inputs(batch) for batch in loader]


def plain_loss(network, inputs, number, chosen):
    """Mean over the chosen images of the batch; Σ over classes of λ·BCE + (1 − λ)·BCE on the mixed image."""
    losses = []
    hot = torch.zeros(ROWS, 5, dtype=torch.float64)
    for row, ids in enumerate(TRAIN["labels"]):
        hot[row, ids] = 1
    for item in range(len(inputs["index"])):
        row, partner = inputs["index"][item, 2 * number : 2 * number + 2].tolist()
        if row not in chosen:
            continue
        assert partner in chosen
        share = inputs["mix_lambda"][item, number]
        pixels = inputs["pixel_values"][item, 2 * number : 2 * number + 2, 0]
        mixed = share * pixels[0] + (1 - share) * pixels[1]
        f = network(pixel_values=mixed[None]).logits[0].double().sigmoid()
        target = share * hot[row] + (1 - share) * hot[partner]
        losses.append(-(target * f.log() + (1 - target) * (1 - f).log()).sum())
    return sum(losses) / len(losses) if losses else torch.zeros(())


# ---- one step ----


def test_a_step_is_that_of_plain_loops(tmp_path):
    """Each network learns from what the other one selected, and from nothing else."""
    trainer = make(tmp_path, warmup_epochs=0)
    by_first, by_second = list(range(0, 18)), list(range(5, 24, 2))
    select(trainer, by_first, by_second)
    pair = trainer.model
    for inputs in batches(trainer):
        pair.zero_grad()
        loss = trainer.compute_loss(pair, inputs)
        loss.backward()
        expected = [plain_loss(pair.first, inputs, 0, by_second), plain_loss(pair.second, inputs, 1, by_first)]
        assert float(loss.detach()) == pytest.approx(float(sum(expected).detach()), rel=1e-5)
        grads = {name: p.grad.clone() for name, p in pair.named_parameters()}
        pair.zero_grad()
        sum(expected).backward()
        for name, parameter in pair.named_parameters():
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_the_warm_up_learns_from_all_images(tmp_path):
    trainer = make(tmp_path, warmup_epochs=1)
    select(trainer, [], [])  # of an earlier epoch: not looked at
    for inputs in batches(trainer):
        everything = range(ROWS)
        rows, partners = inputs["index"][:, 0::2], inputs["index"][:, 1::2]
        assert ((rows != partners).sum(dim=0) > 2).all()
        expected = sum(plain_loss(net, inputs, n, everything) for n, net in enumerate(trainer.model.children()))
        assert float(trainer.compute_loss(trainer.model, inputs).detach()) == pytest.approx(
            float(expected.detach()), rel=1e-5
        )


@pytest.mark.parametrize("second_sampler", ["batch", "none"])
def test_images_left_out_are_never_looked_at(tmp_path, second_sampler):
    """Not as partners either, and not by batch norm: with NaN in their place nothing changes."""
    by_first, by_second = list(range(0, 20)), list(range(6, 24))
    states, left_out = [], 0
    for poison in (False, True):
        trainer = make(tmp_path, tiny.tiny_resnet(), warmup_epochs=0, second_sampler=second_sampler)
        select(trainer, by_first, by_second)
        trainer.model.train()
        for inputs in batches(trainer):
            members = inputs["index"].shape[1] // 2
            assert members == (2 if second_sampler == "batch" else 1)
            for number, chosen in enumerate((by_second, by_first)):
                out = ~torch.isin(inputs["index"][:, number * members], torch.tensor(chosen))
                assert int((~out).sum()) >= 2
                left_out += int(out.sum())
                if poison:
                    inputs["pixel_values"][out, number * members : (number + 1) * members] = float("nan")
            loss = trainer.compute_loss(trainer.model, inputs)
            assert loss.isfinite()
        states.append(tiny.weights_of(trainer.model))
    assert left_out == 2 * (4 + 6)
    assert tiny.same_weights(*states)
    assert any("running_mean" in name for name in states[0])


@pytest.mark.parametrize("left", [0, 1])
def test_hardly_anything_selected(tmp_path, left):
    """A network whose partner selects nothing has loss and gradient 0; one image does not stop batch norm."""
    model, _ = build_model("small_resnet", tiny.NAMES, 16)  # its last maps are single pixels
    trainer = make(tmp_path, model, warmup_epochs=0)
    trainer.args.num_train_epochs = 1
    select(trainer, list(range(ROWS)), list(range(left)))
    trainer.model.train()
    losses = []
    for inputs in batches(trainer):
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, inputs).backward()
        rows = [row for row in inputs["index"][:, 0].tolist() if row < left]
        gradients = [float(p.grad.abs().max()) for p in trainer.model.first.parameters()]
        assert (max(gradients) > 0) == bool(rows)
        assert all(p.grad is not None for p in trainer.model.parameters())  # what DDP waits for
        assert max(float(p.grad.abs().max()) for p in trainer.model.second.parameters()) > 0
        losses.append(gradients)
    assert len(losses) == STEPS


def test_nothing_left_out_is_plain_training(tmp_path):
    """With all images selected the steps after the warm-up are those of the warm-up, bit for bit."""
    weights = []
    for options in ({"warmup_epochs": 1, "min_fit": ROWS + 1}, {"warmup_epochs": 9}):
        trainer = make(tmp_path, tiny.tiny_resnet(), num_train_epochs=3, **options)
        trainer.train()
        weights.append(tiny.weights_of(trainer.model))
    assert tiny.same_weights(*weights)
    usual = make(tmp_path, tiny.tiny_resnet(), num_train_epochs=3, warmup_epochs=1)
    usual.train()
    assert not tiny.same_weights(weights[0], tiny.weights_of(usual.model))


def test_a_step_is_the_same_however_it_is_accumulated(tmp_path):
    norms = {}
    for batch, accumulated in ((12, 1), (4, 3), (1, 12)):
        seen = norms.setdefault((batch, accumulated), [])

        class Norms(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, seen=seen, **kwargs):
                seen.append(
                    [float(torch.stack([p.grad.norm() for p in n.parameters()]).norm()) for n in model.children()]
                )

        trainer = make(
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            num_train_epochs=1,
            warmup_epochs=0,
            callbacks=[Norms()],
        )
        trainer.train()
        assert 0 < trainer.state.log_history[0]["selected_by_first"] < 1
    for found in norms.values():
        np.testing.assert_allclose(found, norms[12, 1], rtol=1e-5)
    assert len(norms[12, 1]) == 2


# ---- the selection ----


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_selection_is_a_mixture_of_image_losses(tmp_path):
    """Of the networks as they are now, on plain images; one pass for each epoch after the warm-up, and at the end."""
    passes, original = [], co_teaching.predict_views

    def counted(trainer, clean, augmented, epoch, predict):
        passes.append((clean, augmented, epoch))
        before = torch.get_rng_state()
        logits = original(trainer, clean, augmented, epoch, predict)
        assert torch.equal(before, torch.get_rng_state())
        assert logits.shape == (ROWS, 1, 2, 5)
        return logits

    trainer = make(tmp_path, num_train_epochs=3, warmup_epochs=1)
    co_teaching.predict_views = counted
    try:
        trainer.train()
        trainer.prepare_epoch(3, final=True)  # idempotent
    finally:
        co_teaching.predict_views = original
    assert passes == [(True, 0, 1), (True, 0, 2), (True, 0, 3)]
    state, pair = trainer.label_state, trainer.model
    hot = state.labels.double().numpy()
    for number, network in enumerate((pair.first, pair.second)):
        plain = MultiLabelTrainer(network, trainer.args, eval_dataset=TRAIN, processing_class=tiny.processor())
        f = 1 / (1 + np.exp(-plain.predict(TRAIN).predictions.astype(np.float64)))
        if number == 0:
            np.testing.assert_allclose(state.probs.numpy(), f, atol=1e-5)
        losses = -(hot * np.log(f) + (1 - hot) * np.log(1 - f)).sum(axis=1)
        scaled = ((losses - losses.min()) / (losses.max() - losses.min()))[:, None]
        start = {"weights_init": [0.5] * 2, "means_init": [[0.0], [1.0]], "precisions_init": [[[25.0]]] * 2}
        fit = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, **start).fit(scaled)
        expected = fit.predict_proba(scaled)[:, int(fit.means_[:, 0].argmin())]
        np.testing.assert_allclose(state.instance_posterior[:, number].numpy(), expected, atol=1e-3)
    logged = [entry for entry in trainer.state.log_history if "selected_by_first" in entry]
    assert [entry["step"] for entry in logged] == [STEPS, 2 * STEPS, 3 * STEPS]
    shares = (state.instance_posterior > 0.5).double().mean(dim=0).tolist()
    assert [logged[-1]["selected_by_first"], logged[-1]["selected_by_second"]] == shares
    saved, _ = LabelState.load(tmp_path / FINAL_STATE)
    assert saved.digest() == state.digest()


def test_how_good_a_selection_is():
    """Counted by hand: rows 0 and 3 are wholly right, row 1 has one wrong label of two, row 2 two."""
    labels = torch.tensor([[1, 0], [1, 1], [0, 0], [0, 1]], dtype=torch.uint8)
    clean = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.uint8)
    posterior = torch.tensor([[0.9, 0.9], [0.9, 0.4], [0.1, 0.5], [0.8, 0.1]])
    state = LabelState(labels, ("a", "b"), instance_posterior=posterior)
    found = selection_diagnostics(state, clean)
    assert found == {
        "selected_by_first": 0.75,
        "selected_by_second": 0.25,
        "selection_precision": pytest.approx((2 / 3 + 1) / 2),
        "selection_recall": pytest.approx((2 / 2 + 1 / 2) / 2),
        "selected_labels_right": pytest.approx((2.5 / 3 + 1) / 2),
    }
    assert list(selection_diagnostics(state, None)) == ["selected_by_first", "selected_by_second"]


def test_a_warm_up_without_end_is_said(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(co_teaching.logger, "warning", lines.append)
    make(tmp_path, num_train_epochs=2, warmup_epochs=2).train()
    assert len(lines) == 1
    assert "`warmup_epochs` is 2, the run has 2 epochs" in lines[0]
    make(tmp_path, num_train_epochs=2, warmup_epochs=1).train()
    assert len(lines) == 1


# ---- the two networks ----


def timm_resnet():
    return build_model("resnet10t", tiny.NAMES, 32, pretrained=False)[0]


@pytest.mark.parametrize("build", [tiny.tiny_vit, tiny.tiny_resnet, timm_resnet])
def test_a_copy_with_a_new_head(build):
    model = build()
    for parameter in model.base_model.parameters():
        parameter.requires_grad_(False)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    second, again, other = (with_new_head(model, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert type(second) is type(model)
    weights, copied = tiny.weights_of(model), tiny.weights_of(second)
    differ = {name for name in weights if not torch.equal(weights[name], copied[name])}
    heads = {"classifier.weight", "classifier.1.weight", "timm_model.fc.weight"}
    assert len(differ & heads) == 1
    assert all("classifier" in name or ".fc." in name for name in differ)
    assert tiny.same_weights(copied, tiny.weights_of(again))
    assert not tiny.same_weights(copied, tiny.weights_of(other))
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in second.named_parameters()} == flags
    assert not all(flags.values())


def test_the_second_network_is_never_the_first(tmp_path):
    """Also where the run's seed has drawn the first one whole."""
    pair = make(tmp_path, tiny.tiny_vit(seed=0), seed=0).model
    assert not torch.equal(pair.first.classifier.weight, pair.second.classifier.weight)
    again = make(tmp_path, tiny.tiny_vit(seed=0), seed=0).model
    assert tiny.same_weights(tiny.weights_of(pair), tiny.weights_of(again))
    other = make(tmp_path, tiny.tiny_vit(seed=0), seed=1).model
    assert not torch.equal(pair.second.classifier.weight, other.second.classifier.weight)


def test_a_second_model_is_taken_as_it_is(tmp_path):
    second = tiny.tiny_vit(seed=4)
    expected = tiny.weights_of(second)
    trainer = make(tmp_path, second_model=second)
    assert trainer.model.second is second
    assert tiny.same_weights(tiny.weights_of(second), expected)
    trainer.train()
    assert not tiny.same_weights(tiny.weights_of(second), expected)
    assert second.training is trainer.model.first.training


def test_networks_of_two_kinds(tmp_path):
    trainer = make(tmp_path, second_model=tiny.tiny_resnet(), evaluated_network="mean", save_strategy="epoch")
    trainer.train()
    weights = tiny.weights_of(trainer.model)
    again = make(tmp_path, second_model=tiny.tiny_resnet(), evaluated_network="mean", save_strategy="epoch")
    again.train(str(tmp_path / f"checkpoint-{STEPS}"))
    assert tiny.same_weights(tiny.weights_of(again.model), weights)


def test_model_init_gives_a_pair_for_every_run(tmp_path):
    trainer = make(tmp_path, model_init=lambda: tiny.tiny_vit(dropout=0.1))
    assert isinstance(trainer.model, NetworkPair)
    runs = []
    for _ in range(2):
        trainer.train()
        runs.append((tiny.weights_of(trainer.model), trainer.label_state.digest()))
    assert tiny.same_weights(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


# ---- predicting and saving ----


def test_a_saved_pair_is_the_first_network_with_the_second_inside(tmp_path):
    trainer = make(tmp_path, tiny.tiny_resnet(), second_model=tiny.tiny_vit())
    trainer.train()
    folder = tmp_path / 'a "<b>" [ä] *'
    trainer.save_model(str(folder))
    loaded, _ = load_checkpoint(folder)
    assert type(loaded) is type(trainer.model.first)
    assert tiny.same_weights(tiny.weights_of(loaded), tiny.weights_of(trainer.model.first))
    second = AutoModelForImageClassification.from_pretrained(folder / SECOND_NETWORK)
    assert tiny.same_weights(tiny.weights_of(second), tiny.weights_of(trainer.model.second))
    for model in (loaded, second):
        assert model.config.problem_type == "multi_label_classification"
        assert tuple(model.config.id2label[i] for i in range(5)) == tiny.NAMES
    picture = TRAIN[0]["image"]
    scores = {e["label"]: e["score"] for e in pipeline("image-classification", model=str(folder))(picture, top_k=5)}
    logits = trainer.predict(TRAIN.select([0])).predictions[0]
    for name, logit in zip(tiny.NAMES, logits, strict=True):
        assert scores[name] == pytest.approx(1 / (1 + np.exp(-float(logit))), abs=1e-5)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["ResNetForImageClassification"]


def test_weights_handed_over_are_written(tmp_path):
    pair = make(tmp_path).model
    other = {name: value + 1 for name, value in pair.state_dict().items()}
    pair.save_pretrained(tmp_path / "other", state_dict=other)
    pair.load_weights(tmp_path / "other")
    assert tiny.same_weights(tiny.weights_of(pair), other)


@pytest.mark.parametrize("evaluated", ["first", "mean"])
def test_what_is_evaluated(tmp_path, evaluated):
    trainer = make(tmp_path, evaluated_network=evaluated, eval_dataset=EVAL, eval_strategy="epoch")
    trainer.train()
    found = trainer.predict(EVAL).predictions
    unlabelled = trainer.predict(EVAL.remove_columns(["labels", "clean_labels"])).predictions
    np.testing.assert_array_equal(found, unlabelled)
    probs = []
    for network in (trainer.model.first, trainer.model.second):
        plain = MultiLabelTrainer(network, trainer.args, eval_dataset=EVAL, processing_class=tiny.processor())
        probs.append(1 / (1 + np.exp(-plain.predict(EVAL).predictions.astype(np.float64))))
    expected = probs[0] if evaluated == "first" else (probs[0] + probs[1]) / 2
    np.testing.assert_allclose(1 / (1 + np.exp(-found.astype(np.float64))), expected, atol=1e-6)
    # The statistics describe what is handed over.
    on_train = trainer.predict(TRAIN).predictions
    np.testing.assert_allclose(trainer.label_state.probs, 1 / (1 + np.exp(-on_train)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [tiny.tiny_vit, tiny.tiny_resnet])
def test_resume_is_exact_from_every_checkpoint(tmp_path, build):
    """Both networks, in the warm-up and after it."""
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "epoch"}
    options |= {"eval_dataset": EVAL, "optim": "adamw_torch", "learning_rate": 1e-3}
    trainer = make(tmp_path, build(), **options)
    trainer.train()
    weights, digest = tiny.weights_of(trainer.model), trainer.label_state.digest()
    for step in (2, 4):
        checkpoint = tmp_path / f"checkpoint-{step}"
        again = make(tmp_path, build(), **options)
        again.train(str(checkpoint))
        assert tiny.same_weights(tiny.weights_of(again.model), weights), checkpoint
        assert again.label_state.digest() == digest


def test_the_best_model_is_both_networks(tmp_path):
    scores, kept = iter([10.0, 90.0, 20.0]), []

    class Keep(TrainerCallback):
        def on_epoch_end(self, args, state, control, model=None, **kwargs):
            kept.append(tiny.weights_of(model))

    options = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    trainer = make(tmp_path, num_train_epochs=3, eval_dataset=EVAL, callbacks=[Keep()], **options)
    trainer.compute_metrics = lambda _: {"map": next(scores)}
    trainer.train()
    assert tiny.same_weights(tiny.weights_of(trainer.model), kept[1])
    assert not tiny.same_weights(kept[1], kept[2])


def test_bf16_and_activation_checkpointing(tmp_path):
    for options in ({"bf16": True}, {"activation_checkpointing": True}, {"class_reduction": "mean"}):
        trainer = make(
            tmp_path, eval_dataset=EVAL, evaluated_network="mean", warmup_epochs=0, num_train_epochs=1, **options
        )
        start = tiny.weights_of(trainer.model)
        assert np.isfinite(trainer.train().training_loss)
        assert np.isfinite(trainer.evaluate()["eval_map"])
        after = tiny.weights_of(trainer.model)
        assert all(tensor.dtype == torch.float32 for tensor in after.values())
        assert not [name for name in start if name.endswith("weight") and torch.equal(start[name], after[name])]
        assert trainer.model.is_activation_checkpointing is ("activation_checkpointing" in options)


def test_the_average_of_both_networks(tmp_path):
    """Followed by hand, written as a pair, and the same after a resume."""
    expected = {}

    class Follow(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            expected.update(tiny.weights_of(model))

        def on_step_end(self, args, state, control, model=None, **kwargs):
            for name, value in model.state_dict().items():
                expected[name] = 0.5 * expected[name] + 0.5 * value

    options = {"ema_decay": 0.5, "save_strategy": "steps", "save_steps": 4}
    trainer = make(tmp_path, callbacks=[Follow()], **options)
    trainer.train()
    for resumed in (False, True):
        if resumed:
            trainer = make(tmp_path, **options)
            trainer.train(str(tmp_path / "checkpoint-4"))
        for folder, part in (("ema", "first."), (f"ema/{SECOND_NETWORK}", "second.")):
            found = tiny.weights_of(AutoModelForImageClassification.from_pretrained(tmp_path / folder))
            for name, value in found.items():
                torch.testing.assert_close(value, expected[part + name], rtol=1e-5, atol=1e-6)


# ---- refused ----


def test_networks_that_do_not_fit(tmp_path):
    model = tiny.tiny_vit()
    cases = [
        (ValueError, ("one model as `model` and as `second_model`", "twice"), {"model": model, "second_model": model}),
        (ValueError, ("found 5 of `model` and 4 of `second_model`",), {"second_model": tiny.tiny_vit(4)}),
        (TypeError, ("as `second_model`, found Linear",), {"second_model": torch.nn.Linear(1, 1)}),
        (TypeError, ("as `model`, found Linear", "AutoModelForImage"), {"model": torch.nn.Linear(1, 1)}),
        (TypeError, ("found none", "model_init"), {"model_init": tiny.tiny_vit, "second_model": tiny.tiny_vit()}),
    ]
    for error, parts, inputs in cases:
        tiny.refused(error, parts, make, tmp_path, **inputs)


def test_a_head_that_cannot_be_told_from_the_rest(tmp_path):
    model = tiny.tiny_vit()
    model.base_model_prefix = ""
    tiny.refused(ValueError, ("head can be told", "ViTForImageClassification", "second_model"), make, tmp_path, model)
    make(tmp_path, model, second_model=tiny.tiny_vit(seed=1))
    changed = tiny.tiny_vit()
    changed.classifier = torch.nn.Sequential(changed.classifier)  # not what its configuration says
    tiny.refused(ValueError, ("from its configuration", "second_model"), make, tmp_path, changed)


def test_an_optimizer_of_the_first_network_alone(tmp_path):
    first, second = tiny.tiny_vit(), tiny.tiny_vit(seed=1)
    alone = torch.optim.SGD(first.parameters(), lr=0.1)
    parts = ("Expected an optimiser of both networks", "without the second's", "`optim`")
    tiny.refused(ValueError, parts, make, tmp_path, first, optimizers=(alone, None))
    both = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
    make(tmp_path, first, second_model=second, optimizers=(both, None)).train()


@pytest.mark.parametrize("flag", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sharded_training_is_refused(tmp_path, monkeypatch, flag):
    original = Trainer.create_accelerator_and_postprocess

    def pretend(self):
        original(self)
        setattr(self, flag, True)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", pretend)
    tiny.refused(ValueError, ("without FSDP and DeepSpeed", "data parallelism"), make, tmp_path)


def test_a_checkpoint_without_a_second_network(tmp_path):
    """Of another method: refused before anything is loaded."""
    args = tiny.arguments(tmp_path, second_sampler="batch", save_strategy="epoch")
    MultiLabelTrainer(tiny.tiny_vit(seed=5), args, train_dataset=TRAIN, processing_class=tiny.processor()).train()
    trainer = make(tmp_path, save_strategy="epoch")
    before = copy.deepcopy(trainer.model.state_dict())
    checkpoint = str(tmp_path / f"checkpoint-{STEPS}")
    parts = (checkpoint, "optimiser of 1 network(s), this method trains 2", "new run")
    tiny.refused(ValueError, parts, trainer.train, checkpoint)
    assert tiny.same_weights(trainer.model.state_dict(), before)
    parts = ("Expected a checkpoint of co-teaching", f"{SECOND_NETWORK}/", checkpoint, "another method", "new run")
    tiny.refused(ValueError, parts, trainer.model.load_weights, checkpoint)


def test_a_checkpoint_of_co_teaching_with_another_method(tmp_path):
    make(tmp_path, save_strategy="epoch").train()
    args = tiny.arguments(tmp_path, second_sampler="batch", save_strategy="epoch")
    trainer = MultiLabelTrainer(tiny.tiny_vit(seed=5), args, train_dataset=TRAIN, processing_class=tiny.processor())
    parts = ("optimiser of 2 network(s), this method trains 1", "another `output_dir`")
    tiny.refused(ValueError, parts, trainer.train, str(tmp_path / f"checkpoint-{STEPS}"))
