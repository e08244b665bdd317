"""The averaged weights: right numbers, no trace in the raw run, exact resume, a model that loads."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from hf_balancemix import BalanceMixTrainer, MultiLabelTrainer
from hf_balancemix.build import build_model
from hf_balancemix.training import ema
from hf_balancemix.training.checkpoints import complete_checkpoints
from hf_balancemix.training.ema import FILE_NAME, FINAL_MODEL, has_average
from tests import tiny

ROWS, STEPS, DECAY = 24, 3, 0.8  # three steps of eight per epoch
TRAIN, EVAL = tiny.tiny_dataset(ROWS), tiny.tiny_dataset(13, seed=9)
COUNTER = "num_batches_tracked"


def make(folder, cls=MultiLabelTrainer, model=None, callbacks=(), eval_dataset=EVAL, processor=None, **changes):
    values = {"learning_rate": 0.02, "ema_decay": DECAY, **changes}
    trainer = cls(
        model if model is not None else tiny.tiny_resnet(),
        tiny.arguments(folder, **values),
        train_dataset=TRAIN,
        eval_dataset=eval_dataset,
        processing_class=processor if processor is not None else tiny.processor(),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class Weights(TrainerCallback):
    """The raw weights before training and after every optimiser step."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.seen.append(tiny.weights_of(model))

    on_step_end = on_train_begin


def average_of(trainer):
    return {name: value.clone() for name, value in trainer.average.average.items()}


def different(first, second):
    return [name for name in first if not torch.equal(first[name], second[name])]


# ---- the numbers ----


@pytest.mark.parametrize(("accumulation", "updates"), [(1, 6), (2, 4)])
def test_it_is_the_recursion_over_optimiser_steps(tmp_path, accumulation, updates):
    weights = Weights()
    trainer = make(tmp_path, callbacks=[weights], gradient_accumulation_steps=accumulation)
    trainer.train()
    assert len(weights.seen) == 1 + updates
    averaged = set()
    for name, found in trainer.average.average.items():
        expected = weights.seen[0][name].numpy().astype(np.float64)
        for step in weights.seen[1:]:
            expected = DECAY * expected + (1 - DECAY) * step[name].numpy()
        if name.endswith(COUNTER):
            assert found.dtype == torch.int64
            assert int(found) == int(weights.seen[-1][name])
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
            averaged.add(name.rsplit(".", 1)[1])
    assert averaged == {"weight", "bias", "running_mean", "running_var"}


def test_what_does_not_change_stays_to_the_last_bit(tmp_path):
    model = tiny.tiny_vit()
    model.vit.requires_grad_(False)
    start = tiny.weights_of(model)
    trainer = make(tmp_path, model=model)
    trainer.train()
    assert set(different(start, average_of(trainer))) == {"classifier.weight", "classifier.bias"}


def test_half_precision_weights_are_averaged_in_float32(tmp_path):
    """A step of 3e-4 towards a bf16 weight is lost in bf16."""
    trainer = make(tmp_path, model=tiny.tiny_resnet().to(torch.bfloat16), ema_decay=0.9997)
    trainer.average.start()
    with torch.no_grad():
        for value in trainer.model.parameters():
            value.fill_(2.0)
    start = average_of(trainer)
    trainer.average.update()
    for name, _ in trainer.model.named_parameters():
        value = trainer.average.average[name]
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, start[name] + 3e-4 * (2 - start[name]), rtol=1e-6, atol=0)
    raw = tiny.weights_of(trainer.model)
    with trainer.average.applied():
        assert all(value.dtype == torch.bfloat16 for value in trainer.model.parameters())
        assert different(raw, tiny.weights_of(trainer.model))
    assert not different(raw, tiny.weights_of(trainer.model))


@pytest.mark.parametrize(("decay", "told"), [(0.0, []), (0.5, []), (0.9, ["53%"]), (0.9997, ["100%"])])
def test_a_run_too_short_for_its_decay_is_told(tmp_path, monkeypatch, decay, told):
    lines = []
    monkeypatch.setattr(ema.logger, "warning", lines.append)
    make(tmp_path, ema_decay=decay).train()
    assert [part for line in lines for part in line.split() if part.endswith("%")] == told


# ---- beside the raw model ----


@pytest.mark.parametrize("cls", [MultiLabelTrainer, BalanceMixTrainer])
def test_the_raw_run_is_the_run_without_it(tmp_path, cls):
    """Dropout, evaluation after every epoch, BalanceMix's statistics: the same numbers with and without."""
    runs = []
    for decay in (0.0, DECAY):
        trainer = make(
            tmp_path, cls, tiny.tiny_vit(dropout=0.1), ema_decay=decay, eval_strategy="epoch", relabel_threshold=0.55
        )
        trainer.train()
        maps = [entry["eval_map"] for entry in trainer.state.log_history if "eval_map" in entry]
        runs.append((tiny.weights_of(trainer.model), trainer.label_state.digest(), maps))
        assert len(maps) == 2
        assert (trainer.average.average is not None) == ("eval_ema_map" in trainer.evaluate()) == (decay > 0)
        assert (tmp_path / FINAL_MODEL).exists() == (decay > 0)
    assert not different(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]


