"""`--ema_decay` from the command line: the averaged model's mAP stands beside the other one's wherever that stands."""

import json

import pytest

from hf_balancemix.recipe import RECIPES, main
from hf_balancemix.reports.tables import method_table

DIGITS = RECIPES["digits"]
QUICK = ["--method=bce", "--use_cpu", "--num_train_epochs=2", "--disable_tqdm=true"]


@pytest.mark.slow
def test_the_map_of_the_averaged_model(tmp_path, capsys):
    main(DIGITS, [*QUICK, f"--output_dir={tmp_path}", "--ema_decay=0.95"])
    printed = capsys.readouterr()
    (run,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["runs"]
    assert run["ema_map"] != run["map"]
    last = run["epochs"][-1]
    assert (run["map"], run["ema_map"]) == pytest.approx((last["map"], last["ema_map"]))
    assert f"epoch 2, mAP {run['map']:.1f}, EMA mAP {run['ema_map']:.1f}" in printed.err
    table = printed.out.splitlines()
    header = next(line for line in table if line.startswith("method"))
    row = next(line for line in table if line.startswith("bce"))
    assert header.split()[:4] == ["method", "mAP", "EMA", "mAP"]
    assert row.split()[:3] == ["bce", f"{run['map']:.1f}", f"{run['ema_map']:.1f}"]
    # It is the mAP of the model in ema/.
    averaged = tmp_path / "bce-seed0" / "ema"
    main(DIGITS, [*QUICK, f"--output_dir={tmp_path}", "--do_eval", f"--checkpoint={averaged}"])
    evaluated = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluated["map"] == pytest.approx(run["ema_map"], abs=1e-6)
    assert "ema_map" not in evaluated


def test_a_table_of_runs_with_and_without():
    common = {"groups": {}, "epochs": [], "seconds": 1.0}
    runs = [{"method": "bce", "map": 50.0, **common}, {"method": "asl", "map": 60.0, "ema_map": 62.5, **common}]
    header, rows = method_table(runs)
    assert header == ["method", "mAP", "EMA mAP", "best epoch", "seconds"]
    assert rows == [["bce", "50.0", "-", "-", "1"], ["asl", "60.0", "62.5", "-", "1"]]
    assert method_table(runs[:1])[0] == ["method", "mAP", "best epoch", "seconds"]
