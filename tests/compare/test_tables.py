"""Tables of results against numbers counted by hand, in every format."""

import csv
import io
import json
import math
import re

import pytest

from hf_balancemix.compare import main
from hf_balancemix.compare.cells import once, plan_cells, read_requests
from hf_balancemix.compare.command import read_options
from hf_balancemix.compare.grid import ORDER, preset_path
from hf_balancemix.compare.show import rows_of_file, rows_of_grid
from hf_balancemix.reports.comparison import Row, mean_ranks, summary, tables
from hf_balancemix.reports.formats import FORMATS, Table, Value
from hf_balancemix.training.methods import METHODS


def result(method, noise="none", rate=None, seed=0, value=50.0, recipe="digits", groups=None, epochs=(), **settings):
    own = {"method": method, "noise": noise, "noise_rate": rate, "seed": seed}
    return {
        **own,
        "map": value,
        "groups": groups or {},
        "epochs": list(epochs),
        "settings": {**own, "data": {"recipe": recipe, "digest": "d"}, **settings},
    }


def row(method, *runs):
    return Row(method, tuple(runs))


def shown(table):
    """What stands in the places of a table, by row and column."""
    columns = [" ".join(c).strip() for c in table.columns]
    return {
        (*names, column): None if value is None else value
        for names, values in table.rows
        for column, value in zip(columns, values, strict=True)
    }


def test_mean_error_and_ranks():
    value = summary([96.0, 98.0, 97.0])
    assert (value.mean, value.seeds) == (97.0, 3)
    assert value.error == pytest.approx(1 / math.sqrt(3))  # the standard deviation is 1
    assert summary([4.0]) == Value(4.0)
    assert summary([]) is None
    # column 1: 1, 2.5, 2.5; column 2: 3, 1, 2; column 3 is not complete
    assert mean_ranks([[9, 1, 5], [8, 3, None], [8, 2, 7]]) == [2.0, 1.75, 2.25]
    assert mean_ranks([[None], [1]]) == [None, None]


def test_noises():
    rows = [
        row("bce", result("bce", value=80), result("bce", "flip", 0.2, 0, 60), result("bce", "flip", 0.2, 1, 64)),
        row("asl", result("asl", value=80.04), result("asl", "flip", 0.2, 0, 50), result("asl", "single_positive")),
    ]
    (table,) = tables(rows, "noises")
    assert table.columns == (("clean", ""), ("flip", "20%"), ("single positive", ""), ("mean", ""), ("mean rank", ""))
    found = shown(table)
    assert found["bce", "clean"] == Value(80, best=True)
    assert found["asl", "clean"] == Value(80.04, best=True)  # a tie, as the table shows them
    assert found["bce", "flip 20%"] == Value(62, pytest.approx(2), 2, best=True)
    assert found["asl", "flip 20%"] == Value(50)
    assert found["bce", "single positive"] is None
    assert found["bce", "mean"] is None
    assert found["asl", "mean"].mean == pytest.approx((80.04 + 50 + 50) / 3)
    # over the two noises that both have: asl is first on clean labels by a hair, bce under flips
    assert (found["bce", "mean rank"].mean, found["asl", "mean rank"].mean) == (1.5, 1.5)
    assert "over the 2 of 3 noises" in table.note
    assert "mean ± standard error (seeds)" in FORMATS["text"]([table]).splitlines()[0]
    assert (found["asl", "mean"].seeds, found["bce", "mean rank"].seeds) == (0, 0)


def test_groups_like_tables_1_and_2():
    groups = {"few": 10.0, "many": 70.0, "medium": 40.0}
    rows = [
        row("bce", result("bce", groups=groups), *(result("bce", "flip", r, groups={"few": r}) for r in (0.2, 0.4))),
        row("asl", result("asl", "mislabel", 0.4, groups=groups)),
    ]
    mislabel, flip = tables(rows, "groups")
    assert [block for block, _ in flip.blocks()] == ["All", "Many", "Medium", "Few"]
    assert flip.columns[:3] == (("All", "0%"), ("All", "20%"), ("All", "40%"))
    assert [names for names, _ in flip.rows] == [("bce",)]
    assert shown(flip)["bce", "Few 0%"] == Value(10)
    assert shown(flip)["bce", "Few 40%"] == Value(0.4)
    assert shown(flip)["bce", "Many 20%"] is None
    assert [names for names, _ in mislabel.rows] == [("bce",), ("asl",)]
    assert shown(mislabel)["asl", "Medium 40%"] == Value(40)
    (alone,) = tables([row("bce", result("bce", groups={"rare": 5.0}))], "groups")
    assert alone.columns == (("All", ""), ("Rare", ""))
    assert not [t for t in tables([row("bce", result("bce"))]) if "class group" in t.title]


