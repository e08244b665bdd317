"""What a refresh logs and warns of, counted by hand; a resumed run logs the same."""

import logging
from types import SimpleNamespace

import pytest
import torch

from hf_balancemix import BalanceMixTrainer
from hf_balancemix.label_state import LabelState
from hf_balancemix.training.diagnostics import early_warnings, refresh_diagnostics, relabel_flips
from tests import tiny

HOSTILE = 'a "quoted"\n<b>*[x]'


def options(**changes):
    values = {
        "refinement": "full",
        "relabel_threshold": 0.9,
        "warmup_epochs": 4,
        "min_fit": 4,
        "trust_positives": False,
        "mixture_separation": 0.0,
        "mixture_disagreement": 0.0,
    }
    return SimpleNamespace(**values | changes)


def state(labels, posterior, confidence=None, names=None):
    labels = torch.tensor(labels, dtype=torch.uint8)
    found = LabelState(labels, tuple(names or map(str, range(labels.shape[1]))))
    found.posterior = torch.as_tensor(posterior, dtype=torch.float32).expand(labels.shape).clone()
    if confidence is not None:
        found.confidence = torch.as_tensor(confidence, dtype=torch.float32).expand(labels.shape).clone()
    return found


def change(found, name, *changes):
    """Give a table of a state other values, (row, column, value) each."""
    table = getattr(found, name)
    for row, column, value in changes:
        table[row, column] = value
    setattr(found, name, table)


# ---- flips ----

LABELS = [[1, 1, 0, 0], [1, 1, 0, 0]]
#          clean     away    ambiguous  to present   clean    confirmed  ambiguous  clean
POSTERIOR = [[0.9, 0.1, 0.4, 0.1], [0.8, 0.2, 0.3, 1.0]]
CONFIDENCE = [[0.5, 0.05, 0.5, 0.95], [0.0, 0.95, 0.6, 0.5]]


@pytest.mark.parametrize(
    ("row", "column", "posterior", "confidence", "flips"),
    [
        (0, 0, 0.9, 0.5, 0),  # nothing changes
        (0, 0, 0.6, 0.99, 0),  # still clean, so the confidence does not count
        (0, 0, 0.4, 0.5, 1),  # clean, now ambiguous
        (0, 0, 0.4, 0.95, 1),  # clean, now confirmed: the same target, but another state
        (0, 1, 0.1, 0.95, 1),  # relabelled as before, but to another target
        (0, 1, 0.3, 0.01, 0),  # relabelled to the same target
        (0, 2, 0.1, 0.5, 0),  # ambiguous with another weight
        (0, 3, 0.1, 0.5, 1),  # relabelled, now ambiguous
    ],
)
def test_flips_are_labels_with_another_target_or_state(row, column, posterior, confidence, flips):
    before, after = state(LABELS, POSTERIOR, CONFIDENCE), state(LABELS, POSTERIOR, CONFIDENCE)
    change(after, "posterior", (row, column, posterior))
    change(after, "confidence", (row, column, confidence))
    assert relabel_flips(before, after, options()) == flips / 8
    assert refresh_diagnostics(after, options(), None, before)["relabel_flips"] == flips / 8
    assert "relabel_flips" not in refresh_diagnostics(after, options(), None, LabelState(after.labels, ("a",) * 4))


@pytest.mark.parametrize("unknown", ["before", "after", "both"])
def test_flips_without_views_are_of_clean_labels(unknown):
    """Four labels are clean before; of these one no longer is, and one more is. What is ambiguous is not known."""
    before = state(LABELS, POSTERIOR, None if unknown != "after" else CONFIDENCE)
    after = state(LABELS, POSTERIOR, None if unknown != "before" else 0.5)
    change(after, "posterior", (0, 0, 0.5), (1, 2, 0.51))
    assert relabel_flips(before, after, options()) == 2 / 8


def test_positive_confidence_is_a_mean_over_classes_with_positives():
    found = state([[1, 0, 0], [1, 1, 0]], 1.0, 0.5)
    found.class_confidence = torch.tensor([[0.9, 0.9, 0.9], [0.7, 0.3, 0.0]], dtype=torch.float64)
    assert refresh_diagnostics(found, options(), None)["positive_confidence"] == pytest.approx(0.5)


