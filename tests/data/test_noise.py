"""Noise: the invariants of each kind, independence of how rows are read, and the `datasets` map."""

import pickle

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value, load_from_disk

from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.noise import (
    NoiseSpec,
    NoiseTransform,
    flip,
    inject_noise,
    mislabel,
    noise_of,
    single_positive,
    transition_matrix,
)

NAMES = [f"c{k}" for k in range(8)]
FREQUENCY = np.array([0.5, 0.3, 0.2, 0.2, 0.1, 0.05, 0.02, 0.0])  # the last class has no positives
TAU = 0.4
KINDS = {
    "mislabel": lambda y, seed=0, ids=None: mislabel(y, TAU, seed, ids),
    "mislabel, avoid present": lambda y, seed=0, ids=None: mislabel(y, TAU, seed, ids, avoid_present=True),
    "mislabel, exact": lambda y, seed=0, ids=None: mislabel(y, TAU, seed, ids, exact=True),
    "mislabel, both": lambda y, seed=0, ids=None: mislabel(y, TAU, seed, ids, avoid_present=True, exact=True),
    "flip": lambda y, seed=0, ids=None: flip(y, TAU, seed, ids),
    "single positive": lambda y, seed=0, ids=None: single_positive(y, seed, ids),
}
MISLABEL = [name for name in KINDS if name.startswith("mislabel")]


@pytest.fixture(scope="module")
def clean():
    labels = (np.random.default_rng(5).random((6000, 8)) < FREQUENCY).astype(np.uint8)
    labels[:50] = 0
    return labels


def within(count, n, p, sigmas=4):
    return abs(count - n * p) <= sigmas * np.sqrt(n * p * (1 - p))


# --- transition matrix ------------------------------------------------------------------------------------------


def test_transition_matrix_vector(vectors):
    vector = vectors["08_eq11_transition"]
    counts, tau = vector["inputs"]["positives_per_class"], vector["inputs"]["tau"]
    matrix = transition_matrix(counts, tau)
    np.testing.assert_allclose(matrix, vector["expected"]["T"], atol=1e-9)
    np.testing.assert_allclose(matrix.sum(axis=1), vector["expected"]["row_sums"], atol=1e-9)
    np.testing.assert_allclose(
        counts @ matrix, vector["expected"]["expected_noisy_positives_ignoring_collisions"], atol=1e-9
    )
    off_diagonal = matrix.sum(axis=1) - np.diag(matrix)
    np.testing.assert_allclose(off_diagonal, tau)
    # N read as the number of images: off-diagonal rows no longer sum to the rate, and exceed one for the first class.
    wrong = vector["expected"]["wrong_reading_offdiag_row_sums"]
    images = vector["inputs"]["instances"]
    np.testing.assert_allclose([tau * (100 - n) / (images - n) for n in counts], wrong)
    assert max(wrong) > 1
    assert not np.isclose(off_diagonal, wrong).any()


def test_transition_matrix_without_targets():
    np.testing.assert_array_equal(transition_matrix([5], 0.4), [[1.0]])
    np.testing.assert_allclose(transition_matrix([5, 0], 0.4), [[1, 0], [0.4, 0.6]])
    np.testing.assert_array_equal(transition_matrix([0, 0], 0.4), np.eye(2))
    matrix = transition_matrix([5, 3, 0], 0.4)
    np.testing.assert_array_equal(matrix[:2, 2], 0)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    np.testing.assert_array_equal(transition_matrix([5, 3, 2], 0.0), np.eye(3))


# --- mislabelling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MISLABEL)
def test_mislabel_invariants(name, clean):
    noisy = KINDS[name](clean)
    assert noisy.labels.dtype == np.uint8
    np.testing.assert_array_equal(noisy.changed, noisy.labels != clean)
    assert noisy.moved.any()
    assert (noisy.labels.sum(axis=1) <= clean.sum(axis=1)).all()
    assert not noisy.labels[clean.sum(axis=1) == 0].any()
    gained, lost = (noisy.labels == 1) & (clean == 0), (noisy.labels == 0) & (clean == 1)
    assert clean.sum(axis=0)[gained.any(axis=0)].min() > 0
    assert not noisy.labels[:, 7].any()
    assert noisy.moved[lost].all()
    assert (clean[noisy.moved] == 1).all()


