"""The pass over the training set that feeds the statistics, shared by all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_balancemix.checks import check_finite_logits
from hf_balancemix.data.pairs import ViewDataset, as_batch
from hf_balancemix.label_state import LabelState

# Measured: bytes per label that a refresh needs where labels are refined and where only the sampler is, and for each
# label that is fitted at a time. `label_posteriors`, in float64, decides on them, and after it the diagnostics.
_REFINED, _SAMPLED, _FITTED = 54, 14, 200
_FITTED_TOGETHER = 2**19


@torch.no_grad()
def predict_views(
    trainer: Any,
    clean: bool,
    augmented: int,
    epoch: int,
    predict: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Predict every training image once, without gradient, in eval mode.

    Each process takes every P-th row; the results are gathered without the padding. The global random generators are
    left as they were, so that a run that resumes before the pass draws what the undisturbed run draws.

    Args:
        trainer: A trainer with ``model``, ``args``, ``accelerator`` and its training images.
        clean: Whether to predict the unaugmented image.
        augmented: How many augmented views to predict.
        epoch: Seeds the views together with the run's seed and the row.
        predict: From pixels (n, 3, H, W) to logits (n, ..., K); unless given those (n, K) of the model.

    Returns:
        (N, clean + augmented, ..., K) float32 logits on the CPU, the same on every process.

    Raises:
        FloatingPointError: If a logit is NaN or infinite, naming the rows.
    """
    args, model = trainer.args, trainer.model
    images, rank, world = trainer._train_images, args.process_index, args.world_size
    rows = [row % len(images) for row in range(rank, -(-len(images) // world) * world, world)]
    dataset = ViewDataset(images, trainer.transform, clean, augmented, args.seed, epoch)
    loader = DataLoader(
        dataset,
        batch_size=args.eval_batch_size,
        sampler=rows,
        collate_fn=as_batch,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
        generator=torch.Generator(),  # else each pass would draw a seed from the global generator
    )
    synchronise_buffers(trainer.model, trainer.args)
    training = model.training
    model.eval()
    chunks = []
    try:
        for batch in tqdm(loader, desc="refresh", leave=False, delay=2, disable=args.disable_tqdm or rank != 0):
            pixels = batch["pixel_values"].to(args.device, non_blocking=True)
            with trainer.compute_loss_context_manager():
                flat = pixels.flatten(0, 1)
                logits = trainer._logits(model, flat) if predict is None else predict(flat)
            chunks.append(logits.float().unflatten(0, pixels.shape[:2]))
    finally:
        model.train(training)
    logits = torch.cat(chunks)
    if world > 1:
        # Rank r holds rows r, r + P, r + 2P, …: put them back in order and drop the padding.
        gathered = trainer.accelerator.gather(logits.contiguous()).unflatten(0, (world, -1))
        logits = gathered.transpose(0, 1).flatten(0, 1)[: len(images)]
    logits = logits.cpu()
    check_finite_logits(logits, trainer.state.global_step)  # on every rank alike: none is left waiting
    return logits


def state_bytes(num_rows: int, num_labels: int) -> int:
    """Return the bytes of the label state between two refreshes of BalanceMix that refine labels (schedule "epoch").

    A label takes four, the sampling probability of an image eight, the two confidences of a class sixteen, a counter
    eight.
    """
    return 4 * num_rows * num_labels + 8 * num_rows + 16 * num_labels + 8


def predicted_bytes(args: Any, num_rows: int, num_labels: int) -> tuple[int, int]:
    """Predict the memory of BalanceMix's statistics, before training; measured within a fifth from 10^6 labels on.

    Args:
        args: :class:`BalanceMixTrainingArguments`.
        num_rows: N, training images.
        num_labels: K.

    Returns:
        Bytes that every process holds between two refreshes, and those that the first one needs in addition during a
        refresh. Both 0 where there are no statistics.
    """
    entries = num_rows * num_labels
    if args.refinement == "none":
        held = num_rows * (-(-num_labels // 8) + 8) + 16 * num_labels
        return (held, _SAMPLED * entries) if args.second_sampler == "minority" else (0, 0)
    views = {"epoch": 3, "reuse": 2}.get(args.relabel_views, 1) if args.needs_views else 1
    held = state_bytes(num_rows, num_labels) + (4 * entries if views == 1 else 0)  # with predictions for an audit
    return held, max(_REFINED * entries, (4 * views + 21) * entries + _FITTED * min(entries, _FITTED_TOGETHER))


def broadcast_statistics(state: LabelState, args: Any) -> None:
    """Give every process the first one's statistics, bit for bit; they are computed once and not on each."""
    if args.world_size == 1:
        return
    own = state.stored() if args.process_index == 0 else {}
    shapes = [{name: (tuple(t.shape), t.dtype) for name, t in own.items()}]
    torch.distributed.broadcast_object_list(shapes, src=0, device=args.device)
    received = {}
    for name, (shape, dtype) in shapes[0].items():
        tensor = (own[name] if own else torch.empty(shape, dtype=dtype)).to(args.device).contiguous()
        torch.distributed.broadcast(tensor, src=0)
        received[name] = tensor.cpu()
    state.restore(received)


def synchronise_buffers(model: Any, args: Any) -> None:
    """Copy the model's buffers from the first process to the others, as DDP does before its next training step.

    Without it each process would predict with batch-norm statistics of its own, and not those of a checkpoint.
    """
    if args.world_size > 1:
        for buffer in model.buffers():
            # A model that is only evaluated may not have been moved yet.
            if buffer.device.type == args.device.type:
                torch.distributed.broadcast(buffer, src=0)
