"""Bad input that reaches the trainers: refused before training, with what was expected, found, and what to do."""

import datasets
import numpy as np
import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from hf_balancemix import BalanceMixTrainer, BalanceMixTrainingArguments, MultiLabelTrainer
from tests import tiny

TRAIN = tiny.tiny_dataset(24)


class NoStep(TrainerCallback):
    """Fails the test as soon as a training step begins."""

    def on_step_begin(self, args, state, control, **kwargs):
        pytest.fail("a training step began")


def run(tmp_path, cls=BalanceMixTrainer, changes=None, **inputs):
    """Construct a trainer and train; nothing here may get as far as a step."""
    inputs = {
        "model": tiny.tiny_vit(),
        "train_dataset": TRAIN,
        "processing_class": tiny.processor(),
        "callbacks": [NoStep()],
        **inputs,
    }
    if "args" not in inputs:
        inputs["args"] = tiny.arguments(tmp_path, **(changes or {}))
    cls(**inputs).train()


def with_labels(values, feature=None, rows=24):
    """The tiny pictures with other labels."""
    values = values if isinstance(values, list) else [values] * rows
    feature = feature or datasets.List(datasets.Value("int64"))
    features = datasets.Features({"image": datasets.Image(), "labels": feature})
    columns = {"image": TRAIN["image"][: len(values)], "labels": values}
    return datasets.Dataset.from_dict(columns, features=features)


def multi_hot(value, dtype="float32"):
    rows = [[0, 1, 0, 1, 0]] * 23 + [[0, value, 0, 1, 0]]
    return with_labels(rows, datasets.List(datasets.Value(dtype), length=5))


DATA = {
    "no label column": (
        lambda: TRAIN.remove_columns(["labels", "clean_labels"]),
        ("Expected a label column", "found the columns 'image'", "label_column"),
    ),
    "no image column": (
        lambda: TRAIN.remove_columns("image"),
        ("Expected one column of feature Image", "found 0", "cast_column"),
    ),
    "single-label column": (
        lambda: with_labels([0, 1] * 12, datasets.ClassLabel(names=list(tiny.NAMES))),
        ("Expected a list of labels per row", "found the single-label column 'labels'", "dataset.map("),
    ),
    "single-label text column": (
        lambda: with_labels(["ant", "bee"] * 12, datasets.Value("string")),
        ("Expected a list of labels per row", "found the single-label column 'labels'", "dataset.map("),
    ),
    "value above 1": (lambda: multi_hot(2.0), ("Expected 0 or 1 in column 'labels'", "found 2.0 in row 23", "Round")),
    "soft label": (lambda: multi_hot(0.5), ("Expected 0 or 1 in column 'labels'", "found 0.5 in row 23", "Round")),
    "NaN label": (
        lambda: multi_hot(float("nan")),
        ("Expected numbers", "found None or NaN in row 23", "Fill or drop"),
    ),
    "missing label": (lambda: multi_hot(None, "uint8"), ("Expected numbers", "None or NaN in row 23", "Fill or drop")),
    "negative id": (
        lambda: with_labels([[0, 3]] * 23 + [[-1]]),
        ("Expected ids from 0 to 3", "found -1 in row 23", "drop"),
    ),
    "zero classes": (
        lambda: with_labels([[]]),
        ("Expected different class names, at least one", "found no class at all", "label column"),
    ),
    "zero classes in the feature": (
        lambda: with_labels([[]], datasets.List(datasets.ClassLabel(names=[]))),
        ("at least one", "found no class at all", "label column"),
    ),
    "empty split": (
        lambda: TRAIN.select([]),
        ("Expected at least one image in the training set", "found none", "Check the split or the filter"),
    ),
    "fewer images than a batch": (
        lambda: TRAIN.select(range(7)),
        ("Expected at least one batch of 8", "found 7 images", "`per_device_train_batch_size` to at most 7"),
    ),
    "iterable": (
        lambda: TRAIN.to_iterable_dataset(),
        ("Expected a map-style `datasets.Dataset` as training set", "found an IterableDataset", "materialise"),
    ),
    "all splits at once": (
        lambda: datasets.DatasetDict(train=TRAIN, test=TRAIN),
        ("Expected one split as training set", "found a DatasetDict with ['test', 'train']", "dataset['train']"),
    ),
    "list of rows": (
        lambda: [{"image": 0, "labels": [1]}],
        ("Expected a `datasets.Dataset` as training set", "found builtins.list", "Dataset.from_dict"),
    ),
    "torch data set": (
        lambda: torch.utils.data.TensorDataset(torch.zeros(3)),
        ("Expected a `datasets.Dataset` as training set", "TensorDataset", "Dataset.from_dict"),
    ),
    "no training set": (lambda: None, ("Expected a `train_dataset`", "found None", "training needs one")),
    "paths instead of images": (
        lambda: TRAIN.remove_columns("image").add_column("image", ["a.png"] * 24),
        ("Expected one column of feature Image", "found 0", "cast_column"),
    ),
}


