"""A run from the command line to the last file.

argv -> parse -> start ranks -> prepare -> load data -> open run -> build engines -> assemble -> resume -> train
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from minimind.config import DPOConfig, JobConfig, Settings, parse_settings
from minimind.diagnosis.command import report_finished
from minimind.engine.start import start_rank
from minimind.ranks.collectives import agree, from_main, gather
from minimind.ranks.preflight import check_alike
from minimind.ranks.process import PREEMPTED, end, tell_errors, user_errors
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.folder import drop_ledger_after, drop_metrics_after
from minimind.training.folder_lock import FolderLock
from minimind.training.loop import Run, train
from minimind.training.outlook import report_outlook
from minimind.training.setup.assemble import assemble_run
from minimind.training.setup.attention import choose_attention_backend
from minimind.training.setup.engines import Engines, build_engines
from minimind.training.setup.open_run import OpenedRun, find_resumed, open_run
from minimind.training.setup.precision import lacks_bfloat16
from minimind.training.setup.prepare import PATH_FLAGS, Prepared, input_paths, prepare
from minimind.training.setup.resume import describe_reshard
from minimind.training.setup.tracking import open_tracker
from minimind.training.setup.training_data import load_data
from minimind.training.startup_report import report_data, report_settings
from minimind.training.tokenising_line import TokenisingLine

# Settings that may differ between machines: paths, of which the contents are compared, and local resources.
_LOCAL_SETTINGS = (*PATH_FLAGS, "cache_dir", "num_workers")


def main(argv: Sequence[str] | None = None, job: type[JobConfig] = DPOConfig) -> None:
    """Train, then end the process: with status 0 after a finished run, `PREEMPTED` after a run that was asked to stop
    and has saved a checkpoint, another status after a failure.

    Args:
        job: configuration class of the job.
    """
    with user_errors():
        # Flags are parsed before the ranks meet, so that --help and a wrong flag need no process group.
        settings = _parse(sys.argv[1:] if argv is None else argv, job)
        started = start_rank(settings.config.run.timeout, settings.config.engine.disable_patches)
        with tell_errors(started.watch):
            finished = _run(settings, started.world, started.watch)
            end(0 if finished else PREEMPTED, started)


def _run(settings: Settings, world: World, watch: Watch) -> bool:
    """Prepare and train; returns whether the run was finished, rather than asked to stop."""
    _check_ranks_alike(settings, world)
    watch.enter("loading")
    # Held until this process ends. Finding a checkpoint may rename damaged ones, so the lock comes first.
    lock = FolderLock(Path(settings.config.run.save_dir))
    from_main(world, lambda: lock.acquire(create=False))
    checkpoint = find_resumed(settings.config, world, watch)
    # A file can be missing on one machine only; `agree` raises the error on all ranks, so none waits for another.
    # One slow machine decides for all, because all ranks must train in the same precision.
    without_bfloat16 = any(gather(world, lacks_bfloat16(world)))
    prepared = agree(world, lambda: prepare(settings, world, checkpoint, without_bfloat16=without_bfloat16))
    assert prepared is not None
    return run_training(prepared, world, watch, lock)


def run_training(prepared: Prepared, world: World, watch: Watch, lock: FolderLock) -> bool:
    """Set up and train; returns whether the run was finished, rather than asked to stop.

    Args:
        lock: of the run's folder; taken here if the folder did not exist before.
    """
    console = Console(world.is_main)
    report_settings(prepared, console, world)
    watch.enter("tokenising")
    data = load_data(prepared, world, TokenisingLine(console, watch.tick))
    report_data(console, data, prepared.settings.config, prepared.objective)
    if world.is_main:
        report_outlook(prepared, data, console)
    prepared = choose_attention_backend(prepared, world, watch, data, console)
    from_main(world, lambda: lock.acquire(create=True))
    opened = open_run(prepared, data, world, watch, console)
    tracker = open_tracker(prepared, world)
    engines = build_engines(prepared, data, opened, world, watch, console)
    if tracker is not None:
        engines.policy.monitor.add("swanlab", tracker)
    run = assemble_run(prepared, data, opened, engines, world, watch, console)
    _resume(prepared, opened, run, engines, console)
    try:
        # Errors of the loop are printed below the progress line, not into it.
        finished = train(run, opened.start)
    finally:
        console.stop()
    # Monitors that upload must be done before `end` leaves the process without the interpreter's shutdown.
    engines.policy.close()
    if finished:
        _report_finished(prepared, run, console)
    return finished


def _parse(argv: Sequence[str], job: type[JobConfig]) -> Settings:
    # All ranks of a machine get the same flags, so its first rank speaks for them. Other machines may differ.
    return parse_settings(argv, job, agreed=os.environ.get("LOCAL_RANK", "0") != "0")


def _check_ranks_alike(settings: Settings, world: World) -> None:
    """Refuse ranks with different settings, programs or files."""
    shared = {f"--{name}": value for name, value in settings.values.items() if name not in _LOCAL_SETTINGS}
    check_alike(world, shared, input_paths(settings.config), Path(settings.config.run.save_dir))


def _resume(prepared: Prepared, opened: OpenedRun, run: Run, engines: Engines, console: Console) -> None:
    """Load the checkpoint that --from_resume found, if any."""
    folder, checkpoint = Path(prepared.settings.config.run.save_dir), prepared.checkpoint
    if checkpoint is None:
        if prepared.settings.config.run.from_resume:
            console.say(f"  no checkpoint in {folder}: starting at step 0")
        return
    for name, problem in checkpoint.damaged.items():
        console.say(f"  {name} is damaged and renamed to {name}.damaged: {problem}")
    # Reading may take minutes; the watch reports progress under this phase.
    run.watch.enter("resuming")
    # open_run refuses a checkpoint where the run itself cannot write any.
    assert opened.checkpoints is not None
    opened.checkpoints.load(run.policy, checkpoint, engines.moving)
    run.events.restore(checkpoint.manifest.listeners)
    console.say(f"  resuming after step {opened.start}{describe_reshard(checkpoint, opened.described)}")
    for message in from_main(run.world, lambda: drop_metrics_after(folder, opened.start)):
        console.say(f"  {message}")
    from_main(run.world, lambda: drop_ledger_after(folder, opened.start))


def _report_finished(prepared: Prepared, run: Run, console: Console) -> None:
    done = f"Finished {run.total_steps} steps"
    if run.halt.step is not None and run.halt.step < run.total_steps:
        done = f"Ended after step {run.halt.step} of {run.total_steps}: {run.halt.reason}"
    console.say(f"\n{done}. Everything is in {prepared.settings.config.run.save_dir}")
    if run.world.is_main:
        console.say(f"    {report_finished(Path(prepared.settings.config.run.save_dir))}")
    if (tensorboard := prepared.policy_config.values.get("tensorboard", {})).get("enabled"):
        console.say(f"    tensorboard --logdir {tensorboard['output_path']}")
