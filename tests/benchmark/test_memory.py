"""The memory that is predicted before training is what a refresh takes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_balancemix.benchmark import main
from hf_balancemix.recipe.progress import memory_text
from hf_balancemix.training.refresh import predicted_bytes

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux")
@pytest.mark.parametrize(("views", "rows"), [("epoch", 100_000), ("stream", 1_000_000)])
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
    held, refresh = predicted_bytes(arguments(), n, k, 3 * n)
    assert held == 4 * n * k + 8 * n + 16 * k + 8 <= n * k * 4 + n * 24
    assert refresh > 54 * n * k - 1
    assert predicted_bytes(arguments(relabel_views="step"), n, k, 3 * n)[0] == held + 4 * n * k
    assert predicted_bytes(arguments(relabel_views="stream"), n, k, 3 * n)[0] == 12 * n + 8 * (n + 1) + 8 * n + 160 * k
    assert predicted_bytes(arguments(refinement="none"), n, k, 3 * n)[0] == 3 * n + 8 * n + 16 * k
    assert predicted_bytes(arguments(refinement="none", second_sampler="random"), n, k, 3 * n) == (0, 0)
    text = memory_text(117_266, 80, 38_500_000, 507_000_000)
    assert text.startswith("statistics of 117,266 images x 80 classes take 38.5 MB of memory, and about 507.0 MB more")


def test_memory_prints_its_figures(capsys):
    main(["memory", "--rows", "400", "--classes", "5", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["figures"]) == 18
    assert [f["met"] for f in found["figures"] if f["name"].endswith("state")][:3] == [True] * 3