def epochs(count, start=0):
    """Diagnostics of an epoch tell its number, in thousandths, from ``start`` on."""
    names = ("label_precision", "label_recall", "relabelled", "relabel_accuracy")
    return [
        {"epoch": float(e), "map": 10.0 * e, **(dict.fromkeys(names, e / 1000) if e > start else {})}
        for e in range(1, count + 1)
    ]


def test_label_management_like_tables_14_and_15():
    rows = [
        row("bce", result("bce", "mislabel", 0.2)),
        row("balancemix", *(result("balancemix", "mislabel", 0.2, seed, epochs=epochs(10, 3)) for seed in (0, 1))),
    ]
    (table,) = tables(rows, "labels")
    assert [names for names, _ in table.rows] == [("balancemix", part) for part in ("25%", "50%", "75%", "100%")]
    found = shown(table)
    assert found["balancemix", "25%", "mislabel 20% precision"] is None  # the third epoch: nothing is refined yet
    assert found["balancemix", "50%", "mislabel 20% recall"].mean == pytest.approx(0.5)
    assert found["balancemix", "75%", "mislabel 20% share"].mean == pytest.approx(0.8)  # epoch 7.5, so the eighth
    assert found["balancemix", "100%", "mislabel 20% accuracy"] == Value(pytest.approx(1), 0.0, 2)


def test_best_epoch_and_sampler():
    averaged = [{"epoch": 1.0, "map": 60.0, "ema_map": 10.0}, {"epoch": 2.0, "map": 50.0, "ema_map": 70.0}]
    (table,) = tables([row("asl", result("asl", epochs=averaged))], "best")
    assert shown(table)["asl", "clean"] == Value(70)
    ends = [{"epoch": 1.0, "map": 1.0, "effective_sample_share": 0.5, "sampling_total_variation": 0.125}]
    (table,) = tables([row("minority", result("minority", epochs=ends)), row("bce", result("bce"))], "sampling")
    assert {key: value.mean for key, value in shown(table).items()} == {
        ("minority", "clean mAP"): 50,
        ("minority", "clean total variation"): 12.5,
        ("minority", "clean effective size"): 50,
    }


TABLE = Table(
    "a & b_c, 50%",
    ("method",),
    (("All", "0%"), ("All", "20%"), ("A block with a long name", "0%")),
    (
        (("co_teaching",), (Value(91.26, 0.35, 3, 80.0, True, "1"), None, Value(1.0))),
        (('{a|b} "c", *d*\n<e>\\',), (Value(9.0, 0.25, 2), Value(100.0, best=True), Value(2.0, best=True))),
    ),
    "x < y & z",
)


def test_text(monkeypatch):
    lines = FORMATS["text"]([TABLE]).splitlines()
    assert lines[0] == "a & b_c, 50%; mean ± standard error (seeds), [the paper's number]"
    assert lines[1].split() == ["All", "A", "block", "with", "a", "long", "name"]
    assert lines[1].index("A block") == lines[2].rindex("0%")
    assert lines[4].split() == ["co_teaching", "91.3", "±", "0.3*", "(3)", "[80.0]", "–", "1.0"]
    assert lines[4].rindex("1.0") == lines[5].rindex("2.0*") == lines[2].rindex("0%")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert "\033[1m2.0\033[0m" in FORMATS["text"]([TABLE])
    monkeypatch.setenv("COLUMNS", "50")
    narrow = FORMATS["text"]([TABLE]).splitlines()
    assert [i for i, line in enumerate(narrow) if line.startswith("method")] == [2, 8]
    assert "20%" in narrow[2]
    assert "20%" not in narrow[8]


def test_markdown():
    lines = FORMATS["markdown"]([TABLE]).splitlines()
    assert lines[2] == "| method | All 0% | All 20% | A block with a long name 0% |"
    assert lines[3] == "| --- | ---: | ---: | ---: |"
    assert lines[4] == "| co_teaching | **91.3 ± 0.3** (3) [80.0] | – | 1.0 |"
    assert lines[5] == '| {a\\|b} "c", \\*d\\* \\<e\\>\\\\ | 9.0 ± 0.2 (2) | **100.0** | **2.0** |'
    assert lines[-1] == r"x \< y & z"


