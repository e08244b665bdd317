from types import SimpleNamespace

import numpy as np
import pytest

from hf_balancemix.metrics import average_precision, f1_scores, mean_average_precision
from hf_balancemix.report import build_compute_metrics, multilabel_report

NAMES = ["ape", "bee", "cat", "dog", "elk", "fox"]
TRAIN_COUNTS = np.array([20000, 10000, 1000, 9999, 999, 3])


@pytest.fixture
def evaluated():
    rng = np.random.default_rng(3)
    targets = (rng.random((200, 6)) < 0.2).astype(np.float32)
    return (2 * targets + rng.normal(scale=2, size=targets.shape) - 1).astype(np.float32), targets


@pytest.fixture(scope="module")
def metric_class():
    pytest.importorskip("evaluate")
    from hf_balancemix.evaluate_metric import MultiLabelMAP

    return MultiLabelMAP


def test_report_gathers_the_single_metrics(evaluated):
    logits, targets = evaluated
    report = multilabel_report(logits, targets, NAMES, TRAIN_COUNTS)
    ap = average_precision(logits, targets)
    np.testing.assert_array_equal(report.ap, ap)
    assert report.positives.tolist() == targets.sum(axis=0).tolist()
    assert report.f1 == pytest.approx(f1_scores(1 / (1 + np.exp(-logits)), targets))
    assert report.metrics() == pytest.approx(
        {
            "map": mean_average_precision(ap),
            "many": mean_average_precision(ap[:2]),
            "medium": mean_average_precision(ap[2:4]),
            "few": mean_average_precision(ap[4:]),
            "cf1": report.f1["cf1"],
            "of1": report.f1["of1"],
            "num_classes_evaluated": 6,
        }
    )
    assert {type(value) for value in report.metrics().values()} == {float}


def test_groups_need_training_counts_and_an_evaluated_class(evaluated):
    logits, targets = evaluated
    assert list(multilabel_report(logits, targets).metrics()) == ["map", "cf1", "of1", "num_classes_evaluated"]
    targets[:, 4:] = 0
    report = multilabel_report(logits, targets, NAMES, TRAIN_COUNTS)
    assert list(report.metrics()) == ["map", "many", "medium", "cf1", "of1", "num_classes_evaluated"]
    assert report.metrics()["num_classes_evaluated"] == report.num_classes_evaluated == 4
    assert report.groups["few"].tolist() == [4, 5]


def test_settings_reach_the_metrics(evaluated):
    logits, targets = evaluated
    ignore = np.random.default_rng(0).random(targets.shape) < 0.2
    report = multilabel_report(
        logits, targets, NAMES, TRAIN_COUNTS, (5, 30000), ignore=ignore, convention="eleven_point", threshold=0.2
    )
    np.testing.assert_array_equal(report.ap, average_precision(logits, targets, ignore, "eleven_point"))
    assert report.f1 == pytest.approx(f1_scores(1 / (1 + np.exp(-logits)), targets, 0.2, ignore))
    assert report.positives.tolist() == (targets * ~ignore).sum(axis=0).tolist()
    assert {name: members.tolist() for name, members in report.groups.items()} == {
        "medium": [0, 1, 2, 3, 4],
        "few": [5],
    }


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_large_logits_are_ranked_without_a_sigmoid(dtype):
    logits = np.array([[40.0], [45.0], [50.0], [-800.0]], dtype=dtype)
    with np.errstate(all="raise"):
        report = multilabel_report(logits, [[0], [0], [1], [0]])
    assert report.map == 100
    assert report.f1["overall_precision"] == pytest.approx(100 / 3)


def test_table_has_one_row_for_each_class(evaluated):
    logits, targets = evaluated
    targets[:, 5] = 0
    table = multilabel_report(logits, targets, NAMES, TRAIN_COUNTS).to_pandas()
    assert list(table.columns) == ["class", "ap", "positives", "train_positives", "group"]
    assert table["class"].tolist() == NAMES
    assert table["group"].tolist() == ["many", "many", "medium", "medium", "few", "few"]
    assert table["train_positives"].tolist() == TRAIN_COUNTS.tolist()
    assert table["positives"].tolist() == targets.sum(axis=0).tolist()
    np.testing.assert_allclose(table["ap"], 100 * average_precision(logits, targets))
    assert table["ap"].isna().tolist() == [False] * 5 + [True]


def test_table_without_names_and_counts(evaluated):
    table = multilabel_report(*evaluated).to_pandas()
    assert table["class"].tolist() == [f"LABEL_{k}" for k in range(6)]
    assert table[["train_positives", "group"]].isna().all(axis=None)