@pytest.mark.parametrize("name", ["mislabel", "mislabel, avoid present"])
def test_each_positive_moves_at_the_rate(name, clean):
    moved = KINDS[name](clean).moved
    # Avoiding present classes leaves all rows some absent class here, so that the rate is kept.
    assert (clean[:, :7].sum(axis=1) < 7).all()
    for k in range(7):
        assert within(moved[:, k].sum(), clean[:, k].sum(), TAU)


def test_targets_follow_the_frequency_of_the_other_classes():
    one = np.repeat(np.eye(4, dtype=np.uint8), [4000, 2000, 1500, 500], axis=0)  # single labels: targets are visible
    noisy, matrix = mislabel(one, TAU, 3), transition_matrix(one.sum(axis=0), 1.0)
    for k in range(4):
        targets = noisy.labels[noisy.moved[:, k]].sum(axis=0)
        assert targets[k] == 0
        expected = targets.sum() * np.delete(matrix[k], k)
        chi2 = ((np.delete(targets, k) - expected) ** 2 / expected).sum()
        assert chi2 < 13.8  # 2 degrees of freedom: p = 0.001
    assert within(noisy.moved.sum(), 8000, TAU)


def test_removals_come_before_additions():
    """A positive that moves onto a class whose own positive moves away ends as present."""
    both = np.ones((400, 2), dtype=np.uint8)
    noisy = mislabel(both, 1.0, 0)
    np.testing.assert_array_equal(noisy.labels, both)
    assert noisy.moved.all()
    assert not noisy.changed.any()
    noisy = mislabel(both, 0.5, 0)
    one_moved = noisy.moved.sum(axis=1) == 1
    np.testing.assert_array_equal(noisy.labels[one_moved], ~noisy.moved[one_moved])


def test_rate_zero_and_one(clean):
    for avoid in (False, True):
        for exact in (False, True):
            still = mislabel(clean, 0.0, 0, avoid_present=avoid, exact=exact)
            np.testing.assert_array_equal(still.labels, clean)
            assert not still.moved.any()
            assert not still.changed.any()
            everything = mislabel(clean, 1.0, 0, avoid_present=avoid, exact=exact)
            np.testing.assert_array_equal(everything.moved, clean == 1)


@pytest.mark.parametrize("labels", [np.ones((20, 1)), np.eye(3)[[1] * 20]])
def test_without_a_target_nothing_moves(labels):
    for options in ({}, {"exact": True}, {"avoid_present": True}, {"avoid_present": True, "exact": True}):
        noisy = mislabel(labels, 1.0, 0, **options)
        np.testing.assert_array_equal(noisy.labels, labels)
        assert not noisy.moved.any()


