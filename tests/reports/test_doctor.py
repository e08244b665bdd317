"""The doctor's numbers against counts made by hand."""

import math
from html.parser import HTMLParser
from itertools import permutations

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from hf_balancemix.build import build_model
from hf_balancemix.data.transforms import ImageTransform
from hf_balancemix.reports.doctor import Settings, advise, co_occurrence, describe_split, find_pairs
from hf_balancemix.reports.doctor_images import (
    advise_images,
    find_duplicates,
    look_at_images,
    pixel_hash,
    untrained_loss,
)

NAMES = ("ant", "bee", "cat", "dog")
# ant in 4 images, bee in 2, cat in 1, dog in none; row 3 has no positive.
LABELS = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=np.int8)
PULL = {"eq3": 0.0, "mean_positive": 0.2}
OWN = Settings(20, 5, 2, 2, 4, 4)


def orders_map(labels):
    """Mean AP over every order of the images, of the classes with positives; in points."""
    scores = list(permutations(range(len(labels))))
    columns = [column for column in labels.T if column.any()]
    return 100 * np.mean([average_precision_score(column, order) for column in columns for order in scores])


def test_a_split_counted_by_hand():
    found = describe_split(LABELS, NAMES)
    assert found.positives == [4, 2, 1, 0]
    assert found.per_image == [1, 1, 3]  # none, one, two positives
    assert found.empty == [3]
    assert found.without_positives == ["dog"]
    assert found.class_imbalance == math.inf
    assert found.present_imbalance == 4
    assert found.positive_negative_imbalance == pytest.approx(13 / 7)
    assert found.chance_map() == pytest.approx(orders_map(LABELS))
    entropy = [p * math.log(1 / p) + (1 - p) * math.log(1 / (1 - p)) for p in (0.8, 0.4, 0.2)]
    assert found.frequency_loss() == pytest.approx(sum(entropy))
    assert not found.single_positive


def test_entries_left_out_are_neither_positive_nor_negative():
    labels = LABELS.copy()
    labels[3, :2] = -1
    found = describe_split(labels, NAMES)
    assert found.counted == [4, 4, 5, 5]
    assert found.positive_negative_imbalance == pytest.approx(11 / 7)
    kept = [column[column >= 0] for column in labels.T[:3]]
    assert found.chance_map() == pytest.approx(np.mean([orders_map(column[:, None]) for column in kept]))


def test_no_positive_at_all():
    found = describe_split(np.zeros((3, 2), np.int8), NAMES[:2])
    assert math.isnan(found.present_imbalance)
    assert found.positive_negative_imbalance == math.inf
    assert math.isnan(found.chance_map())
    assert found.empty == [0, 1, 2]


def test_pairs_that_are_together_and_never_are():
    shared, classes = co_occurrence(LABELS)
    assert classes.tolist() == [0, 1, 2, 3]
    assert shared.tolist() == [[4, 2, 1, 0], [2, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    # 40 images of which 20 have bee, the other 20 cat, and 10 of the bees ant.
    labels = np.zeros((40, 3), np.int8)
    labels[:20, 1], labels[20:, 2], labels[:10, 0] = 1, 1, 1
    found = find_pairs(labels, NAMES)
    assert found.most == [("bee", "ant", 10, 2.0)]  # 10 · 20 / 40 = 5 were to be expected
    assert found.never == [("bee", "cat", 0, 10.0), ("cat", "ant", 0, 5.0)]
    assert found.num_never == 2


def advice(labels, own=OWN, pull=PULL, test=LABELS):
    return "\n".join(advise(describe_split(labels, NAMES), describe_split(test, NAMES), pull, own))


def test_advice_follows_the_labels():
    text = advice(LABELS)
    assert "1 many-shot, 1 medium-shot, 2 few-shot classes" in text
    assert "2 with fewer than 4 training positives" in text  # bee and cat; dog has none
    assert "no training positive: 'dog'" in text
    assert "1 training images (20.0%) have no positive" in text
    assert "0.55" not in text
    assert "less than one batch" not in text
    assert "less than one batch of 64" in advice(LABELS, Settings(20, 5, 64, 2, 4, 4))
    assert "nothing to do" in advice(LABELS, pull=dict.fromkeys(PULL, 0.001))
    single = LABELS.copy()
    single[:, 1:] = 0
    single[3, 2] = 1
    assert "--relabel_threshold 0.55" in advice(single)


def test_groups_are_proposed_where_the_usual_borders_give_one():
    labels = np.zeros((100, 4), np.int8)
    for k, count in enumerate((100, 80, 10, 3)):
        labels[:count, k] = 1
    text = advice(labels, Settings(20, 5, 2, 1000, 10000, 4), test=labels)
    # Thirds of 3, 10, 80, 100 lie at 10 and 80.
    assert "puts all classes into one (0 many-shot, 0 medium-shot, 4 few-shot)" in text
    assert "--medium_shot_from 10 --many_shot_from 80" in text
    assert "Class groups" not in advice(labels, Settings(20, 5, 2, 1000, 10000, 4, own_groups=True))


def picture(value, mode="RGB", size=(8, 6)):
    return Image.new("L", size, value).convert(mode)


def as_split(images):
    return datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))


