"""The digits set: sizes, attributes, long tail, reproducible split."""

import numpy as np
import pytest
from datasets import Image

from hf_balancemix.data.columns import encode_labels, find_image_column
from hf_balancemix.data.digits import CLASS_NAMES, DIGIT_NAMES, RARE_CLASSES, digit_attributes, load_digits_attributes


@pytest.fixture(scope="module")
def splits():
    return load_digits_attributes()


def test_attributes_of_each_digit():
    expected = {
        0: "zero even has a loop square",
        1: "one straight strokes square",
        2: "two even prime",
        3: "three prime multiple of three",
        4: "four even straight strokes square",
        5: "five prime five or more",
        6: "six even has a loop five or more multiple of three",
        7: "seven prime five or more straight strokes",
        8: "eight even has a loop five or more",
        9: "nine has a loop five or more square multiple of three",
    }
    table = digit_attributes()
    assert table.shape == (10, 17)
    for digit, row in enumerate(table):
        assert " ".join(np.array(CLASS_NAMES)[row == 1]) == expected[digit]


def test_sizes_and_columns(splits):
    assert set(splits) == {"train", "test"}
    assert len(splits["test"]) == 597
    # Expected size and its standard deviation: 120 images per digit, kept with probability 5^(-d/9).
    p = 5.0 ** (-np.arange(10) / 9)
    assert abs(len(splits["train"]) - 120 * p.sum()) < 4 * np.sqrt(120 * (p * (1 - p)).sum()) + 10
    for split in splits.values():
        assert split.column_names == ["image", "labels", "digit", "id"]
        assert isinstance(split.features["image"], Image)
        assert find_image_column(split) == "image"


def test_splits_are_disjoint_and_complete(splits):
    train, test = splits["train"]["id"][:], splits["test"]["id"][:]
    assert len(set(train)) == len(train)
    assert len(set(test)) == len(test)
    assert not set(train) & set(test)
    assert max(*train, *test) < 1797


def test_training_is_long_tailed_and_test_is_not(splits):
    train = np.bincount(splits["train"]["digit"], minlength=10)
    test = np.bincount(splits["test"]["digit"], minlength=10)
    assert 3 < train[0] / train[9] < 8
    assert train[:3].min() > train[7:].max()
    assert test.max() / test.min() < 1.6
    assert RARE_CLASSES == ("six", "seven", "eight", "nine")
    assert min(train[:6]) > max(train[6:]) * 0.9


def test_labels_follow_from_the_digit(splits):
    for split in splits.values():
        table = encode_labels(split)
        assert table.class_names == CLASS_NAMES
        np.testing.assert_array_equal(table.labels, digit_attributes()[np.array(split["digit"])])
        np.testing.assert_array_equal(table.labels[:, :10].sum(axis=1), 1)
        assert table.class_names[:10] == DIGIT_NAMES


def test_images_are_those_of_scikit_learn(splits):
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    for row in splits["train"].select(range(5)):
        pixels = np.asarray(row["image"])
        assert row["image"].mode == "L"
        assert pixels.shape == (8, 8)
        np.testing.assert_allclose(pixels / 255 * 16, images[row["id"]].reshape(8, 8), atol=0.04)
        assert digits[row["id"]] == row["digit"]


def test_seed(splits):
    again, other = load_digits_attributes(), load_digits_attributes(seed=1)
    assert again["train"]["id"][:] == splits["train"]["id"][:]
    assert other["train"]["id"][:] != splits["train"]["id"][:]
    assert other["test"]["id"][:] != splits["test"]["id"][:]
