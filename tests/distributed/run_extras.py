"""Run one training with averaged weights, one cycle and cutout; `test_extras` starts it in one process or several.

python -m tests.distributed.run_extras '{"output_dir": ..., "world_size": 2, "options": {...}}'
"""

import json
import sys
from pathlib import Path

from transformers import PrinterCallback, TrainerCallback

from hf_balancemix.training.methods import METHODS
from tests import tiny
from tests.distributed.run_training import digest, leave


class Rates(TrainerCallback):
    """The learning rate of every optimiser step."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        self.seen.append(optimizer.param_groups[0]["lr"])


def main():
    job = json.loads(sys.argv[1])
    args = tiny.arguments(job["output_dir"], **job["options"])
    assert args.world_size == job["world_size"], f"expected {job['world_size']} processes, found {args.world_size}"
    rates = Rates()
    trainer = METHODS[job["method"]].trainer(
        tiny.tiny_resnet(),  # batch norm: each process has running statistics of its own
        args,
        train_dataset=tiny.tiny_dataset(48),
        eval_dataset=tiny.tiny_dataset(13, seed=1),
        processing_class=tiny.processor(),
        callbacks=[rates],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=job.get("resume"))
    own = trainer.average.average  # before the processes agree on anything
    result = {
        "rates": rates.seen,
        "parameters": {name: own[name].double().sum().item() for name, _ in trainer.model.named_parameters()},
        "metrics": {name: value for name, value in trainer.evaluate().items() if "map" in name},
    }
    # The raw model's statistics are the first process's after an evaluation, as before any.
    result["raw"] = digest(trainer.model)
    with trainer.average.applied():
        result["average"] = digest(trainer.model)
    result["raw_again"] = digest(trainer.model)
    path = Path(job["output_dir"]) / f"result-{args.process_index}.json"
    path.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
    leave()