def test_pixel_hash_sees_pixels_and_size_alone():
    assert pixel_hash(picture(9)) == pixel_hash(picture(9, "L")) == pixel_hash(picture(9, "P"))
    assert pixel_hash(picture(9)) != pixel_hash(picture(10))
    assert pixel_hash(picture(9)) != pixel_hash(picture(9, size=(6, 8)))
    deep = [Image.fromarray(np.full((4, 4), value, np.uint16)) for value in (1000, 2000)]
    assert pixel_hash(deep[0]) != pixel_hash(deep[1])  # both are white when cut off at 255


def test_duplicates_within_and_across_splits():
    splits = {
        "train": as_split([picture(1), picture(2), picture(1), picture(3), picture(4)]),
        "test": as_split([picture(4), picture(5)]),
    }
    labels = {"train": LABELS, "test": LABELS[[4, 0]]}
    images = {name: look_at_images(split, name, 100) for name, split in splits.items()}
    assert images["train"].sizes == {(8, 6): 5}
    found = find_duplicates(images, splits, labels)
    assert [one.images for one in found] == [
        [("train", "row 4"), ("test", "row 0")],
        [("train", "row 0"), ("train", "row 2")],
    ]
    assert [one.across for one in found] == [True, False]
    assert [one.labels_differ for one in found] == [False, True]
    text = "\n".join(advise_images(images, found))
    assert "in both splits (1 times)" in text
    assert "different labels (1 times)" in text
    assert "Unreadable" not in text


def test_a_sample_is_named_as_one_and_is_always_the_same():
    split = as_split([picture(i) for i in range(30)])
    first, second = (look_at_images(split, "train", 10) for _ in range(2))
    assert first.num_images == 30
    assert first.num_read == len(first.sampled) == 10
    assert first.sampled == second.sampled == sorted(set(first.sampled))


def test_bad_images_are_named(tmp_path):
    picture(1).save(tmp_path / "good (1).png")
    (tmp_path / "bad (2).png").write_bytes(b"no picture")
    paths = [str(tmp_path / name) for name in ("good (1).png", "bad (2).png", "gone.png")]
    found = look_at_images(as_split(paths), "train", 100)
    assert found.num_read == 1
    assert found.missing == [paths[2]]
    assert found.unreadable == [f"row 1, found {paths[1]!r} (no image, or one of an unknown format)"]


def test_loss_at_chance():
    model, processor = build_model("small_resnet", NAMES, 16, pretrained=False)
    with torch.no_grad():
        model.classifier[-1].weight.zero_()
        model.classifier[-1].bias.zero_()
    split = as_split([picture(i) for i in range(5)])
    loss, shape = untrained_loss(model, split, [0, 2, 4], ImageTransform(processor, "none"), LABELS)
    assert loss == pytest.approx(4 * math.log(2))
    assert shape == (3, 3, 16, 16)


class Balanced(HTMLParser):
    """Fails for a tag that is closed without being open; notes tags and text."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
