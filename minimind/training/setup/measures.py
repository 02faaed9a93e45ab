"""What measures a run beside its job's metrics, and what TensorBoard shows of it.

Prepared, Engines -> step_speed, other_measures -> StepMetrics;  Prepared -> board -> a listener
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence

from minimind.config import Settings
from minimind.engine.reference import ModelReference
from minimind.engine.trackers import run_name
from minimind.errors import WeightsError
from minimind.model.family import family_of
from minimind.objective.losses import Objective, RatioLoss
from minimind.plan.work import ModelWork
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.expert_load import ExpertLayers, ExpertLoad
from minimind.training.jobs.job import Job
from minimind.training.listeners.board import Board
from minimind.training.setup.engines import Engines
from minimind.training.setup.prepare import Prepared
from minimind.training.speed import Speed, Useful
from minimind.version import __version__


def step_speed(prepared: Prepared, engines: Engines, job: Job, world: World, watch: Watch, console: Console) -> Speed:
    """What measures the phases of steps and the MFU."""
    computed = isinstance(engines.references[0], ModelReference)
    # The gradient of frozen weights under adapters is not computed.
    passes = 1 + (1 if engines.policy.has_adapters else 2) + computed
    try:
        work = ModelWork.of(prepared.source.config, prepared.source.shapes())
    except WeightsError:
        work = None
    return Speed(
        world=world,
        watch=watch,
        job=job,
        useful=Useful(work=work, passes=passes),
        dtype=prepared.settings.config.optimisation.dtype,
        say=console.say,
    )


def other_measures(
    prepared: Prepared, engines: Engines, speed: Speed, world: World, console: Console
) -> Sequence[Callable[[Mapping[str, float]], Mapping[str, float]]]:
    """What StepMetrics adds to a logged step; says which mixtures are not counted, and why."""
    layers = ExpertLayers.of(engines.policy.engine.module.model)
    silent = "experts/... and the guard's rule about dead experts have nothing to say"
    if layers.counted and prepared.settings.config.engine.use_compile:
        # They were compiled before, and a hook that is compiled would make each block another one.
        console.say(f"  experts: not counted, because compiled blocks (--use_compile 1) call no hooks: {silent}")
        return (speed.reduce,)
    if layers.others:
        names = ", ".join(layers.others)
        console.say(f"  experts: not counted in {names}, which does not say what its router chose: {silent} of them")
    if not layers.counted:
        return (speed.reduce,)
    return (speed.reduce, ExpertLoad(layers.counted, world).reduce)


def shows_on_board(prepared: Prepared) -> bool:
    """Whether the run writes for TensorBoard."""
    return bool(prepared.policy_config.values.get("tensorboard", {}).get("enabled"))


def board(prepared: Prepared, engines: Engines, world: World, *, held_out: bool) -> Board:
    """The listener that writes what TensorBoard shows besides curves.

    Args:
        held_out: the run evaluates.
    """
    settings, objective = prepared.settings, prepared.objective
    loss = objective.parts[0].loss if isinstance(objective, Objective) and not objective.is_mix else None
    return Board(
        monitor=engines.policy.monitor,
        values=settings.values,
        origins=settings.origins,
        facts=_facts(prepared, settings, world),
        beta=loss.beta if isinstance(loss, RatioLoss) else None,
        pairs=isinstance(objective, Objective),
        held_out=held_out,
    )


def _facts(prepared: Prepared, settings: Settings, world: World) -> dict[str, object]:
    config, model = settings.config, prepared.source.config
    ranks = f"{world.size} rank{'s' if world.size > 1 else ''}"
    versions = {name: importlib.metadata.version(name) for name in ("torch", "deepspeed", "transformers")}
    return {
        "run": run_name(config.run),
        "job": f"{config.name}, {prepared.objective.describe()}",
        "model": f"{family_of(model).label(model)}, weights from {prepared.source.origin}",
        "on": f"{ranks} on {world.device.type}, ZeRO-{prepared.policy_config.stage}, {config.optimisation.dtype}",
        "versions": ", ".join(f"{name} {version}" for name, version in {"minimind": __version__, **versions}.items()),
    }
