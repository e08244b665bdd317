"""How long a comparison takes: time left from what finished runs took, and seconds summed over resumes."""

import time
from types import SimpleNamespace

import pytest

from hf_balancemix.compare.cells import plan_cells, read_requests
from hf_balancemix.compare.command import read_options
from hf_balancemix.compare.progress import Overview, Speeds, duration, work
from hf_balancemix.recipe.progress import Stopwatch


@pytest.fixture
def cells():
    options = read_options(["digits", "--methods", "bce", "mixup", "--noises", "none", "--seeds", "2"])
    return plan_cells(options.recipe, read_requests(options.recipe, options.grid, ["--use_cpu"], "x"), {})


def took(cell, seconds, steps=100):
    return {
        "method": cell.plan.settings["method"],
        "work": work(cell.plan.settings),
        "seconds": seconds,
        "steps": steps,
    }


def test_speeds(cells):
    bce, _, mixup, _ = cells
    speeds = Speeds([took(bce, 10), took(bce, 30), took(bce, 20), {**took(mixup, 9), "work": "of another kind"}])
    assert speeds.measured(bce) == pytest.approx(0.2)
    assert speeds.measured(mixup) is None
    assert speeds.likely(mixup) == pytest.approx(0.2)
    assert Speeds([]).likely(bce) is None


def test_time_left(cells, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    steps = {cell.id: 100 for cell in cells}
    overview = Overview(cells, steps, Speeds([]), shown=False)
    assert overview.seconds_left() is None
    overview.begin(cells[0])
    now[0] += 3  # the model is built
    overview.tell(cells[0], 0.0)
    now[0] += 5
    overview.tell(cells[0], 0.25)  # 20 s in all, so 15 to go; three more of which nothing else is known
    assert overview.seconds_left() == pytest.approx(15 + 3 * 20)
    now[0] += 15
    overview.end(cells[0], took(cells[0], 20))
    assert overview.seconds_left() == pytest.approx(3 * 20)
    overview.begin(cells[1])
    overview.end(cells[1], took(cells[1], 20))
    overview.begin(cells[2])
    overview.end(cells[2], took(cells[2], 50))
    assert overview.seconds_left() == pytest.approx(50)  # the last is of the slow method
    resumed = Overview(cells, steps, Speeds([]), shown=False)
    resumed.begin(cells[0])
    resumed.tell(cells[0], 0.5)
    now[0] += 10
    resumed.tell(cells[0], 0.75)  # a quarter in ten seconds
    assert resumed.seconds_left() == pytest.approx(10 + 3 * 40)
    together = Overview(cells, steps, Speeds([took(cells[0], 10), took(cells[2], 30)]), at_once=2, shown=False)
    assert together.seconds_left() == pytest.approx((2 * 10 + 2 * 30) / 2)


def test_durations():
    assert [duration(s) for s in (3, 89, 90, 5399, 5400, 360_000)] == [
        "3 s",
        "89 s",
        "2 min",
        "90 min",
        "1.5 h",
        "100.0 h",
    ]


def test_seconds_are_summed_over_resumes(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run(start, events):
        """Seconds pass, then the step of a save; what is behind the last is lost."""
        watch = Stopwatch(tmp_path)
        state = SimpleNamespace(global_step=start, is_world_process_zero=True)
        watch.on_train_begin(None, state, None)
        for seconds, step in events:
            now[0] += seconds
            state.global_step = step
            watch.on_save(None, state, None)
        now[0] += 7
        return watch, state

    run(0, [(10, 5), (10, 10)])  # killed 7 s behind step 10
    watch, state = run(10, [(4, 15)])
    assert watch.seconds == 24
    watch, state = run(5, [])  # step 10 was lost, and 15
    watch.on_train_end(None, state, None)
    assert watch.seconds == 17
    watch, state = run(0, [])  # begun anew
    watch.on_train_end(None, state, None)
    assert watch.seconds == 7
