"""``--image_cache`` in a recipe: the results are those of a run without it."""

import json

import pytest

from hf_balancemix.recipe import main
from recipes.digits import RECIPE

QUICK = ["--num_train_epochs", "2", "--warmup_epochs", "1", "--use_cpu", "--method", "balancemix"]


def results(folder):
    """What a run found, without what differs between any two."""
    run = json.loads((folder / "results.json").read_text(encoding="utf-8"))["runs"][0]
    epochs = [{name: value for name, value in epoch.items() if "seconds" not in name} for epoch in run["epochs"]]
    return {"map": run["map"], "ap": run["per_class_ap"], "epochs": epochs, "settings": run["settings"]}


def test_digits_with_and_without(tmp_path, capsys):
    cache = tmp_path / "a cache"
    main(RECIPE, [*QUICK, "--output_dir", str(tmp_path / "plain")])
    assert "Image cache" not in capsys.readouterr().err
    for name, options in {"first": ["--cache_images", "False"], "second": []}.items():
        main(RECIPE, [*QUICK, "--output_dir", str(tmp_path / name), "--image_cache", str(cache), *options])
        assert results(tmp_path / name) == results(tmp_path / "plain")
        assert capsys.readouterr().err.count("Image cache: ") == (2 if name == "first" else 0)
    assert len(list(cache.glob("*.npy"))) == 2  # training and test images


def test_a_mistake_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(RECIPE, [*QUICK, "--output_dir", str(tmp_path / "out"), "--image_cache", str(tmp_path / "file")])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: Expected a folder as `image_cache`, found '")
    assert printed.count("\n") == 1
