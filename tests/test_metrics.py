import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

from hf_balancemix.metrics import (
    average_precision,
    class_groups,
    class_imbalance,
    f1_scores,
    imbalance_ratios,
    label_quality,
    mean_average_precision,
    positive_negative_imbalance,
)

CONVENTIONS = {
    "non_interpolated": "sklearn",
    "strict": "non_interpolated_eps",
    "interpolated": "interpolated_all_point",
    "eleven_point": "eleven_point",
}


def random_case(seed=0, rows=300, classes=7, ties=True):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, classes)).astype(np.float32)
    return (np.round(scores, 1) if ties else scores), (rng.random((rows, classes)) < 0.15).astype(np.int64), rng


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_average_precision_equals_the_reference(vectors, convention):
    inputs, expected = vectors["12_map"]["inputs"], vectors["12_map"]["expected"]
    ap = average_precision(inputs["scores"], inputs["targets"], convention=convention)
    reference = [row[CONVENTIONS[convention]] for row in expected["per_class"]]
    assert np.isnan(ap).tolist() == [False, False, convention != "strict", False]
    np.testing.assert_allclose(np.nan_to_num(ap), reference, atol=1e-9)
    first_two = expected["mean_first_two_classes"][CONVENTIONS[convention]]
    assert mean_average_precision(ap[:2]) == pytest.approx(first_two, abs=1e-7)
    every = expected["mean_all_classes"][CONVENTIONS[convention]]
    assert mean_average_precision(np.nan_to_num(ap)) == pytest.approx(every, abs=1e-7)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_voc_difficult_images(vectors, convention):
    inputs, expected = vectors["13_voc_difficult"]["inputs"], vectors["13_voc_difficult"]["expected"]
    scores, labels = np.array(inputs["scores"])[:, None], np.array(inputs["voc_labels"])[:, None]
    if convention in ("non_interpolated", "strict"):
        ignored = average_precision(scores, labels == 1, ignore=labels == 0, convention=convention)
        assert ignored == pytest.approx([expected["ignore"]], abs=1e-8)
        assert average_precision(scores, labels == 1, convention=convention)[0] == pytest.approx(
            expected["as_negative"]
        )
        assert average_precision(scores, labels >= 0, convention=convention)[0] == pytest.approx(
            expected["as_positive"]
        )
    # What is ignored may hold any value.
    given = np.where(labels == 0, -7, labels == 1)
    assert average_precision(scores, given, labels == 0, convention) == pytest.approx(
        average_precision(scores, labels == 1, labels == 0, convention)
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("seed", range(5))
def test_non_interpolated_equals_scikit_learn_under_ties(seed, dtype):
    scores, targets, _ = random_case(seed)
    scores = (scores * 4).astype(dtype)
    reference = average_precision_score(targets, scores.astype(np.float64), average=None)
    np.testing.assert_allclose(average_precision(scores, targets), reference, atol=1e-6)


def test_strict_equals_non_interpolated_without_ties():
    scores, targets, _ = random_case(ties=False)
    strict = average_precision(scores, targets, convention="strict")
    np.testing.assert_allclose(strict, average_precision(scores, targets), atol=1e-8)
    assert (average_precision(scores, targets, convention="interpolated") >= strict).all()


def test_order_of_rows_matters_only_without_grouped_ties():
    scores, targets, rng = random_case()
    order = rng.permutation(len(scores))
    expected = average_precision(scores, targets)
    np.testing.assert_allclose(average_precision(scores[order], targets[order]), expected, atol=1e-12)
    strict = [average_precision(scores[o], targets[o], convention="strict") for o in (np.arange(len(scores)), order)]
    assert not np.allclose(*strict, atol=1e-6)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_only_ranks_matter(convention):
    scores, targets, _ = random_case(ties=False)
    expected = average_precision(scores, targets, convention=convention)
    np.testing.assert_array_equal(average_precision(3 * scores.astype(float) - 5, targets, None, convention), expected)


def test_eleven_points_are_read_at_exact_recalls():
    # Ten positives: recall 0.3 is reached exactly at the third, where floating point has 3 · 0.1 > 0.3.
    targets = np.array([1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1])[:, None]
    expected = (4 + 7 * 10 / 11) / 11
    assert average_precision(-np.arange(11.0)[:, None], targets, convention="eleven_point")[0] == pytest.approx(
        expected
    )


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_ignoring_equals_deleting_the_rows_of_each_class(convention):
    scores, targets, rng = random_case()
    ignore = rng.random(targets.shape) < 0.3
    keep = [~ignore[:, k] for k in range(targets.shape[1])]
    expected = [
        average_precision(scores[m, k : k + 1], targets[m, k : k + 1], None, convention) for k, m in enumerate(keep)
    ]
    np.testing.assert_array_equal(average_precision(scores, targets, ignore, convention), np.concatenate(expected))

    probs = 1 / (1 + np.exp(-scores))
    parts = [f1_scores(probs[m, k : k + 1], targets[m, k : k + 1]) for k, m in enumerate(keep)]
    both = f1_scores(probs, targets, ignore=ignore)
    for name in ("class_precision", "class_recall"):
        assert both[name] == pytest.approx(np.mean([part[name] for part in parts]))


def test_classes_without_positives():
    scores, targets, _ = random_case()
    targets[:, 2] = 0
    ignore = np.zeros(targets.shape, dtype=bool)
    ignore[:, 4] = targets[:, 4] == 1
    ap = average_precision(scores, targets, ignore)
    assert np.flatnonzero(np.isnan(ap)).tolist() == [2, 4]
    assert mean_average_precision(ap) == pytest.approx(100 * np.nanmean(ap))
    assert average_precision(scores, targets, ignore, "strict")[[2, 4]].tolist() == [0, 0]
    assert np.isnan(mean_average_precision(np.array([np.nan, np.nan])))
    assert np.isnan(average_precision(np.empty((0, 3)), np.empty((0, 3)))).all()


def test_group_boundaries_and_empty_groups():
    groups = class_groups([10000, 999, 1000, 9999, 0, 250000])
    assert {name: members.tolist() for name, members in groups.items()} == {
        "many": [0, 5],
        "medium": [2, 3],
        "few": [1, 4],
    }
    assert list(class_groups([5, 20], thresholds=(10, 30))) == ["medium", "few"]
    assert list(class_groups([], thresholds=(10, 30))) == []


def test_group_means_weighted_by_size_give_the_overall_mean():
    scores, targets, rng = random_case(classes=20)
    ap = average_precision(scores, targets)
    groups = class_groups(rng.integers(0, 30000, 20))
    assert sorted(np.concatenate(list(groups.values()))) == list(range(20))
    weighted = sum(mean_average_precision(ap[m]) * len(m) for m in groups.values()) / 20
    assert weighted == pytest.approx(mean_average_precision(ap))


@pytest.mark.parametrize("threshold", [0.5, 0.3, "per class"])
def test_f1_against_scikit_learn(threshold):
    scores, targets, rng = random_case()
    targets[:, 3] = 0  # nothing to recall
    scores[:, 5] = -9  # nothing predicted
    probs = 1 / (1 + np.exp(-scores))
    threshold = rng.uniform(0.3, 0.7, 7).astype(np.float32) if threshold == "per class" else threshold
    found = f1_scores(probs, targets, threshold)
    predicted = probs >= np.float32(threshold)
    precision, recall, _, _ = precision_recall_fscore_support(targets, predicted, average="macro", zero_division=0)
    assert found["class_precision"] == pytest.approx(100 * precision)
    assert found["class_recall"] == pytest.approx(100 * recall)
    assert found["cf1"] == pytest.approx(200 * precision * recall / (precision + recall))
    assert found["cf1"] >= 100 * f1_score(targets, predicted, average="macro", zero_division=0)
    overall = precision_recall_fscore_support(targets, predicted, average="micro", zero_division=0)[:3]
    names = ("overall_precision", "overall_recall", "of1")
    assert [found[name] for name in names] == pytest.approx([100 * value for value in overall])


def test_f1_is_zero_where_nothing_is_predicted_and_counts_the_threshold_itself():
    assert set(f1_scores(np.zeros((3, 2)), np.zeros((3, 2))).values()) == {0.0}
    assert set(f1_scores([[0.5, 0.5]], [[1, 1]]).values()) == {100.0}


def test_imbalance_ratios_equal_the_reference(vectors):
    inputs, expected = vectors["15_eq12_15_metrics"]["inputs"], vectors["15_eq12_15_metrics"]["expected"]
    positives = np.array(inputs["class_positives"])
    rows = positives + inputs["class_negatives"]
    ratios = imbalance_ratios(positives, int(rows[0]))
    assert (rows == rows[0]).all()
    assert ratios == pytest.approx((expected["class_imbalance"], expected["pos_neg_imbalance"]), abs=1e-9)


def test_imbalance_of_labels():
    labels = np.array([[1, 0, 1], [1, 1, 0], [1, 0, 0], [1, 0, 1]])
    assert class_imbalance(labels) == 4
    assert positive_negative_imbalance(labels.astype(bool)) == 5 / 7
    labels[:, 1] = 0
    assert class_imbalance(labels) == np.inf
    assert positive_negative_imbalance(labels) == 1
    assert positive_negative_imbalance(0 * labels) == np.inf


def test_label_quality_equals_the_reference(vectors):
    inputs, expected = vectors["15_eq12_15_metrics"]["inputs"], vectors["15_eq12_15_metrics"]["expected"]
    state = np.array([["CRU".index(code) for code in row] for row in inputs["state"]], dtype=np.uint8)
    found = label_quality(inputs["true"], inputs["given"], state, inputs["refined"])
    names = ["label_precision", "label_recall", "relabel_proportion", "relabel_accuracy"]
    assert list(found) == names
    assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], abs=1e-9)


