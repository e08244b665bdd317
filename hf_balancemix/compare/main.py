"""``compare DATASET ...``: from a command line to tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from accelerate import PartialState
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar as disable_shard_bars

from hf_balancemix.command_line import run_with_clear_errors
from hf_balancemix.compare.cells import Cell, cell_id, load_jobs, once, plan_cells, read_requests
from hf_balancemix.compare.command import Options, read_options
from hf_balancemix.compare.estimate import print_estimate
from hf_balancemix.compare.parallel import run_parallel
from hf_balancemix.compare.progress import Overview, Speeds, training_steps
from hf_balancemix.compare.results import Results
from hf_balancemix.compare.run import clear_remains, log_file, run_here
from hf_balancemix.compare.show import print_file, print_tables
from hf_balancemix.messages import mistake
from hf_balancemix.recipe.job import Job
from hf_balancemix.recipe.options import check_writable


def main(argv: Sequence[str] | None = None) -> None:
    """Compare methods; every user mistake ends in one line and exit status 2, a failed run in status 1.

    Args:
        argv: The words of the command line; by default those of this process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    run_with_clear_errors(lambda: _main(words), hint="To go on: the same command")


def _main(words: list[str]) -> None:
    options = read_options(words)
    folder = f"runs/compare/{options.dataset}"
    if options.show and not options.from_file:
        print_file(options, folder)
        return
    requests = read_requests(options.recipe, options.grid, options.words, folder)
    output_dir = requests[0].command.output_dir
    results = Results(output_dir)
    if options.show:
        print_tables(results, options, plan_cells(options.recipe, requests, {}))
        return
    check_writable(output_dir)
    disable_shard_bars()
    with redirect_stdout(sys.stderr):  # standard output is for the tables
        jobs = load_jobs(options.recipe, requests)
    cells = plan_cells(options.recipe, requests, jobs)
    if options.dry_run:
        print_estimate(once(cells), jobs, results, options.parallel)
        return
    _check_processes(options)
    lock = FileLock(output_dir / ".lock")
    main_process = PartialState().is_main_process
    try:
        if main_process:
            lock.acquire(timeout=0)
    except Timeout:
        raise mistake(
            f"no other comparison at work in {output_dir}", "one", "Wait for it, or choose another --output_dir"
        ) from None
    try:
        failed = _run(options, once(cells), jobs, results, words)
    finally:
        if main_process:
            lock.release()
    if main_process:
        print_tables(results, options, cells)
        _print_failed(failed, once(cells), output_dir)
    if failed:
        raise SystemExit(1)


def _run(
    options: Options, cells: Sequence[Cell], jobs: dict[str, Job], results: Results, words: Sequence[str]
) -> dict[str, str]:
    """Run what is not finished; return what went wrong, by the cell's id."""
    state = PartialState()
    known = {cell_id(line["settings"]) for line in results.read()}
    state.wait_for_everyone()  # before the first process writes: all must have read the same
    pending = [cell for cell in cells if cell.id not in known]
    if state.is_main_process:
        clear_remains(results.path.parent, [cell for cell in cells if cell.id in known], options.keep_models)
        note = f"{len(cells)} runs, {len(cells) - len(pending)} of them finished earlier: {results.path}"
        tqdm.write(note, file=sys.stderr)
    if not pending:
        return {}
    overview = Overview(
        pending,
        {cell.id: training_steps(cell, jobs[cell.request.data_key]) for cell in pending},
        Speeds(results.read_times()),
        finished=len(cells) - len(pending),
        at_once=options.parallel,
        shown=state.is_main_process,
    )
    try:
        if options.parallel > 1:
            return run_parallel(pending, options.parallel, words, results, overview, options.keep_models)
        return run_here(pending, jobs, results, overview, options.keep_models)
    finally:
        overview.close()


def _check_processes(options: Options) -> None:
    if options.parallel > 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise mistake(
            "--parallel in a single process",
            f"{os.environ['WORLD_SIZE']} processes",
            "Leave out the launcher to run several runs at a time, or --parallel to run each over all processes",
        )


def _print_failed(failed: dict[str, str], cells: Sequence[Cell], output_dir: Path) -> None:
    if not failed:
        return
    tqdm.write(f"\n{len(failed)} runs failed; the same command tries them again:", file=sys.stderr)
    for cell in cells:
        if cell.id in failed:
            tqdm.write(f"  {cell.label}: {failed[cell.id]}\n    {log_file(output_dir, cell)}", file=sys.stderr)
