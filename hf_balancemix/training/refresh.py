"""The pass over the training set that feeds the statistics, shared by all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm

from hf_balancemix.checks import check_finite_rows
from hf_balancemix.data.pairs import ViewDataset, as_batch
from hf_balancemix.label_state import LabelState
from hf_balancemix.method.histogram import BINS
from hf_balancemix.training.machine import gather_objects

# Measured: bytes per label that a refresh needs where labels are refined (its diagnostics need the most) and where
# only the sampler is; with schedule "stream" bytes per class (its histograms); what does not grow.
_REFINED, _SAMPLED, _COUNTED, _CHUNKS = 57, 4, 2 * BINS * 16, 30_000_000


class _Rows(Sampler[int]):
    """The rows of one process, every P-th; the first again where others have one more: all make as many forwards."""

    def __init__(self, rank: int, num_rows: int, world_size: int) -> None:
        self.own, self.most = range(rank, num_rows, world_size), -(-num_rows // world_size)

    def __len__(self) -> int:
        return min(self.most, 2 * len(self.own))

    def __iter__(self) -> Iterator[int]:
        yield from self.own
        yield from self.own[: self.most - len(self.own)]


@torch.no_grad()
def predicted_views(
    trainer: Any,
    clean: bool,
    augmented: int,
    epoch: int,
    predict: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Predict this process's training images once, every P-th, without gradient, in eval mode.

    The global random generators are left as they were, so that a run that resumes before the pass draws what the
    undisturbed run draws.

    Args:
        trainer: A trainer with ``model``, ``args``, ``accelerator`` and its training images.
        clean: Whether to predict the unaugmented image.
        augmented: How many augmented views to predict.
        epoch: Seeds the views together with the run's seed and the row.
        predict: From pixels (n, 3, H, W) to logits (n, ..., K); unless given those (n, K) of the model.

    Yields:
        A batch's rows (n,) and their logits (n, clean + augmented, ..., K), float32, on the CPU.

    Raises:
        FloatingPointError: At the end, on every process, if a logit of any is NaN or infinite, naming the rows.
    """
    args, model = trainer.args, trainer.model
    images, rank, world = trainer._train_images, args.process_index, args.world_size
    rows = _Rows(rank, len(images), world)
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
    not_finite: list[int] = []
    seen = 0
    try:
        for batch in tqdm(loader, desc="refresh", leave=False, delay=2, disable=args.disable_tqdm or rank != 0):
            moved = {name: tensor.to(args.device, non_blocking=True) for name, tensor in batch.items()}
            pixels = trainer.transform.views(moved, clean)
            found = []
            # Never more at once than in an evaluation: that is what fits, and on a CPU it is faster too.
            for part in pixels.flatten(0, 1).split(args.eval_batch_size):
                with trainer.compute_loss_context_manager():
                    # As the batches of the steps are: DeepSpeed wants floats in the model's precision.
                    finished = trainer._prepare_input(trainer.transform.finish(part))
                    found.append(trainer._logits(model, finished) if predict is None else predict(finished))
            logits = torch.cat(found)
            own = torch.tensor(rows.own[seen : seen + len(pixels)], dtype=torch.int64)
            seen += len(pixels)
            logits = logits.float().unflatten(0, pixels.shape[:2])[: len(own)].cpu()
            finite = logits.isfinite().flatten(1).all(dim=1)
            if len(own) and bool(finite.all()):
                yield own, logits
            not_finite += own[~finite].tolist()
    finally:
        model.train(training)
    not_finite = sorted(row for of_one in gather_objects(not_finite, args) for row in of_one)
    check_finite_rows(not_finite, len(images), trainer.state.global_step)  # on all alike: none is left waiting


