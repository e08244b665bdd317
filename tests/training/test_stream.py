"""Schedule "stream": nothing is kept of a label but itself, and each step follows from the mixtures."""

import errno
import io
import tempfile
from types import SimpleNamespace

import datasets
import pytest
import torch

from hf_balancemix import BalanceMixTrainer, MultiLabelTrainer
from hf_balancemix.data import sparse_labels
from hf_balancemix.data.columns import encode_labels
from hf_balancemix.label_state import LabelState
from hf_balancemix.method import (
    MINORITY_SCORES,
    Mixtures,
    instance_score,
    mixture_posteriors,
    refine,
    sampling_probability,
    shares_of_sums,
)
from hf_balancemix.reports.label_issues import find_label_issues
from hf_balancemix.training import statistics, stream
from hf_balancemix.training.checkpoints import FINAL_STATE
from hf_balancemix.training.methods import METHODS
from hf_balancemix.training.refresh import predict_views, predicted_memory
from hf_balancemix.training.stream import shared_labels
from tests import tiny

ROWS = 40
TRAIN = tiny.tiny_dataset(ROWS)
ALONE = SimpleNamespace(world_size=1, process_index=0, disable_tqdm=True)


def make(folder, cls=BalanceMixTrainer, train=TRAIN, **changes):
    options = {"learning_rate": 0.01, "relabel_views": "stream", "relabel_threshold": 0.55, **changes}
    return cls(
        tiny.tiny_vit(), tiny.arguments(folder, **options), train_dataset=train, processing_class=tiny.processor()
    )


def test_the_state_grows_with_rows_and_positives_alone(tmp_path):
    trainer = make(tmp_path)
    trainer.train()
    state = trainer.label_state
    held = {**state.stored(), "sampling_sums": state.sampling_sums, "counts": state.positives()}
    predicted = predicted_memory(trainer.args, ROWS, 5, int(state.labels.sum()))
    assert sum(t.numel() * t.element_size() for t in held.values()) == predicted.held + predicted.shared
    assert {name for name, tensor in state.stored().items() if tensor.numel() >= ROWS * 5} == set()
    assert (state.probs, state.posterior, state.confidence, state.posterior_mean) == (None,) * 4
    assert torch.equal(state.labels, torch.from_numpy(encode_labels(TRAIN, "labels").labels))


def test_mixtures_are_those_of_reuse(tmp_path):
    """Both fit them to the mean losses of the same two views."""
    stream, reuse = (make(tmp_path / views, relabel_views=views) for views in ("stream", "reuse"))
    for trainer in (stream, reuse):
        trainer.train_dataloader = trainer.get_train_dataloader()
        trainer.prepare_epoch(1)
    [probability] = shares_of_sums(stream.label_state.sampling_sums)
    torch.testing.assert_close(probability, reuse.label_state.sampling_probability, rtol=0, atol=1e-15)
    assert stream.label_state.sampling_probability is None
    logits = predict_views(reuse, False, 2, 1)
    labels = reuse.label_state.labels
    mixtures = Mixtures.unstacked(stream.label_state.mixtures)
    found = mixture_posteriors(statistics.mean_losses(logits, labels), labels, mixtures)
    torch.testing.assert_close(found, reuse.label_state.posterior, atol=0.002, rtol=0)
    # The step computes the same from the logits of a batch.
    rows = torch.tensor([3, 30, 3])
    step = stream._stream_posterior(logits[rows], labels[rows].float())
    torch.testing.assert_close(step, found[rows], atol=1e-5, rtol=0)


def test_losses_beyond_the_fit_count_as_its_largest(tmp_path):
    trainer = make(tmp_path)
    trainer.train_dataloader = trainer.get_train_dataloader()
    trainer.prepare_epoch(1)
    mixtures = Mixtures.unstacked(trainer.label_state.mixtures)
    labels = torch.tensor([[0.0], [1.0]]).repeat(1, 5)
    far = torch.where(labels == 1, -90.0, 90.0)[:, None].repeat(1, 2, 1)
    expected = mixture_posteriors(mixtures.high.float(), labels, mixtures)
    torch.testing.assert_close(trainer._stream_posterior(far, labels), expected)