def test_label_quality_has_no_value_without_a_denominator():
    labels = np.zeros((2, 3))
    found = label_quality(1 - labels, labels, np.full((2, 3), 2), labels)
    assert found.pop("relabel_proportion") == 0
    assert np.isnan(list(found.values())).all()


def with_nan(scores):
    scores = scores.copy()
    scores[4, 1] = scores[9, 0] = np.nan
    return scores


@pytest.mark.parametrize("measure", [average_precision, f1_scores])
def test_rejected_scores(measure):
    _, targets, rng = random_case()
    probs = rng.random(targets.shape)
    with pytest.raises(ValueError, match=r"found 2, the first in row 4, class 1"):
        measure(with_nan(probs), targets)
    with pytest.raises(ValueError, match=r"\(300, 7\) and \(300, 6\)"):
        measure(probs, targets[:, :6])
    with pytest.raises(ValueError, match=r"\(300,\) and \(300,\)"):
        measure(probs[:, 0], targets[:, 0])
    with pytest.raises(ValueError, match=r"\(300, 7\), found \(7,\)"):
        measure(probs, targets, ignore=np.zeros(7, dtype=bool))
    with pytest.raises(ValueError, match=r"0 and 1, found \[-1\].*ignore"):
        measure(probs, np.where(targets == 0, -1, 1))