def test_csv_is_long():
    other = Table("of parts", ("method", "training"), (("flip", "share"),), ((("bce", "25%"), (Value(3.0),)),))
    rows = list(csv.reader(io.StringIO(FORMATS["csv"]([TABLE, other]))))
    header = "table, method, training, block, column, mean, standard_error, seeds, paper, paper_table"
    name = '{a|b} "c", *d*\n<e>\\'
    assert rows == [
        header.split(", "),
        [TABLE.title, "co_teaching", "", "All", "0%", "91.2600", "0.3500", "3", "80.0000", "1"],
        [TABLE.title, "co_teaching", "", "A block with a long name", "0%", "1.0000", "", "1", "", ""],
        [TABLE.title, name, "", "All", "0%", "9.0000", "0.2500", "2", "", ""],
        [TABLE.title, name, "", "All", "20%", "100.0000", "", "1", "", ""],
        [TABLE.title, name, "", "A block with a long name", "0%", "2.0000", "", "1", "", ""],
        ["of parts", "bce", "25%", "flip", "share", "3.0000", "", "1", "", ""],
    ]


def test_latex_is_well_formed():
    made = FORMATS["latex"]([TABLE])
    bare = re.sub(r"\\[{}&%#$_]", "", made)  # escaped signs are text
    depth = 0
    for sign in bare:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    assert "%" not in bare
    rows = [line for line in bare.splitlines() if line.endswith(r"\\") and "&" in line]
    assert len(rows) == 5  # two of headers, one of the paper's numbers
    for line in rows:
        spans = sum(int(count) - 1 for count in re.findall(r"\\multicolumn\{(\d+)\}", line))
        assert line.count("&") + spans == 3
    assert re.search(r"\\begin\{tabular\}\{l\|cc\|c\}", made)
    assert r"co\_teaching & \textbf{91.3}{\tiny$\pm$0.3} & -- & 1.0 \\" in made
    assert r"\quad paper & 80.0 &  &  \\" in made
    assert (
        r"\caption{a \& b\_c, 50\%; mean $\pm$ standard error of 2 to 3 seeds; below them the paper's numbers}" in made
    )
    assert made.count(r"\begin{") == made.count(r"\end{")


def test_latex_takes_no_name_for_an_option_of_the_row_before():
    """Behind a row's end it reads [...] as a distance, and a star as another kind of end."""
    made = FORMATS["latex"]([Table("t", ("method",), (("", "a"),), ((("[x]",), (Value(1.0),)), (("*y",), (None,))))])
    assert not re.search(r"\\\\\s*[\[*]", made)
    assert "{[}x{]}" in made


def write_results(folder, lines):
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "results.jsonl").write_text(text, encoding="utf-8")


def test_rows_of_a_file_keep_variants_apart():
    ours = {"second_sampler": "minority", "relabel_threshold": 0.975}
    lines = [
        result("balancemix", minority_score="mean_positive", **ours),
        result("balancemix", minority_score="eq3", **ours),
        result("balancemix", "single_positive", minority_score="eq3", **{**ours, "relabel_threshold": 0.55}),
        result("bce", large_loss_rate=0.1),
        result("bce", seed=1, large_loss_rate=0.2),
    ]
    rows = rows_of_file(lines, ["balancemix", "bce"], {"bce": "BCE"})
    assert [(row.name, len(row.runs)) for row in rows] == [
        ("balancemix (minority_score=mean_positive)", 1),
        ("balancemix (minority_score=eq3)", 2),
        ("BCE", 2),  # which never reads that option
    ]
    assert set(ORDER) == set(METHODS)


def grid_cells(*words):
    options = read_options(["digits", *words])
    return plan_cells(
        options.recipe, read_requests(options.recipe, options.grid, ["--use_cpu", *options.words], "x"), {}
    )