def test_both_models_are_evaluated(tmp_path):
    trainer = make(tmp_path, eval_strategy="epoch", num_train_epochs=3)
    trainer.train()
    raw, metrics = tiny.weights_of(trainer.model), trainer.evaluate()
    assert not different(raw, tiny.weights_of(trainer.model))
    names = ("map", "few", "cf1", "of1", "loss", "num_classes_evaluated")
    assert {f"eval_ema_{name}" for name in names} < set(metrics)
    other = make(tmp_path, model=tiny.tiny_resnet(), ema_decay=0.0)
    for weights, prefix in ((raw, "eval"), (average_of(trainer), "eval_ema")):
        other.model.load_state_dict(weights)
        alone = other.evaluate()
        for name in names:
            assert metrics[f"{prefix}_{name}"] == pytest.approx(alone[f"eval_{name}"], rel=1e-5)
    assert metrics["eval_ema_loss"] != pytest.approx(metrics["eval_loss"], rel=1e-4)
    logged = [entry for entry in trainer.state.log_history if "eval_map" in entry]
    assert len(logged) == 4
    assert all("eval_ema_map" in entry for entry in logged)


def test_several_sets_and_prediction(tmp_path):
    trainer = make(tmp_path, eval_dataset={"first": EVAL, "second": tiny.tiny_dataset(16, seed=3)})
    trainer.train()
    metrics, predicted = trainer.evaluate(), trainer.predict(EVAL)
    assert {"eval_first_map", "eval_first_ema_map", "eval_second_map", "eval_second_ema_map"} < set(metrics)
    assert metrics["eval_first_ema_loss"] != metrics["eval_second_ema_loss"]
    assert predicted.metrics["test_ema_map"] == metrics["eval_first_ema_map"]
    plain = make(tmp_path, model=trainer.model, ema_decay=0.0).predict(EVAL)
    np.testing.assert_array_equal(predicted.predictions, plain.predictions)  # those of the raw model
    unlabelled = trainer.predict(EVAL.select_columns("image")).metrics
    assert not [name for name in unlabelled if "ema" in name]


def test_the_raw_weights_come_back_if_the_evaluation_fails(tmp_path):
    trainer = make(tmp_path)
    trainer.train()
    raw, seen = tiny.weights_of(trainer.model), []
    compute_metrics = trainer.compute_metrics

    def fails_at_the_second(prediction):
        seen.append(tiny.weights_of(trainer.model))
        if len(seen) == 2:
            raise RuntimeError("out of memory, say")
        return compute_metrics(prediction)

    trainer.compute_metrics = fails_at_the_second
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.evaluate()
    assert not different(raw, seen[0])
    assert not different(seen[1], {n: average_of(trainer)[n] for n in raw})
    assert not different(raw, tiny.weights_of(trainer.model))


def test_full_bf16_evaluation(tmp_path):
    trainer = make(tmp_path, model=tiny.tiny_vit(), bf16_full_eval=True)
    trainer.train()
    raw = {name: value.bfloat16() for name, value in tiny.weights_of(trainer.model).items()}
    assert "eval_ema_map" in trainer.evaluate()
    assert not different(raw, tiny.weights_of(trainer.model))  # the Trainer leaves it in bf16
    assert all(value.dtype == torch.float32 for value in trainer.average.average.values())


# ---- checkpoints ----


@pytest.mark.parametrize(("cls", "kind"), [(MultiLabelTrainer, "vit"), (BalanceMixTrainer, "resnet")])
def test_resume_is_exact(tmp_path, cls, kind):
    def run(folder, checkpoint=None):
        model = tiny.tiny_resnet() if kind == "resnet" else tiny.tiny_vit(dropout=0.1)
        options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3, "eval_strategy": "epoch"}
        trainer = make(folder, cls, model, relabel_threshold=0.55, **options)
        trainer.train(resume_from_checkpoint=checkpoint)
        return tiny.weights_of(trainer.model), average_of(trainer)

    alone = run(tmp_path / "alone")
    checkpoints = complete_checkpoints(tmp_path / "alone")
    assert [path.name for path in checkpoints] == [f"checkpoint-{step}" for step in (2, 4, 6, 8, 9)]
    assert all(has_average(path) for path in checkpoints)
    for checkpoint in checkpoints[1:3]:
        resumed = run(tmp_path / "resumed", checkpoint)
        assert not different(alone[0], resumed[0])
        assert not different(alone[1], resumed[1])
    assert different(*alone)


def test_a_damaged_average_makes_the_checkpoint_incomplete(tmp_path):
    make(tmp_path, save_strategy="steps", save_steps=2).train()
    folder, path = tmp_path, tmp_path / "checkpoint-4" / FILE_NAME
    parts = ("Expected a complete checkpoint", f"lacks a readable {FILE_NAME}", str(folder / "checkpoint-6"))
    for damage in (lambda: path.write_bytes(path.read_bytes()[:-100]), path.unlink):
        damage()
        tiny.refused(ValueError, parts, make(folder).train, str(folder / "checkpoint-4"))


