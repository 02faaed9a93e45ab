"""The sweep from the command line to the table.

    argv -> read_flags -> plan_runs -> each run: skipped, resumed or new -> launch -> record
    all results -> table on the console, sweep.json, sweep.csv, sweep.svg, TensorBoard

Exit status: 0 all runs are finished; 1 some failed, or a flag is wrong; 75 stopped by a signal, and the same command
goes on; 128 + number after a second signal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from minimind.errors import ConfigError, one_line_errors
from minimind.ranks.exits import FAILED, PREEMPTED
from minimind.sweep.execute import LOG, Stop, deepspeed_command, launch
from minimind.sweep.flags import read_flags
from minimind.sweep.hparams import write_hparams
from minimind.sweep.plan import FAILED as RUN_FAILED
from minimind.sweep.plan import FINISHED, NEW, STARTED, STOPPED, RunPlan, plan_runs, todo, write_record
from minimind.sweep.plot import sweep_svg
from minimind.sweep.results import RunResult, read_result
from minimind.sweep.table import console_table, to_csv, to_json
from minimind.training.folder_lock import FolderLock


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sweep, then exit. An error of the user is printed in one line."""
    with one_line_errors():
        sys.exit(sweep(sys.argv[1:] if argv is None else argv))


def sweep(argv: Sequence[str]) -> int:
    """Train all combinations that are not finished; returns the exit status.

    Raises:
        MiniMindError: flags are wrong, a folder belongs to another sweep, or files cannot be written.
    """
    flags = read_flags(argv)
    plans = plan_runs(flags)
    deepspeed_command()
    # Two sweeps in one folder would start the same runs.
    lock = FolderLock(flags.save_dir)
    lock.acquire(create=True)
    work = [(plan, todo(plan)) for plan in plans]
    done = sum(what == FINISHED for _, what in work)
    print(f"{len(plans)} runs in {flags.save_dir}" + (f", {done} of them finished before" if done else ""), flush=True)
    with Stop().listening() as stop:
        for number, (plan, what) in enumerate(work, start=1):
            if what == FINISHED:
                continue
            print(f"\n=== run {number} of {len(plans)}: {plan.name}{'' if what == NEW else ' (goes on)'}", flush=True)
            _train(plan, flags.launcher, stop)
            if stop.number is not None:
                break
    lock.release()
    results = [read_result(plan) for plan in plans]
    report(flags.save_dir, results)
    if stop.number is not None:
        finished = sum(result.finished for result in results)
        print(f"\nStopped with {finished} of {len(plans)} runs finished. The same command goes on.")
        return 128 + stop.number if stop.again else PREEMPTED
    return 0 if all(result.finished for result in results) else FAILED


def _train(plan: RunPlan, launcher: Sequence[str], stop: Stop) -> None:
    """Train one combination, and note how it ended. A run that something else has stopped stops the sweep too."""
    write_record(plan, STARTED)
    status = launch(plan, launcher, stop)
    ended = {0: FINISHED, PREEMPTED: STOPPED}.get(status, RUN_FAILED)
    write_record(plan, ended, status)
    if ended == STOPPED:
        stop.ended()
    if ended == RUN_FAILED:
        print(f"\n{plan.name} FAILED with exit status {status}; the other runs go on", flush=True)


def report(folder: Path, results: Sequence[RunResult]) -> None:
    """Print the table and write sweep.json, sweep.csv, sweep.svg and TensorBoard's files.

    Raises:
        ConfigError: they cannot be written.
    """
    print(f"\n{console_table(results)}\n")
    for result in results:
        if result.problem:
            print(f"without metrics: {result.plan.name}: {result.problem}")
        if result.status == RUN_FAILED:
            print(f"FAILED: {result.plan.name}: exit status {result.exit_status}; see {result.plan.folder / LOG}")
    try:
        for name, text in (
            ("sweep.json", to_json(results)),
            ("sweep.csv", to_csv(results)),
            ("sweep.svg", sweep_svg(results)),
        ):
            (folder / name).write_text(text, encoding="utf-8")
        without = write_hparams(folder, results)
    except OSError as error:
        raise ConfigError(f"{folder}: the results cannot be written ({error})") from error
    print(f"{folder}: sweep.json, sweep.csv, sweep.svg")
    if any(folder.glob("events.out.tfevents.*")):
        print(f"    tensorboard --logdir {folder}    compares the runs under HPARAMS")
    if without:
        print(f"not in TensorBoard, because their DeepSpeed file writes none into their folders: {', '.join(without)}")