@pytest.mark.parametrize("exact", [False, True])
def test_avoid_present_only_moves_to_absent_classes(clean, exact):
    noisy = mislabel(clean, TAU, 0, avoid_present=True, exact=exact)
    assert not (noisy.labels & noisy.moved).any()
    free = mislabel(clean, TAU, 0)
    assert (free.labels & free.moved).any(), "the option would have no effect"
    full = np.ones((30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(mislabel(full, 1.0, 0, avoid_present=True, exact=exact).moved, False)
    # Two absent classes with counts 3:1 share the moves 3:1 (renormalised).
    row = np.tile(np.array([1, 1, 0, 0], dtype=np.uint8), (3000, 1))
    noisy = mislabel(row, 0.2, 0, avoid_present=True, class_counts=[900, 500, 300, 100])
    alone = noisy.moved.sum(axis=1) == 1
    assert within(noisy.labels[alone, 2].sum(), alone.sum(), 0.75)
    assert within(noisy.labels[alone, 3].sum(), alone.sum(), 0.25)


@pytest.mark.parametrize("rate", [0.2, 0.29, 0.4, 1.0])
def test_exact_moves_exactly_the_rate(clean, rate):
    for avoid in (False, True):
        moved = mislabel(clean, rate, 0, exact=True, avoid_present=avoid).moved
        assert moved.sum() == int(clean.sum() * rate + 1e-9)
    assert (
        mislabel(np.eye(4)[[0, 1, 2, 3] * 25], 0.29, 1, exact=True).moved.sum() == 29
    )  # 0.29 · 100 = 28.999... in floats


def test_exact_counts_positives_that_can_move():
    labels = np.vstack([np.ones((10, 3)), np.eye(3)])  # only the last three rows have an absent class
    moved = mislabel(labels, 0.1, 0, exact=True, avoid_present=True).moved
    assert moved.sum() == 3
    assert moved[10:].sum() == 3
    assert mislabel(np.ones((10, 3)), 0.5, 0, exact=True).moved.sum() == 15  # present classes are targets here
    labels = np.repeat([[1, 1, 0], [1, 0, 0]], [10, 4], axis=0)  # the absent third class has no positives at all
    moved = mislabel(labels, 0.1, 0, exact=True, avoid_present=True).moved
    assert moved.sum() == moved[10:].sum() == 2


# --- flipping and single positive -------------------------------------------------------------------------------


def test_flip_invariants(clean):
    noisy = flip(clean, TAU, 0)
    np.testing.assert_array_equal(noisy.changed, noisy.labels != clean)
    assert noisy.labels.dtype == np.uint8
    assert noisy.moved is None
    assert within(noisy.changed.sum(), clean.size, TAU)
    np.testing.assert_array_equal(flip(clean, 0.0, 0).labels, clean)
    np.testing.assert_array_equal(flip(clean, 1.0, 0).labels, 1 - clean)
    np.testing.assert_array_equal(flip(1 - clean, TAU, 0).changed, noisy.changed)  # independent of the labels
    for present in (0, 1):
        assert within(noisy.changed[clean == present].sum(), (clean == present).sum(), TAU)


def test_flip_draws_are_independent(clean):
    changed = flip(clean, TAU, 0).changed
    others = [flip(clean, TAU, 1).changed, np.roll(changed, 1, axis=0), np.roll(changed, 1, axis=1), changed[:, ::-1]]
    for other in others[:3]:
        assert within((changed & other).sum(), clean.size, TAU**2)
    for axis in (0, 1):
        n = clean.shape[axis]
        variance = changed.sum(axis=axis).var()
        assert 0.8 < variance / (n * TAU * (1 - TAU)) < 1.25 or clean.shape[1 - axis] < 100
    assert 0.9 < changed.sum(axis=1).var() / (8 * TAU * (1 - TAU)) < 1.1


def test_single_positive_invariants(clean):
    noisy = single_positive(clean, 0)
    assert (noisy.labels <= clean).all()
    np.testing.assert_array_equal(noisy.labels.sum(axis=1), np.minimum(1, clean.sum(axis=1)))
    np.testing.assert_array_equal(noisy.changed, noisy.labels != clean)
    for seed in (0, 1):
        np.testing.assert_array_equal(single_positive(noisy.labels, seed).labels, noisy.labels)
    counts = clean.sum(axis=1)
    for n in (2, 3):  # each of n positives is kept with probability 1/n
        rows = counts == n
        first = clean[rows].argmax(axis=1)
        kept_first = noisy.labels[rows][np.arange(rows.sum()), first]
        assert within(kept_first.sum(), rows.sum(), 1 / n)


# --- independence of how rows are read --------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_seed(name, clean):
    noise = KINDS[name]
    np.testing.assert_array_equal(noise(clean, 7).labels, noise(clean, 7).labels)
    assert (noise(clean, 7).labels != noise(clean, 8).labels).mean() > 0.01
    before = clean.copy()
    noise(clean)
    np.testing.assert_array_equal(clean, before)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("text", [False, True])
def test_order_does_not_matter(name, text, clean):
    ids = np.random.default_rng(0).permutation(10**6)[: len(clean)] - 500
    ids = np.array([f"img_{i}.jpg" for i in ids]) if text else ids
    order = np.random.default_rng(1).permutation(len(clean))
    noise = KINDS[name]
    np.testing.assert_array_equal(noise(clean[order], 3, ids[order]).labels, noise(clean, 3, ids).labels[order])


def test_batches_and_subsets_give_the_same_noise(clean):
    counts, ids = clean.sum(axis=0), np.arange(len(clean))
    for noise in (
        lambda y, i: mislabel(y, TAU, 0, i, class_counts=counts),
        lambda y, i: mislabel(y, TAU, 0, i, class_counts=counts, avoid_present=True),
        lambda y, i: flip(y, TAU, 0, i),
        lambda y, i: single_positive(y, 0, i),
    ):
        whole = noise(clean, ids).labels
        parts = [noise(clean[a : a + 700], ids[a : a + 700]).labels for a in range(0, len(clean), 700)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        some = ids[::37]
        np.testing.assert_array_equal(noise(clean[some], some).labels, whole[some])
    np.testing.assert_array_equal(flip(clean, TAU, 0).labels, flip(clean, TAU, 0, ids).labels)


def test_noise_does_not_change_between_releases():
    """Pinned draws: published results name a seed, and so must stay what they are."""
    labels = np.tile(np.array([1, 0, 1, 0], dtype=np.uint8), (4, 1))
    ids = [0, 1, 10**12, -1]
    assert mislabel(labels, 0.5, 0, ids, class_counts=[4, 3, 2, 1]).labels.tolist() == PINNED["mislabel"]
    assert flip(labels, 0.5, 0, ids).labels.tolist() == PINNED["flip"]
    assert single_positive(labels, 0, list("abcd")).labels.tolist() == PINNED["single_positive"]


PINNED = {
    "mislabel": [[0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0]],
    "flip": [[0, 0, 0, 1], [1, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]],
    "single_positive": [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]],
}


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mislable", 0.4), r"found 'mislable' \(did you mean 'mislabel'\?\)"),
        (("mislabel", 1.2), "rate from 0 to 1 for 'mislabel', found 1.2.*Pass 0.2"),
        (("flip", -0.1), "rate from 0 to 1 for 'flip', found -0.1"),
        (("flip", None), "found None"),
        (("flip", float("nan")), "found nan"),
        (("flip", "0.4"), "found '0.4'"),
        (("flip", True), "found True"),
        (
            ("single_positive", 0.4),
            "no rate for 'single_positive' .it keeps one positive per image.*Leave the rate out",
        ),
        (("none", 0.4), "no rate for 'none' .it changes nothing"),
        (("flip", 0.4, 0, True), "'mislabel' with avoid_present or exact, found 'flip'"),
        (("single_positive", None, 0, False, True), "found 'single_positive'"),
    ],
)
def test_spec_is_checked(arguments, message):
    with pytest.raises(ValueError, match=r"^Expected .*" + message):
        NoiseSpec(*arguments)