def test_a_step_is_refined_by_the_posteriors_of_its_views(tmp_path, monkeypatch):
    trainer = make(tmp_path, num_train_epochs=2)
    seen = []
    original = trainer._refined

    def recorded(model, views, index):
        refined = original(model, views, index)
        if views.shape[1] == 2:
            model.eval()
            with torch.no_grad():
                logits = torch.stack([model(pixel_values=view).logits for view in views.unbind(dim=1)], dim=1)
            model.train()
            labels = trainer.label_state.labels_of(index.cpu()).float()
            posterior = trainer._stream_posterior(logits, labels)
            expected = refine(labels, posterior, logits.sigmoid().mean(dim=1), 0.55)
            for name, value in vars(refined).items():
                torch.testing.assert_close(value, getattr(expected, name))
            seen.append(refined.state.unique().tolist())
        return refined

    monkeypatch.setattr(trainer, "_refined", recorded)
    trainer.train()
    assert len(seen) == 2 * ROWS // 8  # both halves of each step of the second epoch, none of the first
    assert {state for states in seen for state in states} == {0, 1, 2}


def test_stopped_and_resumed_is_the_same_run(tmp_path):
    whole = make(tmp_path / "whole", num_train_epochs=3, save_strategy="steps", save_steps=4)
    whole.train()
    for step in (4, 8, 12):
        again = make(tmp_path / "whole", num_train_epochs=3, save_strategy="no")
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert tiny.same_weights(tiny.weights_of(again.model), tiny.weights_of(whole.model))
        assert again.label_state.digest() == whole.label_state.digest()
    kept, _ = LabelState.load(tmp_path / "whole" / FINAL_STATE)
    assert kept.digest() == whole.label_state.digest()


SCHEDULES = ["stream", "reuse", "epoch", "step"]


OTHERS = [("stream", views) for views in SCHEDULES[1:]] + [(views, "stream") for views in SCHEDULES[1:]]


@pytest.mark.parametrize("step", [2, 10, 12])
@pytest.mark.parametrize(("before", "after"), [*OTHERS, ("stream", None)])
def test_a_run_that_goes_on_with_another_schedule_prepares_its_epoch_anew(tmp_path, before, after, step):
    """In warm-up, in the midst of an epoch, and at its end; None is the method without refinement."""
    options = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.01}
    make(tmp_path, relabel_views=before, **options).train()
    changed = {"relabel_views": after} if after else {"refinement": "none"}
    again = make(tmp_path / "again", **changed, num_train_epochs=3)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    state = again.label_state
    assert again.state.global_step == 15
    assert (state.sparse is not None) == (state.mixtures is not None) == (after == "stream")
    assert (state.posterior is not None) == (after in SCHEDULES[1:])
    assert (state.sampling_sums is not None) == (after == "stream") != (state.sampling_probability is not None)
    assert torch.equal(state.labels, torch.from_numpy(encode_labels(TRAIN, "labels").labels))


@pytest.mark.parametrize("second", ["random", "batch"])
def test_without_a_minority_half_nothing_is_summed_up(tmp_path, second):
    trainer = make(tmp_path, second_sampler=second, num_train_epochs=4, logging_strategy="epoch")
    trainer.train()
    assert trainer.label_state.sampling_sums is None
    assert not [key for entry in trainer.state.log_history for key in entry if key.startswith("sampling_")]
    assert any("positive_confidence" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize(("before", "after"), [("stream", "reuse"), ("reuse", "stream")])
def test_a_trainer_whose_schedule_changes_reads_its_labels_anew(tmp_path, before, after):
    """As a hyperparameter search changes it."""
    trainer, fresh = (make(tmp_path / name, relabel_views=name) for name in (before, after))
    trainer.args.relabel_views = after
    for each in (trainer, fresh):
        each.train()
    assert trainer.label_state.digest() == fresh.label_state.digest()
    assert tiny.same_weights(tiny.weights_of(trainer.model), tiny.weights_of(fresh.model))


@pytest.mark.parametrize("method", ["co_teaching", "t_estimator"])
def test_methods_that_need_tables_keep_them(tmp_path, method):
    trainer = make(tmp_path, METHODS[method].trainer, second_sampler="batch", num_train_epochs=3)
    assert trainer.label_state.sparse is None
    assert trainer.clean_labels is not None


def test_there_is_nothing_to_audit(tmp_path):
    trainer = make(tmp_path)
    trainer.train()
    parts = ["Expected a label state with posteriors", "relabel_views='stream'", "'reuse' or 'epoch'"]
    tiny.refused(ValueError, parts, find_label_issues, trainer.label_state)


def test_plain_training_reads_sparse_labels_too(tmp_path):
    weights = []
    for views in ("stream", "epoch"):
        trainer = make(tmp_path / views, MultiLabelTrainer, relabel_views=views)
        trainer.train()
        weights.append(tiny.weights_of(trainer.model))
    assert tiny.same_weights(*weights)


def test_groups_of_the_metrics_are_by_clean_counts(tmp_path):
    stream, epoch = (make(tmp_path / views, relabel_views=views) for views in ("stream", "epoch"))
    assert stream.clean_labels is None
    assert stream.positives.tolist() == epoch.positives.tolist()
    assert stream.positives.tolist() == encode_labels(TRAIN, "clean_labels").labels.sum(axis=0).tolist()


@pytest.mark.parametrize("together", [1, 7, 2**18])
@pytest.mark.parametrize("kind", ["ids", "names", "text", "multi_hot", "columns"])
def test_sparse_labels_are_read_from_every_kind_of_column(kind, together, monkeypatch):
    monkeypatch.setattr(sparse_labels, "_ROWS", together)
    monkeypatch.setattr(sparse_labels, "_VALUES", 5 * together)
    table = encode_labels(TRAIN, "labels").labels
    names = list(tiny.NAMES)
    rows = [[names[k] for k in row.nonzero()[0]] for row in table]
    columns = {
        "ids": {"labels": [row.nonzero()[0].tolist() * 2 for row in table]},  # repeated ids count once
        "names": {"labels": rows},
        "text": {"labels": [", ".join(row) for row in rows]},
        "multi_hot": {"labels": table.tolist()},
        "columns": {name: table[:, k].tolist() for k, name in enumerate(names)},
    }
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).tolist()
    dataset = datasets.Dataset.from_dict(columns[kind])
    for held, expected in ((dataset, table), (dataset.select(order), table[order])):
        sparse, found = shared_labels(ALONE, held, names if kind == "columns" else None, names)
        assert found == tuple(names)
        assert torch.equal(sparse.dense(slice(None)), torch.from_numpy(expected))
        assert sparse.counts.tolist() == table.sum(axis=0).tolist()