def test_rows_of_a_grid_find_results_whatever_the_data(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "grid:\n"
        "  - {methods: [bce], noises: [none], seeds: 2}\n"
        "  - {methods: [bce, mixup], noises: [none], learning_rate: 0.1, label: fast}\n"
        "  - {methods: [bce], noises: [none], learning_rate: 0.005, label: again}\n",
        encoding="utf-8",
    )
    cells = grid_cells(f"--config={path}")
    lines = []
    for cell in reversed(once(cells)):
        settings = json.loads(json.dumps(cell.plan.settings))
        settings["data"]["digest"] = "of another day"
        named = {name: settings[name] for name in ("method", "noise", "noise_rate", "seed")}
        if settings["method"] == "bce":
            lines.append({**named, "map": 1.0, "groups": {}, "epochs": [], "settings": settings})
    rows = rows_of_grid(cells, lines, {"bce": "BCE"})
    assert [(row.name, len(row.runs)) for row in rows] == [
        ("BCE", 2),
        ("BCE, fast", 1),
        ("again", 1),
    ]


def test_a_run_that_two_blocks_ask_for_counts_once_in_a_row(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "grid:\n  - {methods: [bce], noises: [none]}\n  - {methods: [bce], noises: [none], seeds: 2}\n", "utf-8"
    )
    cells = grid_cells(f"--config={path}")
    lines = [{**line, "settings": cell.plan.settings} for cell in once(cells) for line in [result("bce")]]
    (row,) = rows_of_grid(cells, lines, {})
    assert len(row.runs) == 2


def test_show(tmp_path, capsys):
    groups = {"rare": 30.0}
    lines = [result("bce", groups=groups), result("mixup", groups=groups, value=60)]
    write_results(tmp_path / "out", lines)
    words = ["digits", f"--output_dir={tmp_path / 'out'}", "--show"]
    for form, sign in (("text", "60.0*"), ("markdown", "**60.0**"), ("csv", "60.0000"), ("latex", r"\textbf{60.0}")):
        main([*words, "--format", form])
        printed = capsys.readouterr().out
        assert sign in printed
        assert "Rare" in printed or "rare" in printed
        assert ("Mixup" in printed) == (form == "latex")
    main([*words, "--layout", "noises"])
    assert "by class group" not in capsys.readouterr().out
    main([*words, "--methods", "bce", "--large_loss_rate=3"])  # which bce does not read
    assert "mixup" not in capsys.readouterr().out
    for nothing in (
        ["--methods", "asl"],
        ["--noises", "flip:0.2"],
        [f"--config={preset_path('digits')}"],
        ["--seed=1"],
    ):
        with pytest.raises(SystemExit):
            main([*words, *nothing])
        assert "that are asked for, found 2 others, of digits" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["voc", *words[1:]])
    assert "found 2 others, of digits" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--layout", "labels"])
    assert "what --layout labels shows, found none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["digits", f"--output_dir={tmp_path / 'empty'}", "--show"])
    assert re.search("found no such file. Run the comparison first", capsys.readouterr().err)
    assert not (tmp_path / "empty").exists()


def test_show_picks_out_what_the_options_of_the_recipe_say(tmp_path, capsys):
    settings = grid_cells("--methods", "mixup", "--noises", "none")[0].plan.settings
    wide = {"mix_alpha": 8.0, "images_per_step": 32, "num_train_epochs": "9"}
    changes = [{}, {"seed": 1}, {"seed": 2}, *({name: value} for name, value in wide.items())]
    lines = []
    for value, change in enumerate(changes, start=91):
        line = result("mixup", seed=change.get("seed", 0), value=value)
        lines.append({**line, "settings": {**settings, **change}})
    write_results(tmp_path, lines)

    def shown(*words):
        main(["digits", "--show", f"--output_dir={tmp_path}", "--format=csv", "--layout=noises", *words])
        rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
        return [(row["mean"], row["seeds"]) for row in rows if row["block"] == "clean"]

    assert len(shown()) == 4
    assert shown("--mix_alpha=8") == [("94.0000", "1")]
    assert shown("--total_batch_size=32") == [("95.0000", "1")]
    assert shown("--per_device_train_batch_size=16", "--gradient_accumulation_steps=2") == [("95.0000", "1")]
    assert shown("--num_train_epochs=9.0") == [("96.0000", "1")]
    own = ["--mix_alpha=4", "--total_batch_size=64", "--num_train_epochs=150", "--optim=adamw_torch_fused"]
    assert shown(*own) == [("92.0000", "3")]
    assert shown(*own, "--seeds=2") == [("91.5000", "2")]
    assert shown(*own, "--seed=1", "--seeds=1") == [("92.0000", "1")]