def test_arguments_are_checked(clean):
    with pytest.raises(TypeError, match=r"whole number as seed, found 0\.5"):
        NoiseSpec("flip", 0.4, 0.5)
    with pytest.raises(ValueError, match="labels of 0 and 1, found 2 in row 1, class 0"):
        flip([[0, 1], [2, 0]], TAU, 0)
    with pytest.raises(ValueError, match=r"found 0\.5 in row 0, class 1"):
        single_positive([[0, 0.5]], 0)
    with pytest.raises(ValueError, match=r"shape \(N, K\), found shape \(3,\)"):
        flip([0, 1, 0], TAU, 0)
    with pytest.raises(ValueError, match=r"2 ids, one per row, found shape \(3,\)"):
        flip([[0, 1], [1, 0]], TAU, 0, [1, 2, 3])
    with pytest.raises(TypeError, match=r"whole numbers or texts as ids, found 1\.5 in row 0"):
        flip([[0, 1]], TAU, 0, [1.5])
    with pytest.raises(ValueError, match="8 class counts from 0 on, found"):
        mislabel(clean, TAU, 0, class_counts=[1, 2])
    with pytest.raises(ValueError, match="K class counts from 0 on"):
        transition_matrix([3, -1], TAU)
    with pytest.raises(ValueError, match="rate from 0 to 1"):
        transition_matrix([3, 1], 1.5)


