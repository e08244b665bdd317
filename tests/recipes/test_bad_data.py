"""What a user meets whose data, paths or options are wrong: one line each, and nothing half done."""

import json
import re
import shutil

import pytest
from PIL import Image

from hf_balancemix.recipe import main
from recipes import coco, deepfashion, folder, voc
from tests import tiny
from tests.layouts.coco import write_coco
from tests.layouts.folder import write_folder

QUICK = ["--backbone=small_resnet", "--image_size=32", "--use_cpu", "--num_train_epochs=2", "--warmup_epochs=1"]
QUICK += ["--total_batch_size=4"]


def error_of(recipe, tmp_path, capsys, *options):
    """The one line of a run that fails."""
    with pytest.raises(SystemExit) as stopped:
        main(recipe, [f"--output_dir={tmp_path / 'out'}", *QUICK, *options])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("error:") == 1
    assert "Traceback" not in printed
    assert not (tmp_path / "out" / "results.json").exists()
    return printed[printed.index("error:") :]


@pytest.fixture
def pictures(tmp_path):
    return write_folder(tmp_path / "pictures", splits={"train": 16, "test": 8}, size=32)


@pytest.mark.parametrize(
    ("recipe", "layout"),
    [
        (coco.RECIPE, "annotations/instances_train2017.json.*cocodataset.org"),
        (voc.RECIPE, "VOCdevkit.*VOCtrainval_06-Nov-2007.tar"),
        (deepfashion.RECIPE, "Anno_fine"),
        (folder.RECIPE, "metadata.jsonl"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_no_data(recipe, layout, tmp_path, capsys):
    assert re.search(f"(?s)data_dir.*{layout}|{layout}.*data_dir", error_of(recipe, tmp_path, capsys))
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.txt").write_text("", encoding="utf-8")
    message = error_of(recipe, tmp_path, capsys, f"--data_dir={tmp_path / 'holiday'}")
    assert "holiday" in message
    assert "beach.txt" in message or recipe is folder.RECIPE
    assert "nowhere" in error_of(recipe, tmp_path, capsys, f"--data_dir={tmp_path / 'nowhere'}")


def test_missing_images_stop_or_are_left_out(pictures, tmp_path, capsys):
    (pictures / "train" / "3.png").unlink()
    (pictures / "test" / "5.png").unlink()
    message = error_of(folder.RECIPE, tmp_path, capsys, f"--data_dir={pictures}")
    assert re.search("all 16 images of the train split.*1 missing.*3.png.*--on_bad_image skip", message)
    main(folder.RECIPE, [f"--output_dir={tmp_path / 'out'}", *QUICK, f"--data_dir={pictures}", "--on_bad_image=skip"])
    assert "left out as unreadable: 1 of train, 1 of test" in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["runs"]
    assert entry["images"] == {"train": 15, "test": 7}
    assert entry["unreadable_images"] == {"train": 1, "test": 1}
    names = json.loads((tmp_path / "out" / "unreadable_images.json").read_text(encoding="utf-8"))
    assert names == {"train": [str(pictures / "train" / "3.png")], "test": [str(pictures / "test" / "5.png")]}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named(workers, pictures, tmp_path, capsys):
    path = pictures / "train" / "7.png"
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:900])
    options = [f"--data_dir={pictures}", f"--dataloader_num_workers={workers}"]
    message = error_of(folder.RECIPE, tmp_path, capsys, *options)
    assert re.search(r"readable image in row 7, found .*train/7.png.*--on_bad_image skip", message)
    shutil.rmtree(tmp_path / "out")
    main(folder.RECIPE, [f"--output_dir={tmp_path / 'out'}", *QUICK, *options, "--on_bad_image=skip"])
    assert "1 of train, 0 of test" in capsys.readouterr().out


def test_evaluating_without_a_model_or_with_other_classes(pictures, tmp_path, capsys):
    options = [f"--data_dir={pictures}", "--do_eval"]
    message = error_of(folder.RECIPE, tmp_path, capsys, *options)
    assert re.search("trained model in .*balancemix-seed0, found none. Train it first", message)
    main(folder.RECIPE, [f"--output_dir={tmp_path / 'trained'}", *QUICK, f"--data_dir={pictures}"])
    checkpoint = tmp_path / "trained" / "balancemix-seed0"
    write_coco(tmp_path / "coco", classes=3)
    options = [f"--data_dir={tmp_path / 'coco'}", "--do_eval", f"--checkpoint={checkpoint}"]
    message = error_of(coco.RECIPE, tmp_path, capsys, *options)
    assert re.search("(?s)Cannot evaluate.*'cat', 'dog', 'eel'", message)
    assert "with training" in error_of(folder.RECIPE, tmp_path, capsys, f"--checkpoint={checkpoint}")


def test_settings_in_a_file(pictures, tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    config.write_text("total_batch_size: 8\nnoise: flip\nnoise_rate: 0.1\nlearning_rate: 1e-3\n", encoding="utf-8")
    options = [word for word in QUICK if "total" not in word]
    main(
        folder.RECIPE,
        [f"--output_dir={tmp_path / 'o'}", *options, f"--data_dir={pictures}", f"--config={config}", "--noise_rate=0"],
    )
    (entry,) = json.loads((tmp_path / "o" / "results.json").read_text(encoding="utf-8"))["runs"]
    assert (entry["settings"]["images_per_step"], entry["noise"], entry["noise_rate"]) == (8, "flip", 0)
    assert entry["settings"]["learning_rate"] == "0.001"
    config.write_text("totl_batch_size: 8\n", encoding="utf-8")
    message = error_of(folder.RECIPE, tmp_path, capsys, f"--data_dir={pictures}", f"--config={config}")
    assert re.search("totl_batch_size.*mean.*total_batch_size", message)
    assert "mine.yaml" in message


def test_a_backbone_of_one_size_keeps_it_unless_told(pictures, tmp_path, capsys):
    tiny.tiny_vit().save_pretrained(tmp_path / "vit")
    tiny.processor().save_pretrained(tmp_path / "vit")
    options = [f"--data_dir={pictures}", f"--backbone={tmp_path / 'vit'}", "--method=bce"]
    assert "found 32" in error_of(folder.RECIPE, tmp_path, capsys, *options)  # the size is among QUICK's options
    quick = [word for word in QUICK if not word.startswith(("--image_size", "--backbone"))]
    main(folder.RECIPE, [f"--output_dir={tmp_path / 'ok'}", *quick, *options])
    assert "does not take 224 px" in capsys.readouterr().err
    (entry,) = json.loads((tmp_path / "ok" / "results.json").read_text(encoding="utf-8"))["runs"]
    assert entry["settings"]["image_size"] is None


def test_resuming_with_other_data_keeps_nothing(pictures, tmp_path, capsys):
    options = [f"--output_dir={tmp_path / 'out'}", *QUICK, "--method=bce"]
    main(folder.RECIPE, [*options, f"--data_dir={pictures}"])
    moved = pictures.rename(tmp_path / "moved")
    main(folder.RECIPE, [*options, f"--data_dir={moved}", "--resume"])
    assert "finished earlier, kept" in "".join(capsys.readouterr())
    metadata = moved / "train" / "metadata.jsonl"
    metadata.write_text(metadata.read_text(encoding="utf-8").replace('["cat"]', '["dog"]', 1), encoding="utf-8")
    main(folder.RECIPE, [*options, f"--data_dir={moved}", "--resume", f"--output_dir={tmp_path / 'out'}", "--seed=1"])
    runs = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    assert runs[0]["settings"]["data"]["digest"] != runs[1]["settings"]["data"]["digest"]
    with pytest.raises(SystemExit):  # the folder of seed 0 holds a run on other labels
        main(folder.RECIPE, [*options, f"--data_dir={moved}", "--resume"])
    assert "data was" in capsys.readouterr().err


def test_groups_are_those_of_the_clean_labels(pictures, tmp_path):
    metadata = pictures / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["clean_labels"] = ["cat", "dog"]
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = [f"--output_dir={tmp_path / 'out'}", *QUICK, "--method=bce", f"--data_dir={pictures}"]
    main(folder.RECIPE, [*options, "--medium_shot_from=16", "--many_shot_from=17"])
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["runs"]
    ap = entry["per_class_ap"]
    assert entry["groups"] == {
        "medium": pytest.approx((ap["cat"] + ap["dog"]) / 2),
        "few": pytest.approx(ap["eel"]),
    }


def test_evaluating_needs_no_training_images(pictures, tmp_path):
    out = tmp_path / "out"
    options = [f"--output_dir={out}", *QUICK, "--method=bce", f"--data_dir={pictures}"]
    main(folder.RECIPE, [*options, "--do_train", "--do_eval", "--do_predict"])
    first = (out / "bce-seed0" / "evaluation.json").read_bytes()
    scores = (out / "bce-seed0" / "predictions.csv").read_bytes()
    for picture in (pictures / "train").glob("*.png"):
        picture.unlink()
    main(folder.RECIPE, [*options, "--do_eval", "--do_predict"])
    assert (out / "bce-seed0" / "evaluation.json").read_bytes() == first
    assert (out / "bce-seed0" / "predictions.csv").read_bytes() == scores
