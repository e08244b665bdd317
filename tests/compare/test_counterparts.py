"""The paper's numbers stand beside counterparts of its runs, and beside nothing else."""

import json

import pytest

from hf_balancemix.compare import main
from hf_balancemix.compare.cells import plan_cells, read_requests
from hf_balancemix.compare.command import read_options
from hf_balancemix.compare.counterparts import counterparts
from hf_balancemix.compare.grid import parse_noise, preset_path, presets, read_grid
from hf_balancemix.compare.show import rows_of_file
from hf_balancemix.recipe import RECIPES
from hf_balancemix.reports.comparison import tables
from hf_balancemix.reports.formats import FORMATS
from hf_balancemix.reports.paper import PAPER_NAMES, paper_number, paper_results

# Of the preset's tables those that are not of COCO.
DATA = {"table4": "deepfashion", "table10": "voc", "table11": "voc", "table15": "voc"}
NOISES_OF_TABLE_5 = ("none", "mislabel:0.4", "flip:0.4", "single_positive")


@pytest.fixture(autouse=True)
def no_model_is_built(monkeypatch):
    monkeypatch.setattr("hf_balancemix.compare.cells.fit_image_size", lambda options: None)


def planned(dataset, method, noise="none", **changes):
    """Settings of a run as the comparison plans it; nothing else is said than what is changed."""
    recipe = RECIPES[dataset]
    grid = read_options([dataset, "--methods", method, "--noises", noise]).grid
    words = ["--use_cpu", *(f"--{name}={value}" for name, value in changes.items())]
    (cell,) = plan_cells(recipe, read_requests(recipe, grid, words, "x"), {})
    settings = json.loads(json.dumps(cell.plan.settings))
    if dataset == "coco":
        settings["data"]["year"] = changes.get("year", "2017")
    return settings


def line(settings, value=50.0):
    named = {name: settings[name] for name in ("method", "noise", "noise_rate", "seed")}
    return {**named, "map": value, "groups": {}, "epochs": [], "settings": settings}


@pytest.mark.parametrize("name", [name for name in presets() if name.startswith("table")])
def test_every_run_of_a_preset_has_its_number(name):
    recipe, grid = RECIPES[DATA.get(name, "coco")], read_grid(preset_path(name))
    for cell in plan_cells(recipe, read_requests(recipe, grid, ["--use_cpu"], "x"), {}):
        settings, label = cell.plan.settings, cell.request.block.label
        settings["data"].setdefault("year", "2017")
        settings["data"]["year"] = settings["data"]["year"] or "2017"
        names, differs = counterparts(settings, label)
        assert not differs
        group = {"table12": "few", "table14": "share 50%", "table15": "share 50%"}.get(name, "all")
        noise = settings["noise"], settings["noise_rate"]
        number = paper_number(settings["data"], names, noise, group, grid.paper_table)
        assert number[1] == grid.paper_table
        if label is not None:
            printed = [r["map"] for r in paper_results() if (r["table"], r["method"]) == (grid.paper_table, label)]
            assert names[0] == label
            assert number[0] in map(float, printed)


@pytest.mark.parametrize(
    ("dataset", "method", "noise", "group", "table", "number"),
    [
        ("coco", "bce", "none", "all", None, 83.4),
        ("coco", "bce", "mislabel:0.4", "all", None, 63.8),  # Table 1
        ("coco", "bce", "mislabel:0.4", "all", "5", 63.3),
        ("coco", "bce", "mislabel:0.4", "few", "5", 48.0),  # only Table 1 has groups
        ("coco", "balancemix", "none", "all", "5", 85.3),
        ("coco", "balancemix", "none", "all", "1", 85.2),
        ("coco", "balancemix", "mislabel:0.4", "all", "8", 81.4),  # its threshold comes before its coefficient
        ("coco", "balancemix_no_minority", "flip:0.4", "all", None, 73.0),
        ("voc", "ll_ct", "single_positive", "few", None, 88.3),
        ("deepfashion", "t_estimator", "none", "medium", None, 84.8),
        ("voc", "co_teaching", "flip:0.4", "all", "9", 70.0),
        ("voc", "co_teaching", "flip:0.4", "all", "11", 70.3),
        ("voc", "balancemix", "mislabel:0.4", "share 75%", None, 7.0),
    ],
)
def test_the_papers_numbers(dataset, method, noise, group, table, number):
    settings, of = planned(dataset, method, noise), parse_noise(noise)
    names, _ = counterparts(settings)
    assert paper_number(settings["data"], names, (of.kind, of.rate), group, table)[0] == number


@pytest.mark.parametrize(
    ("method", "noise", "changes", "differs"),
    [
        ("bce", "none", {"num_train_epochs": 3}, "num_train_epochs 3 instead of 50"),
        ("bce", "none", {"image_size": 224}, "image_size 224 instead of 448"),
        ("bce", "none", {"backbone": "resnet18.tv_in1k"}, "backbone resnet18.tv_in1k instead of resnet50.tv_in1k"),
        ("bce", "none", {"head": "linear"}, "head linear instead of ml_decoder"),
        ("bce", "none", {"year": "2014"}, "year 2014 instead of 2017"),
        ("bce", "none", {"optim": "adamw_torch"}, "optim adamw_torch instead of sgd"),
        ("bce", "none", {"total_batch_size": 32}, "images_per_step 32 instead of 64"),
        ("mixup", "none", {"max_steps": 10}, "max_steps 10 instead of -1"),
        ("ll_r", "none", {"large_loss_rate": 0.1}, "large_loss_rate 0.1 instead of 0.04"),
        ("balancemix", "none", {"minority_score": "mean_positive"}, "minority_score mean_positive instead of eq3"),
        ("balancemix", "none", {"mixture_separation": 2}, "mixture_separation 2 instead of 0"),
        ("balancemix", "none", {"relabel_views": "reuse"}, "relabel_views reuse instead of step"),
        ("balancemix", "none", {"loss": "asl"}, "loss asl instead of bce"),
        ("balancemix", "single_positive", {"relabel_threshold": 0.975}, "relabel_threshold 0.975 instead of 0.55"),
        ("balancemix", "mislabel:0.4", {"mix_alpha": 3}, "mix_alpha 3 instead of 4"),
    ],
)
def test_runs_with_other_options_are_no_counterparts(method, noise, changes, differs):
    settings = planned("coco", method, noise, **changes)
    assert counterparts(settings) == ((), differs)
    assert counterparts(settings, PAPER_NAMES[method][0]) == ((), differs)  # whatever it is called


