"""Builds the engines: the policy, the batch layout that it computes exactly, and the references.

Prepared + TrainingData -> build_engines -> Engines
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from minimind import native
from minimind.data.packs import Layout, with_values
from minimind.engine.moving_reference import MovingReference
from minimind.engine.policy import Policy
from minimind.engine.reference import Reference
from minimind.model.family import family_of, model_identity
from minimind.objective.losses import Need
from minimind.objective.schedule import make_schedule
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.setup.adapters import base_source
from minimind.training.setup.batch_layout import choose_layout
from minimind.training.setup.open_run import OpenedRun
from minimind.training.setup.prepare import Prepared
from minimind.training.setup.references import ReferenceEngine, moving_reference, open_references
from minimind.training.setup.resume import START_WEIGHTS
from minimind.training.setup.training_data import TrainingData


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engines:
    """What computes a run's numbers.

    Attributes:
        references: one for each of the data's tables; None for losses that need no reference.
        moving: moves the reference; None if it stays.
    """

    policy: Policy
    layout: Layout
    references: Sequence[Reference | None]
    moving: MovingReference | None = None


def build_engines(
    prepared: Prepared, data: TrainingData, opened: OpenedRun, world: World, watch: Watch, console: Console
) -> Engines:
    """Build the policy with its start weights, and the references, and compare them.

    Raises:
        TrainingError: on every rank, if policy and reference differ.
    """
    config = prepared.settings.config
    watch.enter("building")
    if world.on_cpu:
        # Compiling runs in the background while the policy's weights are read.
        native.prepare(
            kernels=config.engine.kernels == native.AUTO and config.optimisation.dtype == "bfloat16",
            heap=config.engine.keep_memory,
        )
    policy = _build_policy(prepared, data.total_steps, world, watch)
    # After the policy is built: memory that only the initialisation needs must go back to the system.
    if world.on_cpu and config.engine.keep_memory:
        native.keep_memory()
    if policy.frozen:
        listed = ", ".join(f"{part} ({tensors} tensors)" for part, tensors in policy.frozen.items())
        console.say(f"  frozen, because a text does not reach it: {listed}")
    # The layout is chosen before the references, because cached log-probs depend on it.
    engine = ReferenceEngine(prepared, policy, watch.tick)
    shown = prepared.reference_source
    # A reference of the same configuration computes what the policy does.
    differs = model_identity(shown.config) != model_identity(prepared.source.config)
    layout = choose_layout(prepared, policy, data.table, console, engine.live if differs else None)
    described = {"weights": opened.reference_fingerprint, **model_identity(shown.config)}
    another = opened.reference != START_WEIGHTS
    if another:
        console.say(
            f"  the reference is another model, {family_of(shown.config).label(shown.config)} from {shown.origin}: "
            "log-probs are not compared with the start weights', and the margins do not start at 0"
        )
    references = open_references(prepared, policy, engine, data.tables, layout, described, console, watch, another)
    # The reference reads neither scores nor labels.
    needs = prepared.objective.needs
    layout = with_values(
        layout, scores=Need.SCORES in needs, labels=Need.LABELS in needs, halves=Need.MISMATCHED in needs
    )
    return Engines(
        policy=policy, layout=layout, references=references, moving=moving_reference(prepared, engine, console)
    )


def _build_policy(prepared: Prepared, total_steps: int, world: World, watch: Watch) -> Policy:
    config = prepared.settings.config
    return Policy(
        base_source(config, prepared.source),
        prepared.policy_config,
        make_schedule(config.optimisation, total_steps),
        world,
        config.engine.attention,
        watch.tick,
        prepared.adapters,
        keep_start=config.adapters.lora_reference == "start",
    )
