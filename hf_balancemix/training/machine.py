"""The processes of one machine: work that is done once for all of them, and memory that they hold together."""

from __future__ import annotations

import pickle
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
    """The processes with the same temporary folder and host name; see :func:`machine_of`.

    Args:
        args: ``TrainingArguments``.

    Attributes:
        index: Number of this process among those of its machine.
        count: How many these are.
    """

    def __init__(self, args: Any) -> None:
        self.args, host = args, socket.gethostname()
        own, error = attempt(_make_folder)
        try:
            # Containers may share a name, machines a folder; not both.
            places = gather_objects((host, own), args, error)
            chosen = gather_objects(next((n, p) for n, p in places if n == host and p.exists()), args)
        finally:
            if own:
                own.rmdir()
        peers = [rank for rank, place in enumerate(chosen) if place == chosen[args.process_index]]
        self._first, self.index, self.count = peers[0], peers.index(args.process_index), len(peers)

    def once(self, work: Callable[[], Result]) -> Result:
        """Do the work on the first process of each machine.

        Returns:
            Its result on each of them; small and picklable.

        Raises:
            Exception: On all processes, if it failed on any.
        """
        result, error = attempt(work) if self.index == 0 else (None, None)
        shared: Result = gather_objects(result, self.args, error)[self._first]
        return shared

    def wait(self) -> None:
        """Wait for all processes of the run."""
        gather_objects(None, self.args)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Give a temporary folder to the processes of this machine. What they have mapped outlives it."""
        folder, error = self.once(_make_folder), None
        try:
            try:
                yield folder
            except Exception as caught:
                error = caught
            gather_objects(None, self.args, error)  # all have mapped its files, or none goes on
        finally:
            if self.index == 0:
                shutil.rmtree(folder, ignore_errors=True)


_MACHINES: dict[tuple[int, int], Machine] = {}


def machine_of(args: Any) -> Machine:
    """Return the machine of this process; the first time all processes of the run must ask at once."""
    key = args.world_size, args.process_index
    if key not in _MACHINES:
        _MACHINES[key] = Machine(args)
    return _MACHINES[key]


def gather_objects(value: Any, args: Any, error: Exception | None = None) -> list[Any]:
    """Return the picklable value of every process, in order, on all of them; each waits for the others.

    Raises:
        Exception: Its own ``error`` on a process that has one, the first of the others on the rest.
    """
    found: list[Any] = [(value, error)]
    if args.world_size > 1:
        found = [None] * args.world_size
        torch.distributed.all_gather_object(found, (value, _portable(error)))
    errors = [of_one for _, of_one in found if of_one is not None]
    if errors:
        raise error or errors[0]
    return [of_one for of_one, _ in found]


def attempt(work: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """Return the result of work or its error, to be told to the other processes before it is raised."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def _portable(error: Exception | None) -> Exception | None:
    """Return an error that other processes can be sent."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _make_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="hf_balancemix-"))
    except OSError as error:
        raise no_room(error) from error


def no_room(error: OSError) -> OSError:
    """Return an error that says where the labels of schedule "stream" go."""
    return OSError(
        f"Expected room for the labels of the training set in {tempfile.gettempdir()}, the folder of temporary files, "
        f"found none ({error}). Free some, or set TMPDIR to a folder on a disk of this machine."
    )


def mapped(path: Path, dtype: torch.dtype) -> torch.Tensor:
    """Map a file of numbers into memory: processes that do so hold it once, and see what each other writes."""
    size = path.stat().st_size // dtype.itemsize
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype) if size else torch.empty(0, dtype=dtype)