def test_what_a_method_does_not_read_and_what_is_about_speed_does_not_matter():
    assert counterparts(planned("coco", "bce", warmup_epochs=3, mix_alpha=1, large_loss_rate=1))[0]
    assert counterparts(planned("coco", "balancemix") | {"bf16": "True", "channels_last": True})[0]
    assert counterparts(planned("coco", "balancemix", "mislabel:0.4", mix_alpha=8))[0] == ("mix_alpha 8",)


def test_of_what_the_paper_has_nothing_nothing_is_said():
    for settings in (
        planned("digits", "bce"),
        planned("coco", "focal", num_train_epochs=3),
        planned("coco", "bce", "mislabel:0.3", num_train_epochs=3),
    ):
        assert counterparts(settings)[1] == ""


def test_labels_of_the_presets_are_the_papers():
    rows = {(r["table"], r["method"]) for r in paper_results()}
    for name in ("6", "8", "12"):
        assert all((name, block.label) in rows for block in read_grid(preset_path(f"table{name}")).blocks)
    assert {method for methods in PAPER_NAMES.values() for method in methods} <= {method for _, method in rows}


def by_noise(*lines, paper_table=None):
    (table,) = tables(rows_of_file(lines, ("bce", "mixup"), {}), "noises", paper_table)
    columns = [" ".join(column).strip() for column in table.columns]
    papers = {
        (*names, column): value.paper
        for names, values in table.rows
        for column, value in zip(columns, values, strict=True)
        if value is not None
    }
    return table, papers


def test_the_paper_beside_ours():
    lines = [line(planned("coco", "bce", noise)) for noise in NOISES_OF_TABLE_5]
    lines += [line(planned("coco", "mixup", noise), 90.0) for noise in NOISES_OF_TABLE_5]
    table, papers = by_noise(*lines, paper_table="5")
    columns = ("clean", "mislabel 40%", "flip 40%", "single positive", "mean")
    assert [papers["bce", column] for column in columns] == [83.4, 63.3, 43.0, 72.6, 65.6]
    assert "The paper's numbers are of its Table 5." in table.note
    assert "[the paper's number]" in FORMATS["text"]([table])
    assert "50.0 [63.3]" in FORMATS["text"]([table])
    assert "**90.0** [67.4]" in FORMATS["markdown"]([table])


def test_a_number_stands_beside_its_counterpart_only():
    lines = [line(planned("coco", "bce", noise)) for noise in NOISES_OF_TABLE_5[:3]]
    lines += [line(planned("coco", "bce", NOISES_OF_TABLE_5[3], num_train_epochs=3))]
    lines += [line(planned("coco", "mixup", noise, num_train_epochs=3)) for noise in NOISES_OF_TABLE_5]
    table, papers = by_noise(*lines, paper_table="5")
    assert papers["bce", "flip 40%"] == 43.0
    assert papers["bce", "single positive"] is None
    assert papers["bce", "mean"] is None  # for not all of it is the paper's
    assert not [paper for (name, _), paper in papers.items() if name == "mixup" and paper is not None]
    assert "Not beside the paper's numbers: bce, mixup, for num_train_epochs 3 instead of 50." in table.note


def test_the_table_is_of_another_data_set():
    lines = [line(planned("voc", "bce", noise)) for noise in ("none", "mislabel:0.2")]
    table, papers = by_noise(*lines, paper_table="1")
    assert papers["bce", "mislabel 20%"] == 82.9
    assert "The paper's numbers are of its Tables 9, 10. The paper's Table 1 is of COCO." in table.note


def test_show_without_its_file_gives_variants_no_number(tmp_path, capsys):
    lines = [line(planned("coco", "balancemix")), line(planned("coco", "balancemix", minority_score="mean_positive"))]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines), "utf-8")
    main(["coco", "--show", f"--output_dir={tmp_path}", "--format=markdown"])
    printed = capsys.readouterr().out
    assert "| balancemix (minority\\_score=eq3) | 50.0 [85.2] |" in printed.replace("**", "").replace("_", "\\_")
    assert "mean_positive) | **50.0** |" in printed
    assert "mean_positive), for minority_score mean_positive instead of eq3" in printed


@pytest.mark.parametrize(("words", "matching"), [([], 2), (["--year=2014"], 1), (["--year=2017"], 1)])
def test_runs_are_found_whether_or_not_the_year_is_said(words, matching, tmp_path, capsys):
    path = tmp_path / "grid.yaml"
    path.write_text("grid:\n - {methods: [bce], noises: [none]}", "utf-8")
    lines = [line(planned("coco", "bce", year=year)) for year in ("2014", "2017")]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines), "utf-8")
    main(["coco", "--show", f"--config={path}", f"--output_dir={tmp_path}", *words])
    printed = capsys.readouterr().out
    assert printed.count("50.0") == matching
    assert printed.count("[83.4]") == ("--year=2014" not in words)
