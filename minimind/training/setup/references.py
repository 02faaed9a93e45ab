"""The run's references: one per table of pairs, live or cached, each checked before the first step.

policy with start weights + tables -> open_references -> Reference for each table; None if no loss needs one

A reference of the start weights must give the policy's log-probs; of one that is another model they must be finite.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minimind.data.packs import Layout, PackedPairs, PairBatch
from minimind.data.pair_tables import PairTables
from minimind.engine.adapted_reference import AdaptedReference
from minimind.engine.moving_reference import MovingReference
from minimind.engine.policy import Policy
from minimind.engine.reference import LiveReference, ModelReference, Reference
from minimind.engine.reference_cache import CachedReference, ReferenceCache
from minimind.objective.losses import Need, Objective
from minimind.objective.reference_update import parse_reference_update
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.setup.adapters import NO_QUANTIZATION
from minimind.training.setup.prepare import Prepared
from minimind.training.setup.start_check import check_finite, check_start

# Pairs of each file that every rank compares before the first step.
_CHECKED = 2
# Seconds between two progress messages.
_PROGRESS = 10.0


class ReferenceEngine:
    """What computes the reference: an engine, built when it is needed for the first time, or the policy's own model."""

    def __init__(self, prepared: Prepared, policy: Policy, on_progress: Callable[[], object]) -> None:
        self._prepared, self._policy, self._world, self._on_progress = prepared, policy, policy.world, on_progress
        self._engine: LiveReference | None = None

    def get(self) -> ModelReference:
        """The policy without its adapters if it has any and no other reference was given, else the engine."""
        if self._prepared.adapters is not None and self._prepared.other_reference is None:
            return AdaptedReference(self._policy, self._prepared.settings.config)
        return self.live()

    def live(self) -> LiveReference:
        """The engine. All ranks must call."""
        if self._engine is None:
            run = self._prepared
            attention = run.settings.config.engine.attention
            self._engine = LiveReference(
                run.reference_source, run.reference_config, self._world, attention, self._on_progress
            )
        return self._engine

    def close(self) -> None:
        """Free the engine's memory, if it was built."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def moving_reference(prepared: Prepared, engine: ReferenceEngine, console: Console) -> MovingReference | None:
    """What moves the live reference, as --reference_update says; None if it stays."""
    given = prepared.settings.config.engine.reference_update
    if given is None:
        return None
    update = parse_reference_update(given)
    console.say(f"  the reference moves: {update}")
    return MovingReference(engine.live(), prepared.reference_source, update)


def open_references(
    prepared: Prepared,
    policy: Policy,
    engine: ReferenceEngine,
    tables: Sequence[PairTables],
    layout: Layout,
    described: Mapping[str, Any],
    console: Console,
    watch: Watch,
    another: bool = False,
) -> Sequence[Reference | None]:
    """One reference for each table. The policy must still have its start weights, because they are compared with it.

    Args:
        engine: the live reference.
        described: what the reference's log-probs depend on, besides pairs, dtype and layout.
        another: the reference is another model than the policy's start weights.

    Raises:
        TrainingError: on every rank, if policy and reference are not the same model, or cached log-probs differ from
            those that the model gives now.
    """
    if Need.REFERENCE not in prepared.objective.needs:
        return [None] * len(tables)
    assert isinstance(prepared.objective, Objective)  # no other objective needs a reference
    config = prepared.settings.config
    references: list[Reference]
    if config.engine.reference == "live":
        # One engine serves all tables.
        references = [engine.get()] * len(tables)
    else:
        # Version 0.1 computed padded rows with SDPA in every model; its caches must not be read.
        kind = "packed" if isinstance(layout([tables[0][0]]), PackedPairs) else "padded, the model's own attention"
        about = {**described, **_own_reference(prepared), "dtype": config.optimisation.dtype, "layout": kind}
        assert config.data.cache_dir is not None
        folder = Path(config.data.cache_dir)
        # One cache for each source, so that another mix of the same sources finds them.
        caches = [[ReferenceCache(folder, part, about, policy.world) for part in table.tables] for table in tables]
        _fill([cache for parts in caches for cache in parts], engine, layout, console, watch)
        # Training needs this memory.
        engine.close()
        references = [CachedReference(parts, policy.world.device) for parts in caches]
    for table, reference in zip(tables, references, strict=True):
        batch = _checked_pairs(table, layout, policy.world)
        if another or _starts_from_another_adapter(prepared):
            check_finite(policy, reference, batch, table.place)
        else:
            check_start(policy, reference, batch, config.optimisation.dtype, prepared.objective, table.place)
    return references


def _checked_pairs(table: PairTables, layout: Layout, world: World) -> PairBatch:
    """Pairs from all over the sources, different ones on each rank."""
    spread = np.linspace(0, len(table) - 1, _CHECKED * world.size).astype(int)[world.rank :: world.size]
    return layout([table[int(index)] for index in spread])


def _own_reference(prepared: Prepared) -> dict[str, str]:
    """What differs between the reference within a policy with adapters and its start weights.

    Nothing, if the reference is the base as it is; so its cache serves training of all weights too.
    """
    config = prepared.settings.config.adapters
    if prepared.adapters is None or prepared.other_reference is not None:
        return {}
    adapter = {"adapter": prepared.adapters.fingerprint()} if config.lora_reference == "start" else {}
    return adapter if config.quantize == NO_QUANTIZATION else {**adapter, "quantize": config.quantize}


def _starts_from_another_adapter(prepared: Prepared) -> bool:
    """Whether the policy starts with an adapter that its reference does not have."""
    config = prepared.settings.config.adapters
    return config.from_adapter is not None and config.lora_reference == "base"


def _fill(
    caches: Sequence[ReferenceCache],
    engine: ReferenceEngine,
    layout: Layout,
    console: Console,
    watch: Watch,
) -> None:
    """Score the pairs that no cache contains. The engine is built only if there are any."""
    for cache in caches:
        known, total = cache.num_known, len(cache)
        console.say(f"  reference of {cache.table.source.short_name}: {known} of {total} pairs are in {cache.folder}")
        if known == total:
            continue
        watch.enter("scoring the reference")
        reference = engine.get()
        started = shown = time.monotonic()
        for done in cache.fill(reference, layout, watch.tick):
            now = time.monotonic()
            if now - shown >= _PROGRESS or done == total:
                left = datetime.timedelta(seconds=round((now - started) / (done - known) * (total - done)))
                rate = (done - known) / (now - started)
                console.say(f"    {done}/{total} pairs scored, {rate:.1f} pairs/s, {left} left")
                shown = now
