"""Co-teaching from the command line: two networks are built, and what is evaluated later is what was evaluated."""

import json

import pytest
import torch

from hf_balancemix.recipe import main, run
from recipes.digits import RECIPE
from tests import tiny

QUICK = ["--method=co_teaching", "--evaluated_network=mean", "--use_cpu", "--disable_tqdm=true"]
QUICK += ["--num_train_epochs=2", "--warmup_epochs=1"]


@pytest.mark.slow
def test_two_networks_from_training_to_evaluation(tmp_path, monkeypatch):
    built, build = [], run.build_model

    def recording(*args):
        model, processor = build(*args)
        built.append(tiny.weights_of(model))
        return model, processor

    monkeypatch.setattr(run, "build_model", recording)
    for folder in ("one", "two"):
        main(RECIPE, [*QUICK, f"--output_dir={tmp_path / folder}"])
    first, second, *again = built
    assert first.keys() == second.keys()
    drawn = [name for name, tensor in first.items() if tensor.ndim > 1]
    assert not any(torch.equal(first[name], second[name]) for name in drawn)
    assert tiny.same_weights(first, again[0])
    assert tiny.same_weights(second, again[1])
    results = [
        json.loads((tmp_path / f / "results.json").read_text(encoding="utf-8"))["runs"][0] for f in ("one", "two")
    ]
    assert results[0]["map"] == results[1]["map"]
    assert {"selected_by_first", "selected_by_second", "selection_precision"} <= set(results[0]["epochs"][-1])

    maps = {}
    for evaluated in ("mean", "first"):
        options = [option for option in QUICK if "evaluated" not in option]
        main(RECIPE, [*options, f"--evaluated_network={evaluated}", "--do_eval", f"--output_dir={tmp_path / 'one'}"])
        record = json.loads((tmp_path / "one" / "co_teaching-seed0" / "evaluation.json").read_text(encoding="utf-8"))
        maps[evaluated] = record["map"]
    assert maps["mean"] == pytest.approx(results[0]["map"], abs=1e-6)
    assert maps["first"] != pytest.approx(maps["mean"], abs=1e-6)
