"""`recipes/benchmark.py epoch`: the parts of an epoch are counted once each, and add up."""

import json
import time
from argparse import Namespace

import pytest

from hf_balancemix.benchmark import main
from hf_balancemix.benchmark.epoch import SCHEDULES, Clock, epoch_parts, pictures


def test_a_part_within_another_counts_for_itself_alone():
    clock = Clock()
    clock.on_epoch_begin()
    with clock.part("outer"):
        time.sleep(0.05)
        for _ in range(2):
            with clock.part("inner"):
                time.sleep(0.1)
    clock.on_epoch_end()
    parts = clock.epochs[0]
    assert parts["inner"] >= 0.2
    assert 0.05 <= parts["outer"] < 0.15
    assert parts["whole"] >= parts["inner"] + parts["outer"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_part_of_every_schedule_is_seen(schedule):
    options = Namespace(backbone="resnet18", size=32, batch=4)
    parts = epoch_parts(schedule, pictures(8, 32), options)
    assert parts.keys() == {
        "whole", "forwards", "backwards", "augmentation", "targets and losses", "sampling", "reading", "statistics"
    }  # fmt: skip
    assert parts["whole"] > sum(seconds for part, seconds in parts.items() if part != "whole") > 0


def test_epoch_prints_ratios_without_bars_at_another_size(capsys):
    main(["epoch", "--images", "8", "--batch", "4", "--size", "32", "--rounds", "1", "--json"])
    figures = {figure["name"]: figure for figure in json.loads(capsys.readouterr().out)["figures"]}
    assert figures["step over BCE (floor 2.67)"]["value"] > 1
    assert not [figure for figure in figures.values() if figure["met"] is not None]
