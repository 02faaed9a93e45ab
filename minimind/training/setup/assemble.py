"""Puts a run together: job, listeners and everything else that the loop needs.

Prepared, TrainingData, OpenedRun, Engines -> assemble_run -> Run
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from minimind.data.loader import train_batches
from minimind.data.packs import Batch
from minimind.data.streaming.rows import StreamSampler
from minimind.diagnosis.pair_signals import COLUMNS
from minimind.objective.losses import Need
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.best import parse_early_stop, parse_save_best
from minimind.training.console import Console
from minimind.training.events import Events, Halt, Listener
from minimind.training.export import BEST, export_best, export_weights
from minimind.training.findings import FindingsFile
from minimind.training.jobs.job import Job
from minimind.training.jobs.kinds import Parts, kind_of
from minimind.training.listeners.batch_statistics import BatchStatistics
from minimind.training.listeners.best_weights import BestWeights
from minimind.training.listeners.evaluation import Evaluation
from minimind.training.listeners.guard import Guard
from minimind.training.listeners.ledger import LedgerFiles, kept_values
from minimind.training.listeners.metrics_file import MetricsFile
from minimind.training.listeners.progress import Progress
from minimind.training.listeners.reference_updates import ReferenceUpdates
from minimind.training.listeners.sample_files import SampleFiles
from minimind.training.listeners.saving import Saving
from minimind.training.listeners.stream_report import StreamReport
from minimind.training.loop import Run
from minimind.training.metrics import StepMetrics
from minimind.training.nonfinite import NonFiniteReport
from minimind.training.setup.engines import Engines
from minimind.training.setup.evaluation_checks import evaluated_metrics
from minimind.training.setup.measures import board, other_measures, shows_on_board, step_speed
from minimind.training.setup.open_run import OpenedRun
from minimind.training.setup.prepare import Prepared
from minimind.training.setup.sampling import sampling
from minimind.training.setup.training_data import TrainingData
from minimind.training.speed import Speed


def assemble_run(
    prepared: Prepared,
    data: TrainingData,
    opened: OpenedRun,
    engines: Engines,
    world: World,
    watch: Watch,
    console: Console,
) -> Run:
    """The run, with its listeners in the order in which they hear events."""
    config = prepared.settings.config
    if Need.COLLISIONS in prepared.objective.needs:
        # Only now: what is compared before training are log-probs alone.
        engines.policy.add_collisions()
    # One job per table: training and evaluation differ only in their reference.
    weights = prepared.objective.statistics
    statistics = BatchStatistics(weights_of_past=weights, world=world) if weights else None
    jobs = [
        kind_of(config).make(prepared.objective, Parts(world=world, reference=reference, statistics=statistics))
        for reference in engines.references
    ]
    speed = step_speed(prepared, engines, jobs[0], world, watch, console)
    events = Events()
    latest = opened.checkpoints.folder / "latest" if opened.checkpoints is not None else None
    ledger = _ledger(prepared, data, jobs, world, console) if config.run.ledger else None
    run = Run(
        world=world,
        watch=watch,
        policy=engines.policy,
        job=jobs[0],
        batches=lambda start: _batches(data, engines, world, start),
        total_steps=data.total_steps,
        log_interval=config.run.log_interval,
        seed=config.data.seed,
        metrics=_step_metrics(prepared, engines, jobs[0], speed, world, console),
        speed=speed,
        events=events,
        nonfinite=NonFiniteReport(folder=Path(config.run.save_dir), data=data.rows, world=world, latest=latest),
        halt=Halt(),
        met=None if ledger is None else ledger.met,
    )
    # Listeners need the run, and the run needs the events, so they are added last.
    if statistics is not None:
        events.add(statistics)  # first, so that a save at the same step writes the new means
    events.add(*_listeners(prepared, data, opened, engines, run, jobs, ledger, console))
    return run


def _step_metrics(
    prepared: Prepared, engines: Engines, job: Job, speed: Speed, world: World, console: Console
) -> StepMetrics:
    checkpoint = prepared.checkpoint
    return StepMetrics(
        world,
        job,
        checkpoint.manifest.unlogged if checkpoint is not None else {},
        clip=prepared.policy_config.values["gradient_clipping"],
        others=other_measures(prepared, engines, speed, world, console),
    )


def _batches(data: TrainingData, engines: Engines, world: World, start: int) -> Iterator[Sequence[Batch]]:
    """This rank's micro-batches of every global step after `start`."""
    return train_batches(
        data.rows,
        data.stream,
        engines.layout,
        rank=world.rank,
        start=start + 1,
        end=data.total_steps,
        pin=world.pins_memory,
    )