# --- data sets --------------------------------------------------------------------------------------------------

SPECS = [NoiseSpec("mislabel", TAU, 3), NoiseSpec("flip", 0.1, 4)]


@pytest.fixture(scope="module")
def dataset(clean):
    labels = [np.flatnonzero(row).tolist() for row in clean[:300]]
    features = Features({"labels": List(ClassLabel(names=NAMES)), "id": Value("string"), "path": Value("string")})
    ids = [f"img{i * 7919 % 300:03d}" for i in range(300)]
    return Dataset.from_dict({"labels": labels, "id": ids, "path": [f"{i}.png" for i in ids]}, features=features)


def multi_hot(data, column="labels"):
    return encode_labels(data, column).labels


def test_map_gives_the_pure_function_and_keeps_the_truth(dataset, clean):
    noisy = inject_noise(dataset, NoiseSpec("mislabel", TAU, 3))
    expected = mislabel(clean[:300], TAU, 3, dataset["id"][:])
    np.testing.assert_array_equal(multi_hot(noisy), expected.labels)
    np.testing.assert_array_equal(multi_hot(noisy, "clean_labels"), clean[:300])
    np.testing.assert_array_equal(noisy["noise_mask"][:], expected.changed)
    assert noisy.column_names == ["id", "path", "labels", "clean_labels", "noise_mask"]
    assert noisy["path"][:] == dataset["path"][:]
    assert noisy.features["labels"] == noisy.features["clean_labels"] == List(ClassLabel(names=NAMES))
    assert noisy.features["noise_mask"] == List(Value("uint8"), length=8)
    assert encode_labels(noisy).column == "labels"
    assert encode_labels(noisy).class_names == tuple(NAMES)


def test_composition_applies_one_after_the_other(dataset, clean):
    ids = dataset["id"][:]
    noisy = multi_hot(inject_noise(dataset, [NoiseSpec("flip", 0.1, 4), NoiseSpec("mislabel", TAU, 3)]))
    first = flip(clean[:300], 0.1, 4, ids).labels
    moved = (noisy != first).any(axis=1)
    assert moved.mean() > 0.3
    assert (noisy.sum(axis=1) <= first.sum(axis=1)).all()
    assert noisy[:, 7].any(), "the second noise counts classes after the first, which gave class 7 its positives"
    swapped = multi_hot(inject_noise(dataset, SPECS))
    assert (swapped != noisy).any()
    single = inject_noise(dataset, [*SPECS, NoiseSpec("single_positive")])
    np.testing.assert_array_equal(multi_hot(single).sum(axis=1), np.minimum(1, swapped.sum(axis=1)))
    np.testing.assert_array_equal(multi_hot(single, "clean_labels"), clean[:300])
    np.testing.assert_array_equal(single["noise_mask"][:], multi_hot(single) != clean[:300])


def test_the_same_noise_twice_does_not_cancel(dataset, clean):
    twice = multi_hot(inject_noise(dataset, [NoiseSpec("flip", TAU, 4)] * 2))
    assert within((twice != clean[:300]).sum(), twice.size, 2 * TAU * (1 - TAU))


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"batch_size": 300}, {"num_proc": 2}])
def test_batch_size_and_processes_do_not_matter(dataset, options):
    assert inject_noise(dataset, SPECS, **options)["labels"][:] == inject_noise(dataset, SPECS)["labels"][:]


