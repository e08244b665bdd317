"""What was pushed loads by its name, where this package is not installed too, and predicts the same."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_balancemix import MultiLabelTrainer
from hf_balancemix.build import build_model
from tests.hub.test_push import trainer_for
from tests.tiny import NAMES, SIZE

# What stands in front of a script so that the package cannot be imported from anywhere.
BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_balancemix":
            raise ImportError("hf_balancemix is not installed here")
sys.meta_path.insert(0, Blocker())
"""
LOAD = """
import json, sys
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
try:
    import hf_balancemix
except ImportError:
    print("blocked")
picture, answers = Image.open(sys.argv[1]), {}
for name, code in json.loads(sys.argv[2]).items():
    options = {"trust_remote_code": True} if code else {}
    model = AutoModelForImageClassification.from_pretrained(name, **options).eval()
    processor = AutoImageProcessor.from_pretrained(name, **options)
    with torch.no_grad():
        logits = model(**processor(picture, return_tensors="pt")).logits[0].tolist()
    classify = pipeline("image-classification", model=name, **options)
    answers[name] = [type(model).__name__, logits, classify(sys.argv[1], top_k=5)]
print(json.dumps(answers))
"""


def run_python(text, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", text, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_equal_logits_by_name_without_this_package(hub, tmp_path):
    built = {
        "linear": ("small_resnet", "linear"),
        "timm": ("test_resnet.r160_in1k", "linear"),
        "decoder": ("test_resnet.r160_in1k", "ml_decoder"),
    }
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(picture)
    expected, code, cards = {}, {}, {}
    for name, (backbone, head) in built.items():
        torch.manual_seed(1)
        size = SIZE if backbone == "small_resnet" else 64
        model, image_processor = build_model(backbone, NAMES, size, pretrained=False, head=head)
        trainer = trainer_for(
            tmp_path / name, MultiLabelTrainer, model, image_processor, hub_strategy="end", second_sampler="none"
        )
        trainer.push_to_hub()
        with torch.no_grad():
            pixels = image_processor(Image.open(picture), return_tensors="pt")["pixel_values"]
            expected[f"tester/{name}"] = model.cpu().eval()(pixel_values=pixels).logits[0]
        code[f"tester/{name}"] = head != "linear"
        cards[name] = hub.model(f"tester/{name}").files["README.md"].decode()
    blocked, answers = run_python(BLOCK + LOAD, str(picture), json.dumps(code)).splitlines()
    assert blocked == "blocked"
    answers = json.loads(answers)
    assert answers["tester/linear"][0] == "ResNetForImageClassification"
    assert answers["tester/timm"][0] == "TimmWrapperForImageClassification"
    assert answers["tester/decoder"][0] == "BalanceMixForImageClassification"
    for name, logits in expected.items():
        assert torch.allclose(torch.tensor(answers[name][1]), logits, rtol=0, atol=1e-5), name
        scores = {entry["label"]: entry["score"] for entry in answers[name][2]}
        assert scores == pytest.approx(dict(zip(NAMES, logits.sigmoid().tolist(), strict=True)), abs=1e-5)
    # The three lines of each card, as they stand there.
    for name, card in cards.items():
        usage = card.partition("```python\n")[2].partition("```")[0].strip()
        assert len(usage.splitlines()) == 3
        if name == "decoder":
            printed = run_python(BLOCK + usage.replace("photo.jpg", str(picture)))
            assert printed.count("'score'") == 5