def predict_views(
    trainer: Any,
    clean: bool,
    augmented: int,
    epoch: int,
    predict: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Predict every training image once; all as for :func:`predicted_views`.

    Returns:
        (N, clean + augmented, ..., K) float32 logits on the CPU, the same on every process.
    """
    own = torch.cat([logits for _, logits in predicted_views(trainer, clean, augmented, epoch, predict)])
    return gather_rows(own, len(trainer._train_images), trainer.args)


def gather_rows(own: torch.Tensor, num_rows: int, args: Any) -> torch.Tensor:
    """Put together what each process has of its rows (every P-th, as in :func:`predicted_views`), on all processes.

    Args:
        own: (rows of this process, ...) on the CPU.
        num_rows: N.
        args: ``TrainingArguments``.

    Returns:
        (N, ...) on the CPU, in order.
    """
    world = args.world_size
    if world == 1:
        return own
    most = -(-num_rows // world)
    padded = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])]).to(args.device)
    gathered = [torch.empty_like(padded) for _ in range(world)]
    torch.distributed.all_gather(gathered, padded)
    # Rank r holds rows r, r + P, r + 2P, ….
    return torch.stack([part.cpu() for part in gathered], dim=1).flatten(0, 1)[:num_rows]


def all_reduce(tensor: torch.Tensor, how: str, args: Any) -> None:
    """Combine a tensor over all processes in place, by "min", "max" or "sum"; with one process it stays."""
    if args.world_size > 1:
        moved = tensor.to(args.device)
        operation = getattr(torch.distributed.ReduceOp, how.upper())
        torch.distributed.all_reduce(moved, operation)
        tensor.copy_(moved)


def broadcast(tensor: torch.Tensor, args: Any) -> torch.Tensor:
    """Return the first process's tensor, of one shape and dtype on all; on the CPU."""
    if args.world_size == 1:
        return tensor
    moved = tensor.to(args.device).contiguous()
    torch.distributed.broadcast(moved, src=0)
    return moved.cpu()


def state_bytes(num_rows: int, num_labels: int) -> int:
    """Return the bytes of the label state between two refreshes of BalanceMix that refine labels (schedule "epoch").

    A label takes four, the sampling probability of an image eight, the two confidences of a class sixteen, a counter
    eight.
    """
    return 4 * num_rows * num_labels + 8 * num_rows + 16 * num_labels + 8


class PredictedMemory(NamedTuple):
    """Bytes of BalanceMix's statistics.

    Attributes:
        held: By every process, between two refreshes.
        refresh: In addition during one, on the process that needs the most.
        shared: In temporary files that the processes of a machine map, once for all of them.
    """

    held: int
    refresh: int
    shared: int = 0


def predicted_memory(args: Any, num_rows: int, num_labels: int, positives: int) -> PredictedMemory:
    """Predict the memory of BalanceMix's statistics, before training; measured within a fifth or 50 MB.

    With schedule "stream" a positive takes four bytes, an image sixteen (where its positives begin, and the sum of the
    weights up to it), all of them shared; a class 168.

    Args:
        args: :class:`BalanceMixTrainingArguments`.
        num_rows: N, training images.
        num_labels: K.
        positives: Given labels that are 1.
    """
    entries = num_rows * num_labels
    if args.refinement == "none":
        if args.second_sampler != "minority":
            return PredictedMemory(0, 0)
        return PredictedMemory(num_rows * (-(-num_labels // 8) + 8) + 16 * num_labels, _SAMPLED * entries)
    if args.streams:
        shared = 4 * positives + 8 * (num_rows + 1) + (8 * num_rows if args.second_sampler == "minority" else 0)
        return PredictedMemory(168 * num_labels, _COUNTED * num_labels + _CHUNKS, shared)
    views = args.needs_views and args.relabel_views != "step"
    carried = 2 * entries if args.needs_views and args.relabel_views == "carry" else 0
    held = state_bytes(num_rows, num_labels) + carried + (0 if views else 4 * entries)  # with predictions for an audit
    return PredictedMemory(held, _REFINED * entries + _CHUNKS)


def broadcast_statistics(state: LabelState, args: Any) -> None:
    """Give every process the first one's statistics, bit for bit; they are computed once and not on each."""
    if args.world_size == 1:
        return
    own = state.stored() if args.process_index == 0 else {}
    shapes = [{name: (tuple(t.shape), t.dtype) for name, t in own.items()}]
    torch.distributed.broadcast_object_list(shapes, src=0, device=args.device)
    received = {}
    for name, (shape, dtype) in shapes[0].items():
        received[name] = broadcast(own[name] if own else torch.empty(shape, dtype=dtype), args)
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
