"""What a run asks for the reference's log-probs: an engine of its own, or numbers that one has left on disk.

policy with its start weights + tables -> open_references -> one RowReference for each table, checked against the policy
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minimind.data.loader import Layout
from minimind.data.packs import PackedPairs
from minimind.data.table import PairTable
from minimind.engine.policy import Policy
from minimind.engine.reference import Reference, RowReference
from minimind.engine.reference_cache import ReferenceCache
from minimind.training.console import Console
from minimind.training.jobs.dpo import check_start
from minimind.training.setup.prepare import Prepared

# Pairs of each file that every rank compares before the first step.
_CHECKED = 2
# Seconds between two lines of progress.
_PROGRESS = 10.0


def open_references(
    prepared: Prepared,
    policy: Policy,
    tables: Sequence[PairTable],
    layout: Layout,
    about: dict[str, Any],
    console: Console,
) -> list[RowReference]:
    """One reference for each table. The policy must still have its start weights: it is what they are checked against.

    Args:
        about: what the reference's log-probs depend on, besides pairs, dtype and layout.

    Raises:
        TrainingError: on every rank, if policy and reference are not the same model, or what is kept of the reference
            is not what it gives now.
    """
    config, references = prepared.settings.config, list[RowReference]()
    if config.engine.reference == "live":
        references += [_reference(prepared, policy)] * len(tables)
    else:
        kind = "packed" if isinstance(layout([tables[0][0]]), PackedPairs) else "padded"
        about = {**about, "dtype": config.optimisation.dtype, "layout": kind}
        assert config.data.cache_dir is not None  # resolved by prepare
        caches = [ReferenceCache(Path(config.data.cache_dir), table, about, policy.world) for table in tables]
        _fill(caches, prepared, policy, layout, console)
        references += [cache.reference() for cache in caches]
    for table, reference in zip(tables, references, strict=True):
        ranks = policy.world.size
        spread = np.linspace(0, len(table) - 1, _CHECKED * ranks).astype(int)[policy.world.rank :: ranks]
        check_start(policy, reference, layout([table[int(index)] for index in spread]), config.optimisation.dtype)
    return references


def _fill(
    caches: Sequence[ReferenceCache], prepared: Prepared, policy: Policy, layout: Layout, console: Console
) -> None:
    """Score what no cache knows; an engine is built for it only then, and is gone afterwards."""
    reference: Reference | None = None
    for cache in caches:
        there, total = cache.num_known, len(cache)
        console.say(f"  reference of {cache.table.path.name}: {there} of {total} pairs are in {cache.folder}")
        if there == total:
            continue
        policy.world.watch.enter("scoring the reference")
        if reference is None:
            reference = _reference(prepared, policy)
        started = shown = time.monotonic()
        for done in cache.fill(reference, layout):
            now = time.monotonic()
            if now - shown >= _PROGRESS or done == total:
                left = datetime.timedelta(seconds=round((now - started) / (done - there) * (total - done)))
                rate = (done - there) / (now - started)
                console.say(f"    {done}/{total} pairs scored, {rate:.1f} pairs/s, {left} left")
                shown = now
    if reference is not None:
        reference.close()


def _reference(prepared: Prepared, policy: Policy) -> Reference:
    attention = prepared.settings.config.engine.attention
    return Reference(prepared.source, prepared.reference_config, policy.world, attention)
