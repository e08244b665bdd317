"""Grids: from words and YAML files to runs, and what identifies a run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_balancemix.compare.cells import cell_id, load_jobs, once, plan_cells, read_requests
from hf_balancemix.compare.command import read_options
from hf_balancemix.compare.grid import Noise, find_grid, parse_noise, preset_path, presets, read_grid
from hf_balancemix.recipe import RECIPES
from tests.distributed.launch import ROOT
from tests.layouts.coco import write_coco

# Runs of each, counted by hand: methods × noises × seeds.
RUNS = {
    "digits": 9 * (2 * 3 + 4),
    "digits_ablation": 7 * (2 * 3 + 4) + 2 * (2 * 3 + 4) + 1,
    "digits_scores": 2 * 3 * 3,
    "scenes": 4 * 4 + 2 * 2 + 1,
    "table1": 7 * 3 * 3,
    "table2": 7 * 3 * 3,
    "table3": 7 * 3,
    "table4": 7 * 3,
    "table5": 6 * 4 * 3,
    "table6": 10,
    "table8": (4 * 2 + 4 + 4 - 1) * 3,  # the defaults stand in it twice
    "table9": 6 * 5 * 3,
    "table10": 7 * 3 * 3,
    "table11": 7 * 3 * 3,
    "table12": 5 * 3,
    "table13": 5 * 4 * 3,
    "table14": 2 * 3,
    "table15": 2 * 3,
}
DATA = {"scenes": "scenes", "table4": "deepfashion", "table10": "voc", "table11": "voc", "table15": "voc"}


def cells_of(path, dataset="digits", *words):
    grid = read_grid(str(path))
    requests = read_requests(RECIPES[dataset], grid, ["--use_cpu", *words], "runs/nowhere")
    return once(plan_cells(RECIPES[dataset], requests, {}))


def write(tmp_path, text):
    path = tmp_path / "grid ü.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", presets())
def test_presets(name, monkeypatch):
    path = Path(find_grid(name))
    monkeypatch.setattr("hf_balancemix.compare.cells.fit_image_size", lambda options: None)  # needs no model here
    dataset = "digits" if "digits" in path.stem else DATA.get(path.stem, "coco")
    cells = cells_of(path, dataset)
    assert len(cells) == RUNS[path.stem]
    named = path.read_text(encoding="utf-8")
    assert f"compare {dataset} " in named
    assert f"--config {name}\n" in named
    if path.stem.startswith("table"):
        assert read_grid(str(path)).paper_table == path.stem.removeprefix("table")


def test_every_table_that_is_runs_has_a_preset():
    assert set(presets()) == set(RUNS)


def test_a_grid_is_a_file_or_a_preset_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table1").mkdir()  # of something else
    for name in ("table1", "table1.yaml"):
        assert read_options(["coco", "--config", name]).grid == read_grid(preset_path("table1"))
    (tmp_path / "table2").write_text("grid:\n - {methods: [bce], noises: [none]}", "utf-8")
    assert read_options(["coco", "--config=table2"]).grid.blocks[0].methods == ("bce",)
    with pytest.raises(ValueError, match="one of digits, .*found 'recipes/tabel3.yaml' .did you mean 'table3'"):
        read_options(["coco", "--config=recipes/tabel3.yaml"])


def test_table_6_is_the_other_training(monkeypatch):
    monkeypatch.setattr("hf_balancemix.compare.cells.fit_image_size", lambda options: None)
    cells = {c.request.block.label: c for c in cells_of(preset_path("table6"), "coco")}
    cell = cells["BalanceMix / TResNet-L / 640px"]
    settings, args = cell.plan.settings, cell.plan.args
    assert (settings["backbone"], settings["image_size"], settings["head"]) == (
        "tresnet_l.miil_in1k_448",
        640,
        "ml_decoder",
    )
    assert (args.num_train_epochs, settings["images_per_step"], args.ema_decay) == (40, 56, 0.9997)
    assert (args.one_cycle, args.weight_decay_on, args.cutout, args.bf16) == (True, "matrices", 0.5, True)
    assert not args.optim_args
    assert settings["data"] == {"recipe": "COCO", "year": "2014", "keep_empty": False, "digest": ""}
    assert cells["ASL / TResNet-L / 448px"].plan.args.mix_alpha == 0
    assert cells["ASL / TResNet-L / 448px"].plan.settings["head"] == "linear"


def test_large_loss_rates_end_where_the_original_does():
    """0.2% a epoch for ten epochs in the original: 2% at the end, but for the rule's off-by-one."""
    for name in ("digits", "coco", "voc", "deepfashion"):
        defaults = RECIPES[name].defaults
        assert defaults["large_loss_rate"] * defaults["num_train_epochs"] == pytest.approx(2, abs=0.011)


