"""Several cells at a time, each in a process of its own, on a device of its own where there are devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_balancemix.compare.cells import Cell
from hf_balancemix.compare.progress import Overview
from hf_balancemix.compare.results import Results
from hf_balancemix.compare.run import clear, log_file


class _Worker:
    """One process that runs cells, one after the other; a dead one is replaced when the next cell comes.

    Args:
        slot: Its number.
        at_once: How many there are.
        words: The comparison's command line.
        folder: Where it prints to until it runs a cell.
    """

    def __init__(self, slot: int, at_once: int, words: Sequence[str], folder: Path) -> None:
        self.words, self.environment = words, _environment(slot, at_once)
        self.log = folder / "logs" / f"worker-{slot}.log"
        self.process: subprocess.Popen[str] | None = None
        self.stopped = False

    def run(self, cell: Cell, events: SimpleQueue[dict[str, Any]]) -> None:
        """Run a cell, and put what is said of it into ``events``; the last of it is a result or a failure."""
        while True:
            new = self.process is None or self.process.poll() is not None
            self.process = process = self._start() if new or self.process is None else self.process
            begun = False
            for event in _ask(process, cell):
                events.put(event)
                begun = True
                if "failed" in event or "result" in event:
                    return
            code = process.wait()
            if self.stopped:
                return
            if new or begun:  # else it had died since its last cell, which is no fault of this one
                how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
                events.put({"cell": cell.id, "failed": f"the process {how} (no memory left?); see also {self.log}"})
                return

    def _start(self) -> subprocess.Popen[str]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # Ctrl-C is for the process that started it, which then ends this one by closing its input.
            return subprocess.Popen(
                [sys.executable, "-m", "hf_balancemix.compare.worker", *self.words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the process, if there is one."""
        self.stopped = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _ask(process: subprocess.Popen[str], cell: Cell) -> Iterator[dict[str, Any]]:
    """Have a process run a cell, and yield what it says until its output ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(cell.id + "\n")
        process.stdin.flush()
    except BrokenPipeError:  # it is gone
        return
    for line in process.stdout:
        if line.endswith("\n"):  # else it was killed while it wrote
            yield json.loads(line)


def _environment(slot: int, at_once: int) -> dict[str, str]:
    """Return the environment of a process: its own device, or its share of the processor's cores."""
    environment = dict(os.environ)
    count = torch.cuda.device_count()
    if count:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        environment["CUDA_VISIBLE_DEVICES"] = (visible or [str(i) for i in range(count)])[slot % count]
    elif "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // at_once))
    return environment


def run_parallel(
    cells: Sequence[Cell], at_once: int, words: Sequence[str], results: Results, overview: Overview, keep_models: bool
) -> dict[str, str]:
    """Run cells, several at a time; a failing one does not keep the others from running.

    Args:
        cells: What to run.
        at_once: How many at a time.
        words: The command line of the comparison, which each process reads again.
        results: Where they go.
        overview: Shows how far it is.
        keep_models: Whether the models stay on the disk.

    Returns:
        What went wrong, by the cell's id.
    """
    waiting: SimpleQueue[Cell] = SimpleQueue()
    events: SimpleQueue[dict[str, Any]] = SimpleQueue()
    by_id, failed, left = {cell.id: cell for cell in cells}, dict[str, str](), len(cells)
    for cell in cells:
        waiting.put(cell)
    folder = results.path.parent
    workers = [_Worker(slot, at_once, words, folder) for slot in range(min(at_once, len(cells)))]

    def serve(worker: _Worker) -> None:
        while not worker.stopped:
            try:
                cell = waiting.get_nowait()
            except Empty:
                return
            log_file(folder, cell).unlink(missing_ok=True)  # of an earlier try
            events.put({"cell": cell.id, "waits": True})
            worker.run(cell, events)

    try:
        for worker in workers:
            threading.Thread(target=serve, args=(worker,), daemon=True).start()
        while left:
            event = events.get()
            cell = by_id[event["cell"]]
            if "waits" in event:
                overview.begin(cell)
            elif "share" in event:
                overview.tell(cell, event["share"])
            elif "failed" in event or "result" in event:
                left -= 1
                overview.end(cell, event.get("times"))
                if "failed" in event:
                    failed[cell.id] = event["failed"]
                    tqdm.write(f"{cell.label}: failed, {event['failed']}", file=sys.stderr)
                else:
                    results.add(event["result"], event["times"])
                    clear(cell, keep_models)
    finally:
        for worker in workers:
            worker.stop()
    return failed