def test_order_of_rows_does_not_matter(dataset):
    for spec in (SPECS, NoiseSpec("mislabel", TAU, 0, exact=True), NoiseSpec("single_positive")):
        noisy = inject_noise(dataset, spec)
        shuffled = inject_noise(dataset.shuffle(seed=1), spec)
        assert dict(zip(shuffled["id"], shuffled["labels"], strict=True)) == dict(
            zip(noisy["id"], noisy["labels"], strict=True)
        )
    some = dataset.select(range(5, 90, 3))
    whole = dict(zip(dataset["id"], inject_noise(dataset, NoiseSpec("flip", TAU))["labels"], strict=True))
    part = inject_noise(some, NoiseSpec("flip", TAU))
    assert [whole[i] for i in part["id"]] == part["labels"][:]


def test_on_the_fly_equals_the_map(dataset):
    for specs in (SPECS, NoiseSpec("mislabel", TAU, 0, avoid_present=True, exact=True), NoiseSpec("single_positive")):
        stored = inject_noise(dataset, specs)
        transform = pickle.loads(pickle.dumps(NoiseTransform.from_dataset(dataset, specs)))
        live = dataset.with_transform(transform)
        for column in ("labels", "clean_labels", "noise_mask", "path"):
            assert live[:][column] == stored[:][column]
        order = [17, 3, 3, 250]
        assert live[order]["labels"] == stored[order]["labels"]
        assert live[42]["labels"] == stored[42]["labels"]
        assert live.shuffle(seed=0)[0]["labels"] == stored.shuffle(seed=0)[0]["labels"]


@pytest.mark.parametrize("written", ["names", "text", "multi-hot", "columns"])
def test_any_label_format(written, dataset, clean):
    names = [[NAMES[k] for k in row] for row in dataset["labels"]]
    ids = dataset["id"][:]
    columns = {
        "names": {"tags": names},
        "text": {"tags": [" | ".join(row) for row in names]},
        "multi-hot": {"labels": clean[:300].tolist()},
        "columns": {name: clean[:300, k].tolist() for k, name in enumerate(NAMES)},
    }[written]
    other = Dataset.from_dict({**columns, "id": ids})
    noisy = inject_noise(other, SPECS, class_names=NAMES)
    assert noisy["labels"][:] == inject_noise(dataset, SPECS)["labels"][:]
    assert noisy.column_names == ["id", "labels", "clean_labels", "noise_mask"]
    live = other.with_transform(NoiseTransform.from_dataset(other, SPECS, class_names=NAMES))
    assert live[:20]["labels"] == noisy[:20]["labels"]


def test_ids(dataset, clean):
    bare = dataset.remove_columns("id")
    noisy = inject_noise(bare, NoiseSpec("flip", TAU))
    assert noisy["id"][:] == list(range(300))
    np.testing.assert_array_equal(multi_hot(noisy), flip(clean[:300], TAU, 0).labels)
    part = inject_noise(bare.shuffle(seed=0).select(range(9)), NoiseSpec("flip", TAU))
    assert part["path"][:] == bare.shuffle(seed=0)["path"][:9]
    named = inject_noise(dataset, NoiseSpec("flip", TAU), id_column="path")
    np.testing.assert_array_equal(multi_hot(named), flip(clean[:300], TAU, 0, dataset["path"][:]).labels)
    assert "id" in named.column_names


def test_no_noise(dataset):
    for specs in ([], NoiseSpec("none")):
        noisy = inject_noise(dataset, specs)
        assert noisy["labels"][:] == noisy["clean_labels"][:] == dataset["labels"][:]
        assert not np.any(noisy["noise_mask"][:])


@pytest.mark.parametrize("labels", [[["a"], [], ["a"]], [["a"], ["a"], ["a"]], [[], [], ["a"]]])
def test_one_class_and_images_without_positives(labels):
    one = Dataset.from_dict({"labels": labels})
    for spec in (NoiseSpec("mislabel", 1.0), NoiseSpec("single_positive")):
        noisy = inject_noise(one, spec)
        assert noisy["labels"][:] == noisy["clean_labels"][:]
    np.testing.assert_array_equal(
        multi_hot(inject_noise(one, NoiseSpec("flip", 1.0)))[:, 0], [not row for row in labels]
    )