@pytest.mark.parametrize("cls", [MultiLabelTrainer, BalanceMixTrainer])
@pytest.mark.parametrize("case", DATA)
def test_training_set(tmp_path, case, cls):
    make, parts = DATA[case]
    error = TypeError if case in ("iterable", "all splits at once", "list of rows", "torch data set") else ValueError
    tiny.refused(error, parts, run, tmp_path, cls, train_dataset=make())


OTHER = ("ant", "bee", "cat", "dog", "emu")
SWAPPED = ("bee", "ant", *tiny.NAMES[2:])


def renamed(names):
    return tiny.tiny_dataset(8, names=names)


EVALUATION = {
    "other names": (lambda: renamed(OTHER), ("'eel' missing and 'emu' extra", "same class names in the same order")),
    "another order": (lambda: renamed(SWAPPED), ("'bee' in place of 'ant'", "same class names in the same order")),
    "fewer classes": (lambda: renamed(tiny.NAMES[:4]), ("'eel' missing", "same class names in the same order")),
    "empty": (lambda: TRAIN.select([]), ("Expected at least one image", "found none", "Check the split")),
    "no labels": (
        lambda: TRAIN.select_columns("image"),
        ("Expected a label column", "found the columns", "label_column"),
    ),
    "unknown name in a list of texts": (
        lambda: with_labels([["ant"], ["emu"]], datasets.List(datasets.Value("string"))),
        ("Expected one of 5 class names", "found 'emu' in row 1", "Correct it"),
    ),
    "id out of range": (
        lambda: with_labels([[0], [5]]),
        ("Expected ids from 0 to 4", "found 5 in row 1", "drop the row"),
    ),
}


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("case", EVALUATION)
def test_evaluation_set(tmp_path, case, as_dict):
    make, parts = EVALUATION[case]
    sets = {"first": TRAIN, "second": make()} if as_dict else make()
    tiny.refused(ValueError, parts, run, tmp_path, eval_dataset=sets)


def test_evaluation_set_given_to_evaluate(tmp_path):
    trainer = BalanceMixTrainer(
        tiny.tiny_vit(), tiny.arguments(tmp_path), train_dataset=TRAIN, processing_class=tiny.processor()
    )
    tiny.refused(ValueError, ("'bee' in place of 'ant'",), trainer.evaluate, renamed(SWAPPED))
    tiny.refused(ValueError, ("Expected an `eval_dataset`", "found None", "pass one"), trainer.evaluate)