def test_options_of_blocks_and_methods(tmp_path):
    path = write(
        tmp_path,
        """
grid:
  - methods: [bce, ll_r]
    noises: [flip:0.2, single_positive]
    seeds: 2
    learning_rate: 1e-3
    warmup-epochs: 3
    lr_scheduler_kwargs: {min_lr: 1e-5}
    lr_scheduler_type: cosine_with_min_lr
    method_options: {ll_r: {large_loss_rate: 0.5}}
""",
    )
    cells = cells_of(path)
    named = [(c.plan.settings["method"], c.plan.settings["noise"], c.plan.settings["seed"]) for c in cells]
    assert named == [
        (method, noise, seed) for noise in ("flip", "single_positive") for method in ("bce", "ll_r") for seed in (0, 1)
    ]
    for cell in cells:
        args = cell.plan.args
        assert (args.learning_rate, args.warmup_epochs) == (1e-3, 3)
        assert args.lr_scheduler_kwargs == {"min_lr": 1e-5}
        assert args.large_loss_rate == (0.5 if cell.plan.settings["method"] == "ll_r" else 0.0134)
        assert args.relabel_threshold == (0.55 if cell.plan.settings["noise"] == "single_positive" else 0.975)
        assert cell.plan.folder.name.endswith(cell.id)
    # the command line counts before the file
    assert cells_of(path, "digits", "--learning_rate=0.5")[0].plan.args.learning_rate == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "option: value"),
        ("grid: []", "list of blocks under `grid:`.*found an empty list"),
        ("grid:\n  - bce", "block in .*line 2 with methods and noises, found a word"),
        ("gird: []", "'gird' .did you mean 'grid'"),
        ("grid:\n - {methods: [bce]}", "line 2, found no noises"),
        ("grid:\n - {methods: [bse], noises: [none]}", "line 2, found 'bse' .did you mean 'bce'"),
        ("grid:\n - {methods: [], noises: [none]}", "methods, each once in .*found none"),
        ("grid:\n - {methods: [bce, bce], noises: [none]}", "methods, each once in .*found bce bce"),
        ("grid:\n - {methods: [bce], noises: []}", "noises, each once in .*line 2, found none"),
        ("grid:\n - {methods: [bce], noises: [flip:0.2, flip:.2]}", "noises, each once in .*found flip:0.2 flip:0.2"),
        ("paper_table: 7\ngrid: []", "as paper_table in .* one of 1, 2, .*15, found '7'"),
        ("grid:\n - {methods: [bce], noises: [flip]}", "rate behind flip in .*line 2.*'flip'"),
        ("grid:\n - {methods: [bce], noises: [flip:x]}", "rate behind flip.*'flip:x'"),
        ("grid:\n - {methods: [bce], noises: [flip:2]}", "rate from 0 to 1.*flip:2.*line 2"),
        ("grid:\n - {methods: [bce], noises: [none:0.2]}", "no rate for 'none'"),
        ("grid:\n - {methods: [bce], noises: [none], seeds: no}", "at least 1 as seeds.*'no'"),
        ("grid:\n - {methods: [bce], noises: [none], methods: [mixup]}", "each key once.*methods again"),
        ("grid:\n - {methods: [bce], noises: [none], resume: true}", "no resume in a block.*line 2"),
        ("grid:\n - {methods: [bce], noises: [none], noise: flip}", "Say it with noises"),
        ("grid:\n - {methods: [bce], noises: [none], output_dir: x}", "output_dir, for all blocks"),
        (
            "grid:\n - {methods: [bce], noises: [none], learning_rate: null}",
            "single value as learning_rate.*found null",
        ),
        (
            "grid:\n - {methods: [bce], noises: [none], learning_rat: 1}",
            "learning_rat .did you mean '--learning_rate'.*line 2",
        ),
        (
            "grid:\n - {methods: [bce], noises: [none], learning_rate: fast}",
            "number as --learning_rate, found 'fast'.*line 2",
        ),
        (
            "grid:\n - {methods: [bce], noises: [none], refinement: full, second_sampler: random}",
            "method bce, which is defined",
        ),
        ("grid:\n - {methods: [bce], noises: [none], method_options: {mixup: {seed: 1}}}", "method_options.*'mixup'"),
        ("layout: group\ngrid: []", "as layout in .*'group' .did you mean 'groups'"),
        ("grid: [", "Expected YAML in"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        cells_of(write(tmp_path, text))


def test_words_pick_out_a_part_of_a_file(tmp_path):
    path = write(
        tmp_path,
        "grid:\n"
        " - {methods: [bce, mixup], noises: [none, flip:0.2], seeds: 3}\n"
        " - {methods: [mixup], noises: [flip:0.4]}",
    )
    grid = read_options(["digits", f"--config={path}", "--methods", "mixup", "--seeds", "2"]).grid
    assert [(b.methods, b.noises, b.seeds) for b in grid.blocks] == [
        (("mixup",), (Noise("none"), Noise("flip", 0.2)), 2),
        (("mixup",), (Noise("flip", 0.4),), 1),
    ]
    grid = read_options(["digits", f"--config={path}", "--noises", "flip:0.4"]).grid
    assert [b.methods for b in grid.blocks] == [("mixup",)]
    assert [b.seeds for b in read_options(["digits", f"--config={path}", "--seeds=3"]).grid.blocks] == [3, 1]
    with pytest.raises(ValueError, match="--seeds of at most 3, .*found 4"):
        read_options(["digits", f"--config={path}", "--seeds=4"])
    with pytest.raises(ValueError, match="occur together"):
        read_options(["digits", f"--config={path}", "--noises", "flip:0.4", "--methods", "bce"])
    without = read_options(["digits", "--methods", "bce", "--noises", "single_positive", "--learning_rate=1"])
    assert without.grid.blocks[0].noises == (Noise("single_positive"),)
    assert without.words == ["--learning_rate=1"]
    nine = read_options(["digits"]).grid.blocks[0]
    assert (len(nine.methods), len(nine.noises), nine.seeds) == (9, 6, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a data set, one of digits.*found none"),
        (["--seeds", "3"], "found none. Name it first"),
        (["digit"], "'digit' .did you mean 'digits'"),
        (["digits", "--methods", "balancmix"], "'balancmix' .did you mean 'balancemix'"),
        (["digits", "--noises", "mislabl:0.2"], "'mislabl:0.2' .did you mean 'mislabel'"),
        (["digits", "--noises", "none", "none"], "--noises, each once"),
        (["digits", "--noise", "flip"], "no --noise in a comparison.*--noises"),
        (["digits", "--do_eval"], "no --do_eval in a comparison"),
        (["digits", "--nois", "flip"], "--nois .did you mean '--noises'"),
        (["digits", "--learning_rat=1"], "--learning_rat .did you mean '--learning_rate'"),
        (["digits", "--seeds", "0"], "at least 1, found '0'"),
        (["digits", "--parallel", "two"], "at least 1, found 'two'"),
    ],
)
def test_mistakes_on_the_command_line(words, message):
    with pytest.raises(ValueError, match=message):
        read_options(words)