def _listeners(
    prepared: Prepared,
    data: TrainingData,
    opened: OpenedRun,
    engines: Engines,
    run: Run,
    jobs: Sequence[Job],
    ledger: LedgerFiles | None,
    console: Console,
) -> Iterator[Listener]:
    """Metrics are written before they are shown; evaluation and samples come before the save at the same step, and a
    move of the reference before all of them."""
    config, policy, epoch_of = prepared.settings.config, engines.policy, data.stream.epoch_of
    folder, world, watch = Path(config.run.save_dir), run.world, run.watch
    if engines.moving is not None:
        yield ReferenceUpdates(moving=engines.moving, policy=policy, watch=watch)
    if shows_on_board(prepared) and world.is_main:
        # Before the evaluation at the start: a resumed run tells TensorBoard first where it goes on.
        yield board(prepared, engines, world, held_out=data.eval_table is not None)
    yield MetricsFile(folder=folder, monitor=policy.monitor, epoch_of=epoch_of, console=console, enabled=world.is_main)
    if data.eval_table is not None:
        yield _evaluation(prepared, data, engines, run, jobs[-1], ledger)
    if ledger is not None:
        yield ledger  # it has what an evaluation at the end found before that is over
    if config.samples.is_on:
        yield sampling(prepared, data, policy, run, console)
        if world.is_main:
            on_board = shows_on_board(prepared)
            yield SampleFiles(folder=folder, monitor=policy.monitor, on_board=on_board, console=console)
    # After evaluation and samples: the checkpoint then knows their findings and their best value.
    yield _saving(prepared, data, opened, engines, run, console)
    # Its clock starts at `Start`, after the work of the listeners before it.
    yield Progress(console=console, epoch_of=epoch_of, job=run.job)
    if isinstance(data.stream, StreamSampler):
        yield StreamReport(rows=data.stream.rows, console=console)
    # After the lines about the metrics that it judges. An evaluation is over before the save of its step.
    if config.run.guard != "off":
        yield _guard(prepared, data, run, console)
    if config.run.save_best:
        yield _best_weights(prepared, data, engines, run, console)


def _evaluation(
    prepared: Prepared, data: TrainingData, engines: Engines, run: Run, job: Job, ledger: LedgerFiles | None
) -> Evaluation:
    config = prepared.settings.config
    assert data.eval_table is not None
    return Evaluation(
        table=data.eval_table,
        sets=data.eval_sets,
        layout=engines.layout,
        batch_size=config.optimisation.batch_size,
        interval=config.run.eval_interval,
        job=job,
        policy=engines.policy,
        world=run.world,
        watch=run.watch,
        steps=run.metrics,
        emit=run.events.emit,
        # For the guard, and for TensorBoard's histograms.
        keeps_pairs=(config.run.guard != "off" or shows_on_board(prepared)) and _has_pairs(job),
        keeps=() if ledger is None else tuple(ledger.values.values()),
    )


def _has_pairs(job: Job) -> bool:
    """Whether the job has one value of each pair's reward and length, none of them a mean over a part of the pairs."""
    return set(COLUMNS) <= set(job.metrics) and not set(COLUMNS) & set(job.metric_parts)


def _ledger(prepared: Prepared, data: TrainingData, jobs: Sequence[Job], world: World, console: Console) -> LedgerFiles:
    return LedgerFiles(
        folder=Path(prepared.settings.config.run.save_dir),
        values=kept_values(jobs[0], has_reference=Need.REFERENCE in prepared.objective.needs),
        table=data.table,
        eval_table=data.eval_table,
        eval_sets=data.eval_sets,
        console=console,
        world=world,
    )


def _guard(prepared: Prepared, data: TrainingData, run: Run, console: Console) -> Guard:
    needs, loss = prepared.objective.needs, prepared.objective.name
    return Guard(
        stops=prepared.settings.config.run.guard == "stop",
        log_ratios=Need.REFERENCE in needs and Need.LABELS not in needs,
        logistic=loss == "sigmoid",
        data=data.eval_identity,
        halt=run.halt,
        console=console,
        world=run.world,
        file=FindingsFile(Path(prepared.settings.config.run.save_dir), enabled=run.world.is_main),
        emit=run.events.emit,
    )


def _best_weights(prepared: Prepared, data: TrainingData, engines: Engines, run: Run, console: Console) -> BestWeights:
    config, policy, watch = prepared.settings.config, engines.policy, run.watch
    assert config.run.save_best is not None
    known = evaluated_metrics(config, prepared.objective)
    criterion = parse_save_best(config.run.save_best, known)
    return BestWeights(
        criterion=criterion,
        prefix=criterion.metric.removesuffix(known[criterion.metric]),
        patience=parse_early_stop(config.run.early_stop) if config.run.early_stop else None,
        export=lambda record: export_best(prepared, policy, watch.tick, record),
        folder=Path(config.run.save_dir) / BEST,
        data=data.eval_identity,
        halt=run.halt,
        console=console,
        world=run.world,
        watch=watch,
    )


def _saving(
    prepared: Prepared, data: TrainingData, opened: OpenedRun, engines: Engines, run: Run, console: Console
) -> Saving:
    config, policy, watch = prepared.settings.config, engines.policy, run.watch
    return Saving(
        checkpoints=opened.checkpoints,
        export=lambda: export_weights(prepared, policy, watch.tick),
        folder=Path(config.run.save_dir),
        interval=config.run.save_interval,
        policy=policy,
        moving=engines.moving,
        stream=data.stream,
        steps=run.metrics,
        events=run.events,
        console=console,
        world=run.world,
        watch=watch,
    )