ARGUMENTS = {
    "low threshold": (
        {"relabel_threshold": 0.49},
        ("Expected `relabel_threshold` between 0.5 and 1.0", "0.49", "Eq. 9"),
    ),
    "high threshold": ({"relabel_threshold": 1.01}, ("Expected `relabel_threshold` between 0.5 and 1.0", "1.01")),
    "NaN threshold": ({"relabel_threshold": float("nan")}, ("between 0.5 and 1.0", "nan")),
    "negative alpha": ({"mix_alpha": -0.1}, ("Expected `mix_alpha` at least 0", "-0.1", "0 switches mixing off")),
    "NaN alpha": ({"mix_alpha": float("nan")}, ("Expected `mix_alpha` at least 0", "nan", "0 switches mixing off")),
    "infinite alpha": ({"mix_alpha": float("inf")}, ("Expected `mix_alpha`", "inf", "0 switches mixing off")),
    "negative warm-up": ({"warmup_epochs": -1}, ("Expected `warmup_epochs` at least 0", "-1", "counts the epochs")),
    "min_fit": ({"min_fit": 1}, ("Expected `min_fit` at least 2", "found 1", "two losses")),
    "group limits": (
        {"medium_shot_from": 20, "many_shot_from": 10},
        ("`medium_shot_from` <= `many_shot_from`", "20 and 10"),
    ),
    "removed columns": (
        {"remove_unused_columns": True},
        ("Expected `remove_unused_columns=False`", "found True", "Leave it unset"),
    ),
    "label smoothing": (
        {"label_smoothing_factor": 0.1},
        ("Expected `label_smoothing_factor=0.0`", "found 0.1", "leave it at 0"),
    ),
    "sampling strategy": (
        {"train_sampling_strategy": "sequential"},
        ("Expected `train_sampling_strategy='random'`", "sequential", "leave it at 'random'"),
    ),
    "ignore_data_skip": (
        {"ignore_data_skip": True},
        ("Expected `ignore_data_skip=False`", "found True", "leave it at False"),
    ),
    "liger": ({"use_liger_kernel": True}, ("Expected `use_liger_kernel=False`", "found True", "leave it at False")),
    "neftune": ({"neftune_noise_alpha": 5.0}, ("Expected `neftune_noise_alpha=None`", "found 5.0", "leave it unset")),
    "batch metrics": ({"batch_eval_metrics": True}, ("Expected `batch_eval_metrics=False`", "found True", "leave it")),
    "refinement": (
        {"refinement": "relabeled"},
        ("Expected `refinement` to be one of", "'relabeled'", "did you mean 'relabelled'"),
    ),
    "score": ({"minority_score": "eq_3"}, ("Expected `minority_score` to be one of", "'eq_3'", "did you mean 'eq3'")),
    "augmentation": (
        {"augmentation": "randaugment_als"},
        ("Expected `augmentation` to be one of", "'randaugment_als'", "did you mean 'randaugment_asl'"),
    ),
    "views": (
        {"relabel_views": "epochs"},
        ("Expected `relabel_views` to be one of", "'epochs'", "did you mean 'epoch'"),
    ),
    "sampler": ({"second_sampler": "minor"}, ("Expected `second_sampler` to be one of", "'minor'", "'minority'")),
    "label names": ({"label_names": ["tags"]}, ("Expected `label_names` unset", "['tags']", "`label_column`")),
    "seed": ({"seed": -1}, ("Expected `seed` from 0 to 2**32 - 1", "found -1", "NumPy")),
    "batch": ({"per_device_train_batch_size": 0}, ("`per_device_train_batch_size` of at least 1", "found 0", "")),
    "split batches": (
        {"accelerator_config": {"split_batches": True}},
        ("without `split_batches`", "found it on", "Divide `per_device_train_batch_size`"),
    ),
    "batch norm": (
        {"relabel_bn": "train", "relabel_views": "epoch"},
        ("Expected `relabel_views='step'`", "found 'epoch'", "always in eval mode"),
    ),
    "text": ({"warmup_epochs": "3"}, ("Expected a number as `warmup_epochs`", "found '3'", "counts the epochs")),
    "reduction": ({"class_reduction": "avg"}, ("Expected `class_reduction` to be one of", "sum", "mean", "'avg'")),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments(tmp_path, case):
    changes, parts = ARGUMENTS[case]
    tiny.refused(ValueError, parts, tiny.arguments, tmp_path, **changes)


@pytest.mark.parametrize(
    "changes", [{"relabel_threshold": 0.5}, {"relabel_threshold": 1.0}, {"mix_alpha": 0.0}, {"warmup_epochs": 0}]
)
def test_limits_are_allowed(tmp_path, changes):
    tiny.arguments(tmp_path, **changes)


class Tokenizer:
    """Something with a tokenizer's interface and none of an image processor's."""

    def __call__(self, texts):
        return {"input_ids": texts}


class PlainModule(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3 * tiny.SIZE**2, 5)

    def forward(self, pixel_values):
        return {"logits": self.head(pixel_values.flatten(1))}


def named(model, names):
    model.config.id2label = dict(enumerate(names))
    return model


INPUTS = {
    "plain arguments": (
        TypeError,
        lambda p: {"args": TrainingArguments(str(p), use_cpu=True)},
        ("Expected `BalanceMixTrainingArguments` as `args`", "found TrainingArguments", "change the class name"),
    ),
    "loss function": (
        TypeError,
        lambda p: {"compute_loss_func": torch.nn.BCELoss()},
        ("Expected no `compute_loss_func`", "found BCELoss()", "the loss is the method"),
    ),
    "collator": (
        TypeError,
        lambda p: {"data_collator": "collator"},
        ("Expected no `data_collator`", "found 'collator'", "collates pairs of images itself"),
    ),
    "no processor": (
        TypeError,
        lambda p: {"processing_class": None},
        ("Expected an image processor as `processing_class`", "found None", "AutoImageProcessor.from_pretrained"),
    ),
    "tokenizer": (
        TypeError,
        lambda p: {"processing_class": Tokenizer()},
        ("Expected an image processor as `processing_class`", "found Tokenizer", "AutoImageProcessor.from_pretrained"),
    ),
    "too many outputs": (
        ValueError,
        lambda p: {"model": tiny.tiny_vit(num_labels=7)},
        ("Expected a model with 5 outputs", "found 7", "num_labels=5"),
    ),
    "too many outputs, evaluated only": (
        ValueError,
        lambda p: {"model": tiny.tiny_vit(num_labels=7), "train_dataset": None, "eval_dataset": TRAIN},
        ("Expected a model with 5 outputs", "found 7", "num_labels=5"),
    ),
    "other classes with names": (
        ValueError,
        lambda p: {"model": named(tiny.tiny_vit(num_labels=7), ["fox", "gnu", "hen", "ibis", "jay", "kea", "lynx"])},
        ("'fox'", "7 classes", "id2label", "num_labels"),
    ),
    "as many other classes with names": (
        ValueError,
        lambda p: {"model": named(tiny.tiny_vit(), ["fox", "gnu", "hen", "ibis", "jay"])},
        ("'fox'", "'ant'", "id2label", "num_labels"),
    ),
    "module without configuration": (
        TypeError,
        lambda p: {"model": PlainModule()},
        ("Expected a `transformers.PreTrainedModel`", "found PlainModule", "AutoModelForImageClassification"),
    ),
}


@pytest.mark.parametrize("cls", [MultiLabelTrainer, BalanceMixTrainer])
@pytest.mark.parametrize("case", INPUTS)
def test_constructor(tmp_path, case, cls):
    error, make, parts = INPUTS[case]
    tiny.refused(error, parts, run, tmp_path, cls, **make(tmp_path))


def test_arguments_reach_the_command_line_unchanged(tmp_path):
    """`choices` are read from the fields by both the parser and the check, so that they cannot disagree."""
    for name in ("refinement", "minority_score", "augmentation"):
        field = BalanceMixTrainingArguments.__dataclass_fields__[name]
        for choice in field.metadata["choices"]:
            assert getattr(tiny.arguments(tmp_path, **{name: choice}), name) == choice


# ---- good input that looks unusual ----


def as_names(row):
    return [tiny.NAMES[i] for i in row["labels"]]


def reshaped(shape):
    """The tiny training set with the same labels written in another way, and the arguments that go with it."""
    hot = np.zeros((len(TRAIN), 5), dtype=int)
    for n, row in enumerate(TRAIN["labels"]):
        hot[n, row] = 1
    bare = TRAIN.remove_columns(["labels", "clean_labels"])
    if shape == "multi-hot":
        feature = datasets.List(datasets.Value("uint8"), length=5)
        return bare.add_column("labels", hot.tolist(), feature=feature), {}
    if shape == "names":
        return bare.add_column("tags", [as_names(row) for row in TRAIN]), {}
    if shape == "text":
        return bare.add_column("tags", ["; ".join(as_names(row)) for row in TRAIN]), {"label_delimiter": ";"}
    if shape == "ids":
        return bare.add_column("labels", [list(map(int, row)) for row in TRAIN["labels"]]), {}
    for k, name in enumerate(tiny.NAMES):
        bare = bare.add_column(name, hot[:, k].tolist())
    return bare, {}


@pytest.mark.parametrize("shape", ["multi-hot", "names", "text", "ids", "columns"])
def test_every_label_shape_trains_the_same_model(tmp_path, shape):
    weights = []
    for dataset, changes in [(TRAIN, {}), reshaped(shape)]:
        trainer = BalanceMixTrainer(
            tiny.tiny_vit(),
            tiny.arguments(tmp_path, **changes),
            train_dataset=dataset,
            processing_class=tiny.processor(),
        )
        trainer.train()
        weights.append(tiny.weights_of(trainer.model))
    assert tiny.same_weights(*weights)
    assert not tiny.same_weights(weights[0], tiny.weights_of(tiny.tiny_vit()))


def test_predict_without_labels_and_evaluate_several_sets(tmp_path):
    sets = {"small": tiny.tiny_dataset(5, seed=1), "large": tiny.tiny_dataset(9, seed=2)}
    trainer = BalanceMixTrainer(
        tiny.tiny_vit(),
        tiny.arguments(tmp_path, per_device_eval_batch_size=4),
        train_dataset=TRAIN,
        eval_dataset=sets,
        processing_class=tiny.processor(),
    )
    bare = sets["large"].select_columns("image")
    output = trainer.predict(bare)
    assert output.label_ids is None
    assert output.predictions.shape == (9, 5)
    labelled = trainer.predict(sets["large"])
    np.testing.assert_array_equal(output.predictions, labelled.predictions)
    assert labelled.label_ids.shape == (9, 5)
    metrics = trainer.evaluate()
    assert set(metrics) == set(trainer.evaluate(sets))
    assert metrics["eval_large_map"] == pytest.approx(labelled.metrics["test_map"])
    assert metrics["eval_small_map"] == pytest.approx(trainer.evaluate(sets["small"])["eval_map"])