# ---- warnings ----


def refreshes(relabelled, ambiguous, count=5):
    return [{"relabelled": relabelled, "ambiguous": ambiguous}] * count


def test_nothing_to_warn_of():
    fine = state([[1, 0]] * 10, [0.99, 0.01], 0.5)
    assert early_warnings(fine, options(), [{"loss": 1.0}, *refreshes(0.1, 0.4)]) == {}
    unrefined = LabelState(fine.labels, ("a", "b"))
    assert early_warnings(unrefined, options(refinement="none"), []) == {}


@pytest.mark.parametrize("mode", ["full", "relabelled", "clean"])
def test_a_class_that_loses_its_positives(mode):
    """Of 40 positives one is left; of the other class's four, too few to judge by, none is."""
    lost = state([[1, int(i < 4), 0] for i in range(40)], [0.01, 0.01, 0.99], 0.02, [HOSTILE, "few", "absent"])
    change(lost, "posterior", (0, 0, 0.9))
    found = early_warnings(lost, options(refinement=mode, relabel_threshold=0.95), refreshes(0.1, 0.1))
    assert list(found) == ["classes"]
    assert (
        f"found 1 of 3 whose positives are nearly all relabelled or weighed down: {HOSTILE!r} (1.0 of 40)"
        in (found["classes"])
    )
    assert "`warmup_epochs` (now 4)" in found["classes"]
    change(lost, "posterior", (1, 0, 0.9))  # two of 40 are 5%
    assert early_warnings(lost, options(refinement=mode, relabel_threshold=0.95), refreshes(0.1, 0.1)) == {}


def test_a_class_that_gets_other_positives_is_fine():
    """As under flipped labels: the given positives go, and others are found."""
    moved = state([[int(i < 20)] for i in range(40)], 0.01, [[0.01]] * 20 + [[0.99]] * 20)
    assert early_warnings(moved, options(), refreshes(0.9, 0.1)) == {}


def test_posteriors_that_separate_nothing():
    labels = [[i % 2] for i in range(20)]
    half = state(labels, [[0.5]] * 11 + [[0.95]] * 9, 0.5)
    text = early_warnings(half, options(), refreshes(0.1, 0.1))["posteriors"]
    assert "found 55% of them between 0.1 and 0.9" in text
    assert "warmup_epochs" in text
    fewer = state(labels, [[0.3]] * 10 + [[0.95]] * 10, 0.5)
    assert early_warnings(fewer, options(), refreshes(0.1, 0.1)) == {}
    alike = state(labels, 1.0, 0.5)
    assert "found all 20 taken for clean" in early_warnings(alike, options(), [])["posteriors"]
    for wanted in ({"mixture_separation": 2.0}, {"mixture_disagreement": 0.69}, {"trust_positives": True}):
        assert early_warnings(alike, options(**wanted), []) == {}


def test_confidence_that_never_reaches_the_threshold():
    """Of 1,000 doubted labels ten are predicted with .8, half of them as absent, and the others are unsure."""
    confidence = torch.full((1100, 1), 0.5)
    confidence[:15], confidence[15:20] = 0.8141, 1 - 0.8141
    posterior = torch.full((1100, 1), 0.05)
    confidence[1000:], posterior[1000:] = 0.999, 0.95  # clean ones do not count
    unsure = state([[i % 2] for i in range(1100)], posterior, confidence)
    text = early_warnings(unsure, options(), refreshes(0.0009, 0.9991))["confidence"]
    assert "`relabel_threshold` 0.9 " in text
    assert "99th percentile is 0.813." in text
    assert "--relabel_threshold) to 0.813," in text
    reached = [*refreshes(0.01, 0.99, 1), *refreshes(0.0, 1.0, 9)]
    for history in (refreshes(0.0, 1.0, 4), reached, []):  # too early to say, or reached before
        assert "confidence" not in early_warnings(unsure, options(), history)
    assert "confidence" not in early_warnings(unsure, options(relabel_threshold=1.0), refreshes(0.0, 1.0))
    unsure.confidence = None
    assert "confidence" not in early_warnings(unsure, options(), refreshes(0.0, 1.0))


