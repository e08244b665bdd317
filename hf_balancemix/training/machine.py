"""The processes of one machine: work that is done once for all of them, and memory that they hold together."""

from __future__ import annotations

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
        self.args, host = args, socket.gethostname()
        own, error = _attempt(lambda: tempfile.mkdtemp(prefix="hf_balancemix-"))
        try:
            # Containers may share a name, machines a folder; not both.
            places = gather_objects((host, own), args, error)
            chosen = gather_objects(next((n, p) for n, p in places if n == host and Path(p).exists()), args)
        finally:
            if own:
                Path(own).rmdir()
        peers = [rank for rank, place in enumerate(chosen) if place == chosen[args.process_index]]
        self._first, self.index, self.count = peers[0], peers.index(args.process_index), len(peers)

    def once(self, work: Callable[[], Result]) -> Result:
        """Do the work on the first process of each machine.

        Returns:
            Its result on each of them; small and picklable.

        Raises:
            Exception: On all processes, if it failed on any.
        """
        result, error = _attempt(work) if self.index == 0 else (None, None)
        shared: Result = gather_objects(result, self.args, error)[self._first]
        return shared

    def wait(self) -> None:
        """Wait for all processes of the run."""
        gather_objects(None, self.args)

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


def gather_objects(value: Any, args: Any, error: Exception | None = None) -> list[Any]:
    """Return the picklable value of every process, in order, on all of them; each waits for the others.

    Raises:
        Exception: The first ``error`` of any process, on all of them.
    """
    found: list[Any] = [(value, error)] * args.world_size
    if args.world_size > 1:
        torch.distributed.all_gather_object(found, (value, error))
    for _, of_one in found:
        if of_one is not None:
            raise of_one
    return [of_one for of_one, _ in found]


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def mapped(path: Path, dtype: torch.dtype) -> torch.Tensor:
    """Map a file of numbers into memory: processes that do so hold it once, and see what each other writes."""
    size = path.stat().st_size // dtype.itemsize
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype) if size else torch.empty(0, dtype=dtype)