def test_compute_metrics_ignores_labels_below_zero(evaluated):
    logits, targets = evaluated
    compute = build_compute_metrics(NAMES, TRAIN_COUNTS)
    expected = multilabel_report(logits, targets, NAMES, TRAIN_COUNTS).metrics()
    assert compute(SimpleNamespace(predictions=logits, label_ids=targets)) == expected
    assert compute(SimpleNamespace(predictions=(logits, "hidden states"), label_ids=targets)) == expected

    padded = np.pad(logits, ((0, 3), (0, 0)), constant_values=-100)
    padding = np.pad(targets, ((0, 3), (0, 0)), constant_values=-100)
    assert compute(SimpleNamespace(predictions=padded, label_ids=padding)) == expected

    ignore = np.random.default_rng(0).random(targets.shape) < 0.2
    marked = np.where(ignore, -1, targets).astype(np.int64)
    assert compute(SimpleNamespace(predictions=logits, label_ids=marked)) == (
        multilabel_report(logits, targets, NAMES, TRAIN_COUNTS, ignore=ignore).metrics()
    )


def test_compute_metrics_fits_the_trainer(evaluated):
    transformers = pytest.importorskip("transformers")
    logits, targets = evaluated
    found = build_compute_metrics(NAMES)(transformers.EvalPrediction(predictions=logits, label_ids=targets))
    assert found == multilabel_report(logits, targets, NAMES).metrics()


def test_wrong_settings_are_rejected_before_training():
    with pytest.raises(ValueError, match=r"6 class names .* found 6 names and counts of shape \(5,\)"):
        build_compute_metrics(NAMES, TRAIN_COUNTS[:5])
    with pytest.raises(ValueError, match="rising thresholds"):
        build_compute_metrics(NAMES, TRAIN_COUNTS, group_thresholds=(10, 1))
    with pytest.raises(ValueError, match="convention"):
        build_compute_metrics(NAMES, convention="macro")
    with pytest.raises(ValueError, match="one threshold or 6"):
        build_compute_metrics(NAMES, threshold=[0.5, 0.6])


def test_report_rejects_names_that_do_not_fit(evaluated):
    with pytest.raises(ValueError, match=r"6 class names .* found 5 names and no counts"):
        multilabel_report(*evaluated, class_names=NAMES[:5])
    with pytest.raises(ValueError, match=r"\(200, 6\) and \(200, 5\)"):
        multilabel_report(evaluated[0], evaluated[1][:, :5])


@pytest.mark.parametrize("as_lists", [False, True])
def test_evaluate_metric_equals_the_function(metric_class, tmp_path, evaluated, as_lists):
    logits, targets = evaluated
    references = np.where(np.random.default_rng(0).random(targets.shape) < 0.2, -1, targets).astype(np.int64)
    expected = multilabel_report(logits, targets, NAMES, TRAIN_COUNTS, ignore=references < 0).metrics()
    inputs = (logits.tolist(), references.tolist()) if as_lists else (logits, references)
    metric = metric_class(cache_dir=str(tmp_path))
    found = metric.compute(predictions=inputs[0], references=inputs[1], train_counts=TRAIN_COUNTS, class_names=NAMES)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_evaluate_metric_in_batches(metric_class, tmp_path, evaluated, keep_in_memory):
    logits, targets = evaluated
    settings = {} if keep_in_memory else {"cache_dir": str(tmp_path)}
    metric = metric_class(keep_in_memory=keep_in_memory, **settings)
    for start in range(0, 200, 64):
        batch = slice(start, start + 64)
        metric.add_batch(predictions=logits[batch], references=targets[batch])
    assert metric.compute() == pytest.approx(multilabel_report(logits, targets).metrics())


def test_report_as_table_and_picture(tmp_path):
    # Ranks of the positives by hand: ape 1 and 3 of 4, AP (1 + 2/3) / 2; bee 4 of 4; cat has none.
    logits = [[4, 1, 0], [3, 2, 0], [2, 3, 0], [1, 4, 0]]
    targets = [[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    names = ["a|p*e", "$b$\n猫", "cat"]
    report = multilabel_report(logits, targets, names, [20000, 3, 5000])
    assert report.to_markdown().splitlines() == [
        "| class | AP | positives | train positives | group |",
        "| --- | ---: | ---: | ---: | --- |",
        "| $b$ 猫 | 25.0 | 1 | 3 | few |",
        "| a\\|p\\*e | 83.3 | 2 | 20000 | many |",
        "| cat | - | 0 | 5000 | medium |",
        "",
        "mAP 54.2, many 83.3, few 25.0 (2 classes)",
    ]
    assert multilabel_report(logits, targets).to_markdown().splitlines()[0] == "| class | AP | positives |"
    report.plot(tmp_path / "ap.png", "title")
    assert (tmp_path / "ap.png").stat().st_size > 5000
    written = (tmp_path / "ap.csv").read_text(encoding="utf-8")
    assert written == 'class,ap,group\na|p*e,83.3333,many\n"$b$\n猫",25,few\ncat,,medium\n'
    with pytest.raises(ValueError, match=r"ends in \.png"):
        report.plot(tmp_path / "ap.txt")
