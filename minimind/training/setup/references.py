"""The run's references: one per table of pairs, live or cached, each checked against the policy's start weights.

policy with start weights + tables -> open_references -> Reference for each table; None if no loss needs one
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minimind.data.loader import Layout
from minimind.data.packs import PackedPairs
from minimind.data.pair_tables import PairTables
from minimind.engine.policy import Policy
from minimind.engine.reference import LiveReference, Reference
from minimind.engine.reference_cache import CachedReference, ReferenceCache
from minimind.objective.losses import Need
from minimind.ranks.watch import Watch
from minimind.training.console import Console
from minimind.training.setup.prepare import Prepared
from minimind.training.setup.start_check import check_start

# Pairs of each file that every rank compares before the first step.
_CHECKED = 2
# Seconds between two progress messages.
_PROGRESS = 10.0


def open_references(
    prepared: Prepared,
    policy: Policy,
    tables: Sequence[PairTables],
    layout: Layout,
    described: Mapping[str, Any],
    console: Console,
    watch: Watch,
) -> Sequence[Reference | None]:
    """One reference for each table. The policy must still have its start weights, because they are compared with it.

    Args:
        described: what the reference's log-probs depend on, besides pairs, dtype and layout.

    Raises:
        TrainingError: on every rank, if policy and reference are not the same model, or cached log-probs differ from
            those that the model gives now.
    """
    if Need.REFERENCE not in prepared.objective.needs:
        return [None] * len(tables)
    config = prepared.settings.config
    references: list[Reference]
    if config.engine.reference == "live":
        # One engine serves all tables.
        references = [_live_reference(prepared, policy, watch.tick)] * len(tables)
    else:
        # Version 0.1 computed padded rows with SDPA in every model; its caches must not be read.
        kind = "packed" if isinstance(layout([tables[0][0]]), PackedPairs) else "padded, the model's own attention"
        about = {**described, "dtype": config.optimisation.dtype, "layout": kind}
        assert config.data.cache_dir is not None
        folder = Path(config.data.cache_dir)
        # One cache for each source, so that another mix of the same sources finds them.
        caches = [[ReferenceCache(folder, part, about, policy.world) for part in table.tables] for table in tables]
        _fill([cache for parts in caches for cache in parts], prepared, policy, layout, console, watch)
        references = [CachedReference(parts, policy.world.device) for parts in caches]
    for table, reference in zip(tables, references, strict=True):
        # Pairs from all over the sources, different ones on each rank.
        ranks = policy.world.size
        spread = np.linspace(0, len(table) - 1, _CHECKED * ranks).astype(int)[policy.world.rank :: ranks]
        batch = layout([table[int(index)] for index in spread])
        check_start(policy, reference, batch, config.optimisation.dtype, prepared.objective, table.place)
    return references


def _fill(
    caches: Sequence[ReferenceCache],
    prepared: Prepared,
    policy: Policy,
    layout: Layout,
    console: Console,
    watch: Watch,
) -> None:
    """Score the pairs that no cache contains. An engine is built only if there are any, and freed afterwards."""
    reference: LiveReference | None = None
    for cache in caches:
        known, total = cache.num_known, len(cache)
        console.say(f"  reference of {cache.table.source.short_name}: {known} of {total} pairs are in {cache.folder}")
        if known == total:
            continue
        watch.enter("scoring the reference")
        if reference is None:
            reference = _live_reference(prepared, policy, watch.tick)
        started = shown = time.monotonic()
        for done in cache.fill(reference, layout, watch.tick):
            now = time.monotonic()
            if now - shown >= _PROGRESS or done == total:
                left = datetime.timedelta(seconds=round((now - started) / (done - known) * (total - done)))
                rate = (done - known) / (now - started)
                console.say(f"    {done}/{total} pairs scored, {rate:.1f} pairs/s, {left} left")
                shown = now
    # Training needs this memory.
    if reference is not None:
        reference.close()


def _live_reference(prepared: Prepared, policy: Policy, on_progress: Callable[[], object]) -> LiveReference:
    attention = prepared.settings.config.engine.attention
    return LiveReference(prepared.source, prepared.reference_config, policy.world, attention, on_progress)
