"""Run one training as its own process or processes; the tests start it with `launch` and compare what it writes.

python -m tests.distributed.run_training '{"output_dir": ..., "options": {...}}'
"""

import contextlib
import hashlib
import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hf_balancemix.recipe.processes import leave_process_group
from hf_balancemix.training.methods import METHODS
from tests import tiny

EXITING = 0x4  # PF_EXITING of Linux, in the flags of a thread (proc(5), stat, field 9)


class Record(TrainerCallback):
    """Gradient norms, streams and states, a line each, so that a killed run leaves what it saw."""

    def __init__(self, path, trainer, pause):
        self.path, self.trainer, self.pause = path, trainer, pause

    def write(self, **entry):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        norms = [p.grad.norm() for p in self.trainer.model.parameters() if p.grad is not None]
        self.write(step=state.global_step, norm=float(torch.stack(norms).double().norm()))

    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(self.pause)  # so that a kill from outside meets the step it is meant for

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.write(epoch=state.epoch or 0, state=self.trainer.label_state.digest())


def digest(model):
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(name.encode() + tensor.contiguous().cpu().numpy().tobytes())
    return sha.hexdigest()


def stock(job, ours):
    """The same model and images with the stock Trainer, for one step."""
    args = TrainingArguments(
        job["output_dir"],
        use_cpu=True,
        per_device_train_batch_size=ours.per_device_train_batch_size,
        gradient_accumulation_steps=ours.gradient_accumulation_steps,
        max_steps=1,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = tiny.tiny_vit()
    model.config.problem_type = "multi_label_classification"
    trainer = Trainer(model, args, train_dataset=tiny.plain_rows(job["rows"]))
    norms = []

    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            norms.extend(p.grad.norm() for p in model.parameters() if p.grad is not None)

    trainer.add_callback(Norm())
    trainer.train()
    path = Path(job["output_dir"]) / f"result-{args.process_index}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"norm": float(torch.stack(norms).norm())}), encoding="utf-8")


def main():
    job = json.loads(sys.argv[1])
    if job.get("own_folders"):  # as on machines that share none
        job["output_dir"] += f"/{os.environ['RANK']}"
    args = tiny.arguments(job["output_dir"], **job.get("options", {}))
    if "hosts" in job:
        socket.gethostname = lambda: job["hosts"][args.process_index]
    if job.get("lost_folder") == args.process_index:
        tempfile.tempdir = job["output_dir"] + "/gone"
    world = job.get("world_size", 1)
    assert args.world_size == world, f"expected {world} processes, found {args.world_size}"
    if job.get("method") == "stock":
        stock(job, args)
        return
    dataset = tiny.tiny_dataset(job.get("rows", 48))
    if "wrong_row" in job:
        labels = list(dataset["labels"])
        labels[job["wrong_row"]] = [None]
        dataset = dataset.remove_columns("labels").add_column("labels", labels, feature=dataset.features["labels"])
    model = tiny.tiny_vit(dropout=job.get("dropout", 0.0)) if job.get("model") == "vit" else tiny.tiny_resnet()
    trainer = METHODS[job.get("method", "balancemix")].trainer(
        model,
        args,
        train_dataset=dataset,
        eval_dataset=tiny.tiny_dataset(13, seed=1),
        processing_class=tiny.processor(),
    )
    trainer.remove_callback(PrinterCallback)
    folder = Path(job["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    trainer.add_callback(Record(folder / f"record-{args.process_index}.jsonl", trainer, job.get("pause", 0)))
    seen = []
    loss = trainer.compute_loss

    def recording(model, inputs, *rest, **kwargs):
        if "index" in inputs:
            seen.append([trainer._epoch(), inputs["index"].tolist(), inputs["mix_lambda"].tolist()])
        return loss(model, inputs, *rest, **kwargs)

    trainer.compute_loss = recording
    if "not_finite_row" in job:
        break_row(trainer, job["not_finite_row"])
    trainer.train(resume_from_checkpoint=job.get("resume"))
    result = {
        "weights": digest(trainer.model),
        "state": trainer.label_state.digest(),
        "seen": seen,
        "steps": trainer.state.global_step,
    }
    if (sums := trainer.label_state.sampling_sums) is not None:
        result["sums"] = sums.tolist()
    (folder / f"state-{args.process_index}").mkdir(exist_ok=True)
    trainer.label_state.save(folder / f"state-{args.process_index}", {})
    (folder / f"result-{args.process_index}.json").write_text(json.dumps(result), encoding="utf-8")


def break_row(trainer, row):
    """Let the model predict NaN for one row in the pass, wherever it is in a batch."""
    rows = range(trainer.args.process_index, len(trainer.train_dataset), trainer.args.world_size)
    logits, seen = trainer._logits, [0]

    def broken(model, pixels):
        out = logits(model, pixels)
        if not model.training:
            images = len(pixels) // 2  # two views each
            if row in rows[seen[0] : seen[0] + images]:
                out[2 * (rows.index(row) - seen[0])] = float("nan")
            seen[0] += images
        return out

    trainer._logits = broken


def leave():
    """Leave the process group: no thread of it is there to drop a tensor when the interpreter ends."""
    leave_process_group()
    assert not [name for name in living_threads() if "gloo" in name], living_threads()


def living_threads():
    """Names of the threads of this process, but for those that have ended and that the kernel still lists."""
    names = []
    for path in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # it has gone since
            name, _, rest = path.read_text(encoding="utf-8").partition("(")[2].rpartition(")")
            if not int(rest.split()[6]) & EXITING:
                names.append(name)
    return names


if __name__ == "__main__":
    main()
    leave()