def settings(**changes):
    (cell,) = plan_cells(
        RECIPES["digits"],
        read_requests(
            RECIPES["digits"],
            read_options(["digits", "--methods", "bce", "--noises", "none"]).grid,
            ["--use_cpu"],
            "x",
        ),
        {},
    )
    return {**cell.plan.settings, **changes}


def test_what_identifies_a_run():
    own = cell_id(settings())
    for same in (
        {"num_train_epochs": "150.0"},
        {"large_loss_rate": 0.3},
        {"minority_score": "mean_positive"},
        {"relabel_threshold": 0.55},
        {"mixture_separation": 2.5},
        {"warmup_epochs": 30.0},
    ):
        assert cell_id(settings(**same)) == own, same
    before = settings()
    del before["ema_decay"]  # as if that option did not exist yet
    assert cell_id(before) == own
    others = [
        {"num_train_epochs": "149"},
        {"seed": 1},
        {"noise": "single_positive"},
        {"ema_decay": 0.9},
        {"class_reduction": "mean"},
        {"data": {"recipe": "digits", "digest": "0"}},
        {"method": "ll_r", "loss": "ll_r"},
        {"method": "ll_r", "loss": "ll_r", "large_loss_rate": 0.3},
        {"method": "balancemix", "second_sampler": "minority"},
        {"method": "balancemix", "second_sampler": "minority", "minority_score": "mean_positive"},
        {"method": "balancemix", "second_sampler": "minority", "relabel_threshold": 0.55},
        {"method": "balancemix", "second_sampler": "minority", "mixture_separation": 2.5},
        {"method": "balancemix", "second_sampler": "minority", "refinement": "none"},
        {"method": "balancemix", "second_sampler": "minority", "mixture_disagreement": 0.69},
        {"method": "co_teaching", "evaluated_network": "mean"},
    ]
    ids = [cell_id(settings(**change)) for change in others]
    assert own not in ids
    assert len(set(ids)) == len(ids)


