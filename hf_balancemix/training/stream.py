"""What schedule "stream" holds of every image: its positives, and the running sums of the minority sampler.

Both are in files that the processes of one machine map, and that none has to itself: of P processes each has 1/P.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_balancemix.data.columns import Columns, Names, find_label_format
from hf_balancemix.data.sparse_labels import sparse_parts
from hf_balancemix.label_state import LabelState
from hf_balancemix.method import SparseLabels, partial_score, sampling_weight
from hf_balancemix.training.machine import machine_of, mapped, no_room
from hf_balancemix.training.refresh import all_reduce

_TOGETHER = 2**24  # bytes
_BLOCK = 2**15  # rows whose weights are summed up at a time, whatever the number of processes


def shared_labels(
    args: Any,
    dataset: Any,
    label_column: Columns = None,
    class_names: Sequence[str] | None = None,
    delimiter: str | None = None,
) -> tuple[SparseLabels, Names]:
    """Read what ``encode_labels`` reads, with the same rules and errors, once on each machine.

    Args:
        args: ``TrainingArguments``.
        dataset: As for ``encode_labels``, as those that follow.
        label_column: Likewise.
        class_names: Likewise.
        delimiter: Likewise.

    Returns:
        The labels, and the K class names.

    Raises:
        OSError: If the folder of temporary files has no room for them.
    """
    machine = machine_of(args)
    with machine.folder() as folder:

        def write() -> Names:
            label_format = find_label_format(dataset, label_column, class_names, delimiter)
            parts = sparse_parts(dataset, label_format)
            hidden = args.disable_tqdm or args.process_index > 0
            _write(folder, tqdm(parts, desc="labels", unit="part", leave=False, delay=2, disable=hidden))
            return label_format.class_names

        names = machine.once(write)
        offsets, classes = mapped(folder / "offsets", torch.int64), mapped(folder / "classes", torch.int32)
    return SparseLabels(offsets, classes, len(names)), names


def shared_counts(args: Any, dataset: Any, label_column: Columns, class_names: Names) -> torch.Tensor:
    """Return the (K,) int64 positives of each class in another label column, read once on each machine."""

    def count() -> torch.Tensor:
        label_format = find_label_format(dataset, label_column, class_names)
        return torch.stack([part.counts for part in sparse_parts(dataset, label_format)]).sum(dim=0)

    return machine_of(args).once(count)


def _write(folder: Path, parts: Any) -> None:
    """Write offsets and classes of the parts, one after the other, into two files."""
    try:
        with open(folder / "offsets", "wb") as offsets, open(folder / "classes", "wb") as classes:
            offsets.write(bytes(8))
            last = 0
            for part in parts:
                offsets.write((part.offsets[1:] + last).numpy().tobytes())
                classes.write(part.classes.numpy().tobytes())
                last += len(part.classes)
    except OSError as error:
        if error.errno != errno.ENOSPC:  # the data set may be at fault
            raise
        raise no_room(error) from error


def refresh_sums(state: LabelState, args: Any) -> None:
    """Bring ``state.sampling_sums`` up to date with its class confidence (Eq. 3-4), each process its share.

    Args:
        state: With sparse labels and class confidence, the same on all processes.
        args: :class:`BalanceMixTrainingArguments`.

    Raises:
        OSError: If the folder of temporary files has no room for N · 8 bytes.
    """
    assert state.sparse is not None
    assert state.class_confidence is not None
    machine, num_rows = machine_of(args), len(state)
    if state.sampling_sums is None:
        with machine.folder() as folder:
            machine.once(lambda: _write_zeros(folder / "sums", 8 * num_rows))
            state.sampling_sums = mapped(folder / "sums", torch.float64)
    sums, (absence, presence) = state.sampling_sums, state.class_confidence
    own = [
        slice(start, min(start + _BLOCK, num_rows))
        for start in range(machine.index * _BLOCK, num_rows, machine.count * _BLOCK)
    ]
    largest = torch.zeros(1, dtype=torch.float64)
    for rows in own:
        part = state.sparse.part(rows.start, rows.stop)
        sums[rows] = partial_score(part, presence, absence, args.minority_score)
        largest = torch.maximum(largest, sums[rows].masked_fill(sums[rows].isinf(), 0).max())
    all_reduce(largest, "max", args)
    for rows in own:
        sums[rows] = sampling_weight(sums[rows], float(largest)).cumsum(dim=0)
    machine.wait()
    before = sums[_BLOCK - 1 : -1 : _BLOCK].cumsum(dim=0)  # the first block has none
    machine.wait()
    for rows in own:
        if rows.start:
            sums[rows] += before[rows.start // _BLOCK - 1]
    machine.wait()


def _write_zeros(path: Path, size: int) -> None:
    """Write a file of zeros: one that is only declared to be so long would meet a full disk when it is in use."""
    try:
        with open(path, "wb") as file:
            for start in range(0, size, _TOGETHER):
                file.write(bytes(min(_TOGETHER, size - start)))
    except OSError as error:
        raise no_room(error) from error
