"""The processes of one machine: work that is done once for all of them, and memory that they hold together."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class Machine:
    """Finds the processes with the same temporary folder and host name; all processes of a run must ask at once.

    Args:
        args: ``TrainingArguments``.

    Attributes:
        index: Number of this process among those of its machine.
        count: How many these are.
    """

    def __init__(self, args: Any) -> None:
        self.args = args
        handle, own = tempfile.mkstemp(prefix="hf_balancemix-")
        os.close(handle)
        try:
            places = [(socket.gethostname(), own)]
            places = self._gather(places[0])
            # Containers may share a name, machines a folder; not both.
            mine = next(path for name, path in places if name == places[args.process_index][0] and Path(path).exists())
            chosen = self._gather((socket.gethostname(), mine))
        finally:
            Path(own).unlink()
        peers = [rank for rank, place in enumerate(chosen) if place == chosen[args.process_index]]
        self._first, self.index, self.count = peers[0], peers.index(args.process_index), len(peers)

    def once(self, work: Callable[[], Result]) -> Result:
        """Do the work on the first process of each machine.

        Returns:
            Its result on each of them; small and picklable.

        Raises:
            Exception: On all processes, if it failed on any.
        """
        result, error = None, None
        if self.index == 0:
            try:
                result = work()
            except Exception as caught:
                error = caught
        found = self._gather((result, error))
        if failed := [of_one for _, of_one in found if of_one is not None]:
            raise failed[0]
        shared: Result = found[self._first][0]
        return shared

    def wait(self) -> None:
        """Wait for all processes of the run."""
        self._gather(None)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Give a temporary folder to the processes of this machine. What they have mapped outlives it."""
        folder = self.once(lambda: Path(tempfile.mkdtemp(prefix="hf_balancemix-")))
        try:
            yield folder
            self.wait()  # until all have mapped its files
        finally:
            if self.index == 0:
                shutil.rmtree(folder, ignore_errors=True)

    def _gather(self, value: Any) -> list[Any]:
        if self.args.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(found, value)
        return found


def mapped(path: Path, dtype: torch.dtype) -> torch.Tensor:
    """Map a file of numbers into memory: processes that do so hold it once, and see what each other writes."""
    size = path.stat().st_size // dtype.itemsize
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype) if size else torch.empty(0, dtype=dtype)