@pytest.mark.parametrize("together", [1, 2, 2**18])
def test_a_wrong_label_is_named_as_always(together, monkeypatch):
    monkeypatch.setattr(sparse_labels, "_ROWS", together)
    monkeypatch.setattr(sparse_labels, "_VALUES", 2 * together)
    fine = [["ant"], ["ant"], ["ant"]]
    two_values = datasets.Features({"labels": datasets.List(datasets.Value("int64"), length=2)})
    wrong = {
        "'bat' in row 3": (["ant"], datasets.Dataset.from_dict({"labels": [*fine, ["bat"]]})),
        "None or NaN in row 3": (["ant"], datasets.Dataset.from_dict({"labels": [*fine, [None]]})),
        "7 in row 3": (["ant"], datasets.Dataset.from_dict({"labels": [[0], [0], [0], [7]]})),
        "9 in row 3": (["ant", "bee"], datasets.Dataset.from_dict({"labels": [[0, 1]] * 3 + [[9, 0]]}, two_values)),
    }
    for message, (names, dataset) in wrong.items():
        tiny.refused(ValueError, [message], shared_labels, ALONE, dataset, None, names)


def test_no_positive_at_all():
    dataset = datasets.Dataset.from_dict(
        {"labels": [[], []]},
        features=datasets.Features({"labels": datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))}),
    )
    sparse, _ = shared_labels(ALONE, dataset)
    assert torch.equal(sparse.dense(slice(None)), torch.zeros(2, 3, dtype=torch.uint8))
    assert sparse.counts.tolist() == [0, 0, 0]


@pytest.mark.parametrize("score", MINORITY_SCORES)
@pytest.mark.parametrize("block", [1, 7, 2**15])
def test_running_sums_follow_the_class_confidence(block, score, monkeypatch):
    monkeypatch.setattr(stream, "_BLOCK", block)
    state = LabelState(shared_labels(ALONE, TRAIN, "labels")[0], tiny.NAMES)
    args = SimpleNamespace(**vars(ALONE), minority_score=score)
    for seed in (0, 1):  # the second time in the same memory
        generator = torch.Generator().manual_seed(seed)
        state.class_confidence = torch.rand(2, 5, generator=generator, dtype=torch.float64)
        before = state.sampling_sums
        stream.refresh_sums(state, args)
        assert before is None or state.sampling_sums is before
        expected = sampling_probability(instance_score(state.labels, *state.class_confidence.flip(0), score))
        found = torch.cat([*shares_of_sums(state.sampling_sums)])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
        assert bool((state.sampling_sums.diff() > 0).all())


def test_a_full_disk_is_said_before_training(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stream, "open", Full, raising=False)
    tiny.refused(OSError, ["Expected room", str(tmp_path), "set TMPDIR"], shared_labels, ALONE, TRAIN, "labels")
    assert list(tmp_path.iterdir()) == []  # nothing is left of it


def test_no_file_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    trainer = make(tmp_path)
    trainer.train()
    assert not [path for path in (tmp_path / "temporary").iterdir() if path.name.startswith("hf_balancemix-")]
    assert trainer.label_state.sampling_sums is not None
