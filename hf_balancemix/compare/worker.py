"""A process that runs cells for another one, which names them on its standard input, a line each.

``python -m hf_balancemix.compare.worker WORDS...`` with the words of the comparison. Answers are lines of JSON on the
standard output as it was at the start; whatever else is printed goes to a log, one per cell. When the input ends, as
it does when the other process is gone, however it went, this one ends at once: checkpoints are there to go on from.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from hf_balancemix.compare.cells import load_jobs, plan_cells, read_requests
from hf_balancemix.compare.command import read_options
from hf_balancemix.compare.run import Report, first_line, forget, log_file, run_cell


def _commands() -> Iterator[str]:
    """Yield the lines of the standard input; end the process with the input, even in the middle of a cell."""
    lines: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line.strip())
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def _print_to(path: Path) -> None:
    """Send what this process and its own children print to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def main(words: list[str]) -> None:
    """Run the cells that are asked for."""
    answers: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content, ensure_ascii=False) + "\n")
        answers.flush()

    def tell(name: str, share: float) -> None:
        answer(cell=name, share=share)

    commands = _commands()
    options = read_options(words)
    requests = read_requests(options.recipe, options.grid, options.words, f"runs/compare/{options.dataset}")
    jobs = load_jobs(options.recipe, requests)
    cells = {cell.id: cell for cell in plan_cells(options.recipe, requests, jobs)}
    for name in commands:
        cell = cells[name]
        _print_to(log_file(requests[0].command.output_dir, cell))
        answer(cell=name, begun=True)
        try:
            progress = Report(partial(tell, name))
            result, times = run_cell(cell, jobs[cell.request.data_key], progress)
        except Exception as error:
            traceback.print_exc()
            answer(cell=name, failed=first_line(error))
        else:
            answer(cell=name, result=result, times=times)
        forget()


if __name__ == "__main__":
    main(sys.argv[1:])
