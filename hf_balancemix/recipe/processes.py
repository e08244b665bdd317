"""Leaving the process group before the interpreter ends."""

import gc

from accelerate import PartialState


def leave_process_group() -> None:
    """End the process group, and its threads, where there is one; call it when the trainers are out of scope.

    A worker thread of gloo drops the tensors of the last collective whenever it gets to it. If the interpreter is
    ending by then, taking its lock aborts the process, after a run that went well (rare, but seen on busy machines).
    """
    # Trainers are part of reference cycles, and what they hold keeps the group alive. They go first: the last
    # reference has to be the one that releases the lock while it waits for the threads.
    gc.collect()
    PartialState().destroy_process_group()