def test_rejected_settings():
    scores, targets, _ = random_case()
    with pytest.raises(ValueError, match="found 'voc'"):
        average_precision(scores, targets, convention="voc")
    with pytest.raises(ValueError, match="sigmoid of the logits"):
        f1_scores(scores, targets)
    with pytest.raises(ValueError, match=r"one threshold or 7.*\(3,\)"):
        f1_scores(np.abs(np.tanh(scores)), targets, threshold=[0.5] * 3)
    with pytest.raises(ValueError, match="rising thresholds"):
        class_groups([1, 2], thresholds=(10, 10))
    for counts in ([[1, 2]], [-1, 2], [np.nan, 2]):
        with pytest.raises(ValueError, match="one count of at least 0"):
            class_groups(counts)
    for positives in ([], [[1]], [-1], [11], [np.nan]):
        with pytest.raises(ValueError, match=r"count in \[0, 10\]"):
            imbalance_ratios(positives, 10)
    for labels in ([1, 0], [[1, -1]], [[0.5]]):
        with pytest.raises(ValueError, match="labels of 0 and 1"):
            class_imbalance(labels)


def test_rejected_states():
    labels = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\), \(2, 3\), \(2, 2\), \(2, 3\)"):
        label_quality(labels, labels, labels[:, :2], labels)
    with pytest.raises(ValueError, match=r"found \[7\.0\]"):
        label_quality(labels, labels, labels + 7, labels)
