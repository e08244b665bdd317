"""A refresh gives the same statistics on one, two and four processes, on all of them alike."""

import json
from pathlib import Path

import pytest
import torch

from hf_balancemix.label_state import LabelState
from hf_balancemix.method import instance_score, sampling_probability, shares_of_sums
from tests.distributed.launch import run

ROWS = 43  # no multiple of any number of processes: some are given a row twice, which must not count


def states_of(folder, world, views, **changes):
    """The states of all ranks after a run in which the weights do not move; with "carry" that of its checkpoint."""
    options = {
        "num_train_epochs": 2 if views == "carry" else 1,
        "warmup_epochs": 0,
        "learning_rate": 0.0,
        "save_strategy": "epoch" if views == "carry" else "no",
        "relabel_views": views,
        "per_device_train_batch_size": 8 // world,
        "per_device_eval_batch_size": 5,
    }
    job = {
        "output_dir": str(folder / f"{views}-{world}"),
        "rows": ROWS,
        "model": "vit",
        "world_size": world,
        **changes,
    }
    results = run({**job, "options": options})
    assert len(results) == world
    if views == "carry":  # as the second refresh left it for a third, which there is not
        return [LabelState.load(Path(job["output_dir"]) / "checkpoint-10")], results
    return [LabelState.load(Path(job["output_dir"]) / f"state-{rank}") for rank in range(world)], results


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The state on one process, by schedule."""
    folder = tmp_path_factory.mktemp("alone")
    return {views: states_of(folder, 1, views)[0][0][0] for views in ("epoch", "carry", "stream")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("views", "world", "hosts"),
    [
        ("epoch", 2, "aa"),
        ("epoch", 4, "aaaa"),
        ("carry", 2, "aa"),
        ("carry", 4, "aaaa"),
        ("stream", 2, "aa"),
        ("stream", 4, "aaaa"),
        ("stream", 4, "abab"),
    ],
)
def test_one_two_and_four_processes_refresh_alike(tmp_path, alone, views, world, hosts):
    """On one machine or, by their names, on two."""
    expected = alone[views]
    assert expected.prepared_epoch == 1
    states, results = states_of(tmp_path, world, views, hosts=hosts)
    assert len({result["state"] for result in results}) == 1  # the same on all, bit for bit
    found = states[0][0]
    assert torch.equal(found.labels, expected.labels)
    assert found.statistics().keys() == expected.statistics().keys()
    for name, value in expected.statistics().items():
        # Batches of other sizes round differently, and tables are held in steps of up to 0.004.
        atol = 0.005 if name in ("posterior", "posterior_mean", "confidence", "carried") else 1e-5
        torch.testing.assert_close(getattr(found, name), value, atol=atol, rtol=1e-5, msg=name)
    if views == "stream":
        assert all(result["sums"] == results[0]["sums"] for result in results)
        probability = torch.cat([*shares_of_sums(torch.tensor(results[0]["sums"], dtype=torch.float64))])
        score = instance_score(found.labels, *found.class_confidence.flip(0))
        torch.testing.assert_close(probability, sampling_probability(score), atol=1e-14, rtol=0)


@pytest.mark.slow
def test_a_row_that_is_no_number_stops_all_processes(tmp_path):
    """None is left waiting for the one that saw it."""
    job = {"output_dir": str(tmp_path), "rows": ROWS, "model": "vit", "world_size": 2, "not_finite_row": 7}
    with pytest.raises(AssertionError) as caught:
        run({**job, "options": {"num_train_epochs": 1, "warmup_epochs": 0}}, timeout=120)
    assert str(caught.value).count("first in rows [7]") >= 2, json.dumps(job)


@pytest.mark.slow
def test_a_process_without_temporary_files_stops_all_processes(tmp_path):
    job = {"output_dir": str(tmp_path), "rows": ROWS, "model": "vit", "world_size": 2, "lost_folder": 1}
    with pytest.raises(AssertionError) as caught:
        run({**job, "options": {"relabel_views": "stream"}}, timeout=120)
    assert str(caught.value).count("OSError: Expected room for the labels of the training set in") >= 2


@pytest.mark.slow
def test_a_wrong_label_stops_all_processes(tmp_path):
    """With schedule "stream" the first process of a machine alone reads the labels."""
    job = {"output_dir": str(tmp_path), "rows": ROWS, "model": "vit", "world_size": 2, "wrong_row": 7}
    with pytest.raises(AssertionError) as caught:
        run({**job, "options": {"relabel_views": "stream"}}, timeout=120)
    assert str(caught.value).count("ValueError: Expected numbers in column 'labels', found None or NaN in row 7") == 2
