"""`--head_options`: from a command line, a file or a grid to the head; mistakes show before data are read."""

import json

import pytest
from transformers import AutoConfig

from hf_balancemix import MultiLabelTrainer
from hf_balancemix.build import build_model
from hf_balancemix.compare.cells import cell_id, plan_cells, read_requests
from hf_balancemix.compare.grid import read_grid
from hf_balancemix.recipe import RECIPES, main
from hf_balancemix.recipe.command import read_command
from tests import tiny

DIGITS = RECIPES["digits"]
OPTIONS = {"num_queries": 4, "dim": 16, "num_heads": 2, "feedforward_dim": 16}


def read(*words):
    return read_command(DIGITS, ["--use_cpu", "--output_dir=out", "--head=ml_decoder", *words])


def test_the_same_from_words_and_file(tmp_path):
    file = tmp_path / "köpfe.yaml"
    file.write_text("head_options: {dropout: 0.2, trainable_queries: yes}\n", encoding="utf-8")
    quoted = tmp_path / "quoted.yaml"
    quoted.write_text("""head_options: '{"dropout": 0.2, "trainable_queries": true}'\n""", encoding="utf-8")
    words = """--head_options={"dropout": 0.2, "trainable_queries": true}"""
    for found in (read(words), read(*words.split("=")), read(f"--config={file}"), read(f"--config={quoted}")):
        assert found.options.head_options == {"dropout": 0.2, "trainable_queries": True}
        assert found.plans("digits")[0].settings["head_options"] == {"dropout": 0.2, "trainable_queries": True}
    for nothing in ((), ("--head_options={}",), ("--head_options", "null")):
        assert read(*nothing).plans("digits")[0].settings["head_options"] is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{num_queries: 20}", ("Expected JSON as --head_options", "'{num_queries: 20}'", "line 1 column 2", "quotes")),
        ("", ("Expected JSON", "found ''")),
        ("[1]", ("names with values", "found '[1]'")),
        ("3", ("names with values", "found '3'")),
        ('{"num_querys": 20}', ("head ml_decoder (num_queries, ", "'num_querys' (did you mean 'num_queries'?)")),
        ('{"num_queries": "20"}', ("a whole number of at least 1", "`num_queries` of the head ml_decoder", "'20'")),
        ('{"num_heads": 2.0}', ("a whole number", "found 2.0")),
        ('{"num_heads": true}', ("a whole number", "found True")),
        ('{"num_heads": null}', ("a whole number", "found None")),
        ('{"trainable_queries": 1}', ("true or false", "found 1")),
        ('{"dropout": NaN}', ("a number from 0 to below 1", "found nan")),
        ('{"dropout": "ü"}', ("a number from 0 to below 1", "found 'ü'")),
        ('{"num_heads": 7}', ("7 attention heads divide, found 768",)),
        ('{"word_vector_dim": 300}', ("no word_vector_dim in --head_options", "build_model")),
        ('{"num_labels": 3}', ("options of the head ml_decoder", "found 'num_labels'")),
    ],
)
def test_mistakes_show_before_data_are_read(text, parts):
    tiny.refused(ValueError, parts, read, f"--head_options={text}")


def test_heads_without_such_an_option():
    options = '--head_options={"num_heads": 2}'
    tiny.refused(
        ValueError, ("options of the head linear (it has none)", "'num_heads'"), read, options, "--head=linear"
    )
    assert read(options, "--head=c_tran").options.head_options == {"num_heads": 2}
    for wrong in ('{"dim": 768}', '{"num_heads": 0}'):
        tiny.refused(ValueError, ("of the head c_tran",), read, f"--head_options={wrong}", "--head=c_tran")


def test_cells_of_a_grid(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        """
grid:
  - {methods: [bce], noises: [none], head: ml_decoder}
  - {methods: [bce], noises: [none], head: ml_decoder, head_options: {num_queries: 2}}
  - {methods: [bce], noises: [none], head: ml_decoder, method_options: {bce: {head_options: {num_queries: 3}}}}
""",
        encoding="utf-8",
    )
    requests = read_requests(DIGITS, read_grid(str(path)), ["--use_cpu", "--image_size=16"], "out")
    cells = plan_cells(DIGITS, requests, {})
    assert [cell.plan.settings["head_options"] for cell in cells] == [None, {"num_queries": 2}, {"num_queries": 3}]
    assert len({cell.id for cell in cells}) == 3
    before = dict(cells[0].plan.settings)
    del before["head_options"]  # as if that option did not exist yet
    assert cell_id(before) == cells[0].id
    path.write_text(path.read_text(encoding="utf-8").replace("num_queries: 2", "num_querys: 2"), encoding="utf-8")
    parts = ("did you mean 'num_queries'", "grid.yaml, line 4")
    tiny.refused(ValueError, parts, read_requests, DIGITS, read_grid(str(path)), ["--use_cpu"], "out")


@pytest.mark.slow
def test_the_head_that_is_trained(tmp_path, capsys):
    words = [
        "--method=bce",
        "--use_cpu",
        "--max_steps=2",
        "--save_steps=1",
        "--head=ml_decoder",
        "--disable_tqdm=true",
    ]
    words += [f"--output_dir={tmp_path}", f"--head_options={json.dumps(OPTIONS)}"]
    main(DIGITS, words)
    assert AutoConfig.from_pretrained(tmp_path / "bce-seed0").head_options == OPTIONS
    (run,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["runs"]
    assert run["settings"]["head_options"] == OPTIONS
    main(DIGITS, [*words, "--resume"])
    assert "finished earlier" in "".join(capsys.readouterr())
    with pytest.raises(SystemExit):
        main(DIGITS, [*words[:-1], "--resume"])
    assert f"head_options was {OPTIONS}, is now None" in capsys.readouterr().err


def trainer(folder, **changes):
    model, processor = build_model("small_resnet", tiny.NAMES, 16, head="ml_decoder", head_options=OPTIONS | changes)
    args = tiny.arguments(folder, save_strategy="steps", save_steps=1, max_steps=1)
    return MultiLabelTrainer(model, args, train_dataset=tiny.tiny_dataset(8), processing_class=processor)


def test_a_trainer_does_not_resume_with_another_head(tmp_path):
    trainer(tmp_path).train()
    parts = ("Cannot resume", "`head` was", "'num_queries': 4", "'num_queries': 3")
    tiny.refused(ValueError, parts, trainer(tmp_path, num_queries=3).train, tmp_path / "checkpoint-1")
