"""What each of several processes of one machine takes for the statistics of schedule "stream" (Linux)."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch

from hf_balancemix.data.stream_sampler import StreamSampler
from hf_balancemix.label_state import LabelState
from hf_balancemix.recipe.processes import leave_process_group
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.statistics import refresh_statistics
from hf_balancemix.training.stream import shared_labels

_MEMORY = Path("/proc/self/smaps")
_WARM_UP = 200_000  # rows after which what is allocated for a time and kept by the program no longer grows


def held_by_processes(num_rows: int, num_labels: int, positives: int, processes: int) -> list[dict[str, float]]:
    """Read the labels, refresh the statistics and go through an epoch of pairs on so many processes.

    Args:
        num_rows: N.
        num_labels: K.
        positives: Of a row.
        processes: P.

    Returns:
        Of each process the megabytes that it holds afterwards and did not before: ``own``, to itself, and ``files``,
        its part of those that it maps together with others (the proportional set size of Linux).
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in (("few", min(_WARM_UP, num_rows)), ("all", num_rows)):
            _write_data(Path(folder, name), rows, num_labels, positives)
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            jobs = [pool.submit(_measure, folder, num_labels, rank, processes, port) for rank in range(processes)]
            return [job.result() for job in jobs]


def _write_data(path: Path, num_rows: int, num_labels: int, positives: int) -> None:
    ids = np.random.default_rng(0).integers(num_labels, size=num_rows * positives)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(num_rows + 1, dtype=np.int32) * positives), pa.array(ids))
    table = pa.table({"labels": lists})
    with pa.ipc.new_stream(path, table.schema) as file:
        file.write_table(table)


def _measure(folder: str, num_labels: int, rank: int, processes: int, port: int) -> dict[str, float]:
    """Measure one process; what a first refresh sets up counts for nothing."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()} if processes > 1 else {})
    torch.set_num_threads(1)
    args = BalanceMixTrainingArguments(
        output_dir=folder, use_cpu=True, relabel_views="stream", report_to="none", disable_tqdm=True
    )
    assert args.world_size == processes, f"expected {processes} processes, found {args.world_size}"
    try:
        _epoch(f"{folder}/few", num_labels, args)
        before = _held()
        state = _epoch(f"{folder}/all", num_labels, args)
        after = _held()
        assert len(state) > 0
        return {name: after[name] - before[name] for name in after}
    finally:
        leave_process_group()


def _epoch(place: str, num_labels: int, args: BalanceMixTrainingArguments) -> LabelState:
    names = [str(k) for k in range(num_labels)]
    state = LabelState(*shared_labels(args, datasets.Dataset.from_file(place), class_names=names))
    refresh_statistics(state, args, _batches(state, args))
    deque(StreamSampler(len(state), 0, lambda: 0, lambda: state.sampling_sums), maxlen=0)
    return state


def _batches(state: LabelState, args: BalanceMixTrainingArguments) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random logits of two views, of the rows of this process."""
    for start in range(args.process_index, len(state), 256 * args.world_size):
        rows = torch.arange(start, min(start + 256 * args.world_size, len(state)), args.world_size)
        yield rows, torch.randn(len(rows), 2, len(state.class_names))


def _held() -> dict[str, float]:
    """Megabytes that this process has changed, and its part of the files that it maps together with others.

    Libraries are left out: whose they are changes whenever another program starts or ends.
    """
    gc.collect()
    pa.default_memory_pool().release_unused()
    found, files = {"own": 0, "files": 0}, False
    for line in _MEMORY.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if not name.isidentifier():  # the first line of a mapping ends with its file
            files = "/hf_balancemix-" in line
        elif files and name == "Pss":
            found["files"] += int(value.split()[0])
        elif not files and name == "Private_Dirty":
            found["own"] += int(value.split()[0])
    return {name: kilobytes * 1024 / 1e6 for name, kilobytes in found.items()}
