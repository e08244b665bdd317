"""The memory that is predicted before training is what a refresh takes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_balancemix.benchmark import main
from hf_balancemix.benchmark.sharing import held_by_processes
from hf_balancemix.recipe.progress import memory_text
from hf_balancemix.training.refresh import PredictedMemory, predicted_memory

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux")
@pytest.mark.parametrize(("views", "rows"), [("epoch", 100_000), ("carry", 100_000), ("stream", 1_000_000)])
def test_predicted_memory_is_measured(views, rows):
    code = "import json; from hf_balancemix.benchmark.memory import refresh; "
    code += f"print(json.dumps(refresh({rows}, 80, {views!r})))"
    # In a process of its own: memory that another test has freed would be taken again unseen.
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    found = json.loads(output.splitlines()[-1])
    assert found["state"] == pytest.approx(found["predicted_state"], rel=0.01)
    assert found["peak"] == pytest.approx(found["predicted_peak"], rel=0.2, abs=50)


def arguments(**changes):
    values = {"refinement": "full", "second_sampler": "minority", "relabel_views": "epoch", "needs_views": True}
    values |= changes
    return SimpleNamespace(**values, streams=values["relabel_views"] == "stream")


def test_memory_follows_the_method():
    n, k = 1000, 20
    held, refresh, shared = predicted_memory(arguments(), n, k, 3 * n)
    assert shared == 0
    assert held == 4 * n * k + 8 * n + 16 * k + 8 <= n * k * 4 + n * 24
    assert refresh > 54 * n * k - 1
    assert predicted_memory(arguments(relabel_views="step"), n, k, 3 * n).held == held + 4 * n * k
    assert predicted_memory(arguments(relabel_views="carry"), n, k, 3 * n).held == held + 2 * n * k
    assert predicted_memory(arguments(refinement="none"), n, k, 3 * n).held == 3 * n + 8 * n + 16 * k
    assert not any(predicted_memory(arguments(refinement="none", second_sampler="random"), n, k, 3 * n))
    stream, twice = (predicted_memory(arguments(relabel_views="stream"), m, k, 3 * m) for m in (n, 2 * n))
    assert (stream.held, stream.shared) == (168 * k, 12 * n + 8 * (n + 1) + 8 * n)
    assert (twice.held, twice.refresh) == (stream.held, stream.refresh)  # nothing else grows with the images
    random = predicted_memory(arguments(relabel_views="stream", second_sampler="random"), n, k, 3 * n)
    assert random.shared == stream.shared - 8 * n
    text = memory_text(117_266, 80, PredictedMemory(38_500_000, 507_000_000))
    assert text.startswith("statistics of 117,266 images x 80 classes take 38.5 MB of memory, and about 507.0 MB more")
    assert text.endswith("refresh")
    assert memory_text(1, 1, PredictedMemory(1, 1, 2_000_000)).endswith(
        "; once on each machine, 2.0 MB in temporary files"
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="shared memory is told apart by Linux")
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_what_grows_with_the_images(processes):
    rows = 400_000
    shared = predicted_memory(arguments(relabel_views="stream"), rows, 5, 3 * rows).shared / 1e6
    found = held_by_processes(rows, 5, 3, processes)
    assert len(found) == processes
    for each in found:
        assert each["files"] == pytest.approx(shared / processes, rel=0.1)


def test_memory_prints_its_figures(capsys):
    main(["memory", "--rows", "400", "--classes", "5", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["figures"]) == 24
    assert [f["met"] for f in found["figures"] if f["name"].endswith("state")][:3] == [True] * 3