def test_settings_survive(dataset, tmp_path):
    described = dataset.select(range(300))
    described.info.description = "Flowers.\nOf the alps."
    noisy = inject_noise(described, SPECS)
    expected = [
        {"kind": "mislabel", "rate": TAU, "seed": 3, "avoid_present": False, "exact": False},
        {"kind": "flip", "rate": 0.1, "seed": 4, "avoid_present": False, "exact": False},
    ]
    assert noise_of(noisy) == expected
    assert noisy.info.description.startswith("Flowers.\nOf the alps.\n")
    assert described.info.description == "Flowers.\nOf the alps."
    assert noise_of(described) == noise_of(dataset) == []
    noisy.save_to_disk(tmp_path / "noisy")
    loaded = load_from_disk(tmp_path / "noisy")
    for data in (
        loaded,
        noisy.map(lambda row: {"n": len(row["labels"])}),
        noisy.select([1, 2]).shuffle(seed=0),
        noisy.filter(lambda row: len(row["labels"]) > 1),
        noisy.train_test_split(0.2, seed=0)["test"],
        noisy.add_column("n", [0] * 300),
        noisy.with_format("numpy"),
    ):
        assert noise_of(data) == expected
        assert encode_labels(data, "clean_labels").class_names == tuple(NAMES)
    assert loaded[:] == noisy[:]


def test_noise_is_cached_by_its_settings(dataset, tmp_path):
    dataset.save_to_disk(tmp_path / "set")
    first, again, other = (
        inject_noise(load_from_disk(tmp_path / "set"), NoiseSpec("mislabel", TAU, seed)) for seed in (1, 1, 2)
    )
    files = [{f["filename"] for f in data.cache_files} for data in (first, again, other)]
    assert files[0] == files[1] != files[2]
    assert any("cache-" in name for name in files[0])
    assert first._fingerprint == again._fingerprint != other._fingerprint
    assert first["labels"][:] == again["labels"][:] != other["labels"][:]


def test_format_and_split_are_kept(dataset):
    data = Dataset(dataset.data, info=dataset.info, split=datasets.Split.TRAIN)
    noisy = inject_noise(data.with_transform(lambda batch: {"n": [len(row) for row in batch["labels"]]}), SPECS)
    assert noisy.split == "train"
    assert noisy[0] == {"n": len(inject_noise(data, SPECS)[0]["labels"])}


def test_data_set_errors(dataset):
    flipped = NoiseSpec("flip", TAU)
    with pytest.raises(
        ValueError, match=r"clean labels, found \['clean_labels', 'noise_mask'\].*several noises at once"
    ):
        inject_noise(inject_noise(dataset, flipped), flipped)
    with pytest.raises(ValueError, match=r"clean labels, found \['labels'\]"):
        inject_noise(dataset.add_column("tags", [["a"]] * 300), flipped, label_column="tags")
    with pytest.raises(
        ValueError, match=r"id column 'pth' \(did you mean 'path'\?\), found \['labels', 'id', 'path'\]"
    ):
        inject_noise(dataset, flipped, id_column="pth")
    with pytest.raises(ValueError, match=r"different ids in 'id', found one id in rows \[0, 2\].*another id_column"):
        inject_noise(Dataset.from_dict({"labels": [["a"]] * 3, "id": [4, 5, 4]}), flipped)
    with pytest.raises(TypeError, match="ids, found None in row 1"):
        inject_noise(Dataset.from_dict({"labels": [["a"]] * 2, "id": ["x", None]}), flipped)
    with pytest.raises(TypeError, match="DatasetDict"):
        inject_noise(datasets.DatasetDict(train=dataset), flipped)
    bare = dataset.remove_columns("id")
    with pytest.raises(ValueError, match=r"id column 'id', found .*add_column\(\"id\"") as error:
        NoiseTransform.from_dataset(bare, flipped)
    remedy = str(error.value).split("or ")[-1].rstrip(".")
    transform = NoiseTransform.from_dataset(eval(remedy, {"dataset": bare}), flipped)
    assert transform.id_column == "id"