def test_another_models_average_is_refused(tmp_path):
    path = tmp_path / FILE_NAME
    save_file({"x": torch.zeros(1)}, path)
    trainer = make(tmp_path)
    parts = (str(path), "not those of this model", "Resume from another checkpoint")
    tiny.refused(ValueError, parts, trainer.average.load, tmp_path)
    path.write_bytes(b"garbage" * 9)
    tiny.refused(ValueError, (str(path), "damaged", "Resume from another"), trainer.average.load, tmp_path)


def test_an_average_that_begins_in_the_middle(tmp_path, monkeypatch):
    """Switched on for the second half only: it begins with the checkpoint's weights, and says so."""
    options = {"save_strategy": "steps", "save_steps": 2}
    make(tmp_path, ema_decay=0.0, **options).train()
    assert not list(tmp_path.glob(f"*/{FILE_NAME}"))
    lines, weights = [], Weights()
    monkeypatch.setattr(ema.logger, "warning", lines.append)
    trainer = make(tmp_path, callbacks=[weights], **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "begins with the weights of this checkpoint" in "".join(lines)
    assert len(weights.seen) == 3
    name = "classifier.1.weight"
    expected = weights.seen[0][name]
    for step in weights.seen[1:]:
        expected = DECAY * expected + (1 - DECAY) * step[name]
    torch.testing.assert_close(trainer.average.average[name], expected)


def test_a_second_run_of_one_trainer_begins_anew(tmp_path):
    trainer = make(tmp_path)
    trainer.train()
    before, weights = tiny.weights_of(trainer.model), Weights()
    trainer.add_callback(weights)
    trainer.args.max_steps = 1
    trainer.train()
    for name, value in trainer.average.average.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, DECAY * before[name] + (1 - DECAY) * weights.seen[-1][name])


# ---- the model at the end ----


@pytest.mark.parametrize("kind", ["resnet", "vit", "timm"])
def test_the_averaged_model_loads_with_the_auto_classes(tmp_path, kind):
    if kind == "timm":
        model, processor = build_model("resnet10t", tiny.NAMES, 32, pretrained=False)
    else:
        model, processor = (tiny.tiny_resnet() if kind == "resnet" else tiny.tiny_vit()), tiny.processor()
    trainer = make(tmp_path, model=model, processor=processor)
    trainer.train()
    trainer.save_model()
    raw = tiny.weights_of(trainer.model)
    for folder, expected in ((tmp_path / FINAL_MODEL, average_of(trainer)), (tmp_path, raw)):
        loaded = AutoModelForImageClassification.from_pretrained(folder)
        assert type(loaded) is type(model)
        assert not different(expected, tiny.weights_of(loaded))
        assert list(loaded.config.id2label.values()) == list(tiny.NAMES)
        assert loaded.config.problem_type == "multi_label_classification"
        assert type(AutoImageProcessor.from_pretrained(folder)) is type(processor)


def test_with_the_best_model_its_average_is_kept(tmp_path):
    scores = iter([1.0, 10.0, 2.0, 20.0, 3.0, 15.0])  # raw, averaged, raw, …
    trainer = make(
        tmp_path,
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="ema_map",
    )
    trainer.compute_metrics = lambda _: {"map": next(scores)}
    trainer.train()
    assert trainer.state.best_metric == 20.0
    best = tmp_path / "checkpoint-6"
    assert trainer.state.best_model_checkpoint == str(best)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / FINAL_MODEL)
    assert not different(load_file(best / FILE_NAME), tiny.weights_of(loaded))
    assert different(load_file(tmp_path / "checkpoint-9" / FILE_NAME), tiny.weights_of(loaded))


def test_a_full_disk_at_the_end_costs_the_average_only(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(ema.logger, "warning", lines.append)
    trainer = make(tmp_path)
    monkeypatch.setattr(trainer.model, "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    trainer.train()
    assert "no space left" in lines[-1]
    assert different(average_of(trainer), tiny.weights_of(trainer.model))


def test_it_is_refused_for_sharded_models(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    trainer.is_fsdp_enabled = True
    tiny.refused(ValueError, ("Expected `ema_decay=0`", "FSDP", "found 0.8"), ema.WeightAverage, trainer)
    trainer.args.ema_decay = 0.0
    ema.WeightAverage(trainer)


@pytest.mark.slow
def test_torch_compile(tmp_path):
    averages = []
    for compiled in (True, False):
        options = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}
        trainer = make(tmp_path, **options)
        trainer.train()
        metrics = trainer.evaluate()
        averages.append((average_of(trainer), metrics["eval_loss"], metrics["eval_ema_loss"]))
    for name, tensor in averages[0][0].items():
        torch.testing.assert_close(tensor, averages[1][0][name], rtol=1e-4, atol=1e-5)
    assert averages[0][1:] == pytest.approx(averages[1][1:], rel=1e-4)
    assert averages[0][1] != pytest.approx(averages[0][2], rel=1e-3)