def run(confidence, maps):
    return [{"positive_confidence": confidence}, *({"eval_map": value, "epoch": i} for i, value in enumerate(maps))]


@pytest.mark.parametrize(
    ("confidence", "maps", "warned"),
    [
        (0.95, [70, 80, 77.9, 76, 74], True),
        (0.95, [70, 80, 77.9, float("nan"), 76, 74], True),
        (0.95, [70, 80, 77.9, 76, 78.1], False),  # within two points again
        (0.95, [70, 80, 76, 74], False),  # two evaluations may be chance
        (0.6, [70, 80, 77.9, 76, 74], False),  # the given labels are not fitted
        (float("nan"), [70, 80, 77.9, 76, 74], False),
        (0.95, [70, 72, 74, 76, 78], False),
        (0.95, [80, 70, 60], False),
        (0.95, [], False),
    ],
)
def test_memorisation(confidence, maps, warned):
    plain = LabelState(torch.zeros(1, 1, dtype=torch.uint8), ("a",))
    found = early_warnings(plain, options(refinement="none"), run(confidence, maps))
    assert set(found) == ({"memorisation"} if warned else set())
    if warned:
        assert "a mean prediction of 0.95 on given positives while mAP fell from 80.0 to 74.0" in found["memorisation"]
        assert "`refinement='full'`" in found["memorisation"]
        other = early_warnings(plain, options(), run(confidence, maps))["memorisation"]
        assert "lower `warmup_epochs`, now 4" in other


# ---- in a run ----


def trainer_in(folder, **changes):
    args = tiny.arguments(
        folder, **{"num_train_epochs": 4, "relabel_threshold": 0.6, "learning_rate": 0.01, **changes}
    )
    return BalanceMixTrainer(
        tiny.tiny_vit(), args, train_dataset=tiny.tiny_dataset(24), processing_class=tiny.processor()
    )


def measured(trainer):
    entries = [entry for entry in trainer.state.log_history if "refresh_seconds" in entry]
    return [dict(sorted(entry.items() - {("refresh_seconds", entry["refresh_seconds"])})) for entry in entries]


@pytest.mark.parametrize("views", ["epoch", "step"])
def test_a_resumed_run_logs_the_same(tmp_path, views):
    alone = trainer_in(tmp_path / "alone", relabel_views=views, save_strategy="steps", save_steps=2)
    alone.train()
    logged = measured(alone)
    # The first refinement is of epoch 1, so what changed is known from epoch 2 on, to the end.
    assert [entry["epoch"] for entry in logged if "relabel_flips" in entry] == [2, 3, 4]
    assert any(entry["relabel_flips"] for entry in logged[1:])
    for step in (6, 8):  # the end of an epoch, the middle of one
        resumed = trainer_in(tmp_path / "resumed", relabel_views=views)
        resumed.train(resume_from_checkpoint=tmp_path / "alone" / f"checkpoint-{step}")
        assert str(measured(resumed)) == str(logged)  # as text, in which NaN is the same as NaN


def test_each_warning_comes_once_per_run(tmp_path, caplog, monkeypatch):
    given = iter([{"a": "first"}, {"a": "again", "b": "second"}, {}, {"b": "again"}] * 2)
    monkeypatch.setattr("hf_balancemix.training.balancemix.early_warnings", lambda *found: next(given))
    trainer = trainer_in(tmp_path)
    for _ in range(2):  # a second run says it again
        caplog.clear()
        with caplog.at_level(logging.WARNING, "hf_balancemix"):
            trainer.train()
        said = [record.message for record in caplog.records if record.name.endswith("training.balancemix")]
        assert said == ["first", "second"]


def test_a_run_that_goes_wrong_says_so(tmp_path, caplog):
    """Nothing is learned, so no prediction is ever sure."""
    with caplog.at_level(logging.WARNING, "hf_balancemix"):
        trainer_in(tmp_path, learning_rate=0.0, relabel_threshold=0.99, num_train_epochs=6).train()
    assert sum("Lower `relabel_threshold`" in record.message for record in caplog.records) == 1
