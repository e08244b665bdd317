"""With `torch_compile` a run compiles its training step once, and what predicts within the step once more."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from hf_balancemix import BalanceMixTrainer
from tests import tiny

ROWS = 43  # the last batch of the pass and of the evaluation is a smaller one


class Compiled(TrainerCallback):
    """How many graphs there are after each step and evaluation."""

    def __init__(self):
        self.after_step, self.after_evaluation = [], []

    def on_step_end(self, args, state, control, **kwargs):
        self.after_step.append(counters["stats"]["unique_graphs"])

    def on_evaluate(self, args, state, control, **kwargs):
        self.after_evaluation.append(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(("views", "more"), [("reuse", 0), ("epoch", 0), ("carry", 0), ("step", 1), ("stream", 1)])
def test_nothing_is_compiled_again_after_the_first_step_of_its_kind(tmp_path, views, more):
    torch._dynamo.reset()
    counters.clear()
    args = tiny.arguments(
        tmp_path,
        torch_compile=True,
        torch_compile_backend="eager",  # traces as any other, and is quick
        num_train_epochs=3,
        relabel_views=views,
        eval_strategy="epoch",
    )
    compiled = Compiled()
    inputs = {"train_dataset": tiny.tiny_dataset(ROWS), "eval_dataset": tiny.tiny_dataset(13, seed=1)}
    trainer = BalanceMixTrainer(
        tiny.tiny_resnet(), args, processing_class=tiny.processor(), callbacks=[compiled], **inputs
    )
    trainer.train()
    steps = len(compiled.after_step) // 3
    # Warm-up; then the views of a step, without gradient, need a graph of their own from the first such step on.
    assert compiled.after_step == [1] * steps + [1 + more] * 2 * steps
    assert compiled.after_evaluation[0] == 1
    assert counters["stats"]["unique_graphs"] == 1 + more