# What each of these methods does not read, and does.
UNREAD = {
    "bce": (["warmup_epochs", "mix_alpha", "mix_lambda_per", "min_fit", "monotone_posterior", "trust_positives"], []),
    "focal": (["warmup_epochs", "min_fit", "refinement"], ["mix_alpha", "mix_lambda_per", "focal_gamma"]),
    "minority": (["warmup_epochs", "trust_positives", "relabel_bn", "large_loss_rate"], ["minority_score"]),
    "clean": (["relabel_threshold", "relabel_views"], ["warmup_epochs", "min_fit", "trust_positives"]),
    "co_teaching": (["trust_positives", "mixture_separation"], ["warmup_epochs", "min_fit", "monotone_posterior"]),
    "t_estimator": (["trust_positives", "minority_score"], ["warmup_epochs", "min_fit", "validation_fraction"]),
    "balancemix": (["focal_gamma", "validation_fraction"], ["warmup_epochs", "relabel_threshold", "trust_positives"]),
}


@pytest.mark.parametrize("method", UNREAD)
def test_only_options_that_a_method_reads_make_a_new_run(method):
    grid = read_options(["digits", "--methods", method, "--noises", "none"]).grid
    (cell,) = plan_cells(RECIPES["digits"], read_requests(RECIPES["digits"], grid, ["--use_cpu"], "x"), {})
    unread, read = UNREAD[method]
    for name in unread:
        assert cell_id({**cell.plan.settings, name: "another"}) == cell.id, name
    for name in read:
        assert cell_id({**cell.plan.settings, name: "another"}) != cell.id, name


def test_runs_that_were_finished_earlier_keep_their_ids():
    """Of the version that made them; a rerun finds them finished, whatever has changed since."""
    text = (ROOT / "recipes" / "results" / "digits" / "results.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) > 70
    assert [line["cell"] for line in lines] == [cell_id(line["settings"]) for line in lines]
    digest = {line["settings"]["data"]["digest"] for line in lines}
    assert len(digest) == 1
    planned = set()
    for name in ("digits", "digits_ablation", "digits_scores"):
        grid = read_grid(preset_path(name))
        requests = read_requests(RECIPES["digits"], grid, ["--use_cpu"], "x")
        jobs = {request.data_key: SimpleNamespace(digest=digest.copy().pop()) for request in requests}
        planned |= {cell.id for cell in plan_cells(RECIPES["digits"], requests, jobs)}
    assert {line["cell"] for line in lines} <= planned


def test_the_year_of_coco_that_is_found_tells_runs_apart(tmp_path):
    def cells(folder, *words):
        options = read_options(["coco", "--methods=bce", "--noises=none", f"--data_dir={folder}", "--use_cpu", *words])
        requests = read_requests(options.recipe, options.grid, [*options.words, "--backbone=small_resnet"], "x")
        return plan_cells(options.recipe, requests, load_jobs(options.recipe, requests))

    made = {}
    for year in ("2014", "2017"):
        folder = tmp_path / year
        folder.mkdir()
        write_coco(folder, year)
        (found,), (said,) = cells(folder), cells(folder, f"--year={year}")
        assert found.plan.settings["data"]["year"] == year
        assert found.id == said.id
        made[year] = found.id
    assert made["2014"] != made["2017"]


def test_noises():
    assert parse_noise("mislabel:.25") == Noise("mislabel", 0.25)
    assert parse_noise("none") == Noise("none", None)
    assert Noise("flip", 0.2).words == ["--noise", "flip", "--noise_rate", "0.2"]


def test_recipes_are_the_scripts():
    scripts = {path.stem for path in Path(ROOT / "recipes").glob("*.py")} - {"compare", "benchmark", "label_errors"}
    assert set(RECIPES) == scripts
