"""The batch layout of a run: packed wherever the model computes on packs what it computes for each row alone.

model, start weights, a few pairs -> choose_layout -> pack, pad, or an error: nothing inexact is trained
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from minimind.data.loader import Layout
from minimind.data.packs import pack, pad
from minimind.data.pair_tables import PairTables
from minimind.data.table import PreferencePair
from minimind.engine.policy import Policy
from minimind.errors import ConfigError
from minimind.model.family import family_of, packing_obstacle
from minimind.model.packed_attention import FLEX, VARLEN
from minimind.ranks.collectives import from_main
from minimind.training.console import Console
from minimind.training.setup.oracle import PACKED, REFUSED, Verdict, judge, probe_pairs
from minimind.training.setup.prepare import Prepared, cache_dir
from minimind.training.setup.verdicts import VerdictStore, describe_verdict


def choose_layout(prepared: Prepared, policy: Policy, table: PairTables, console: Console) -> Layout:
    """Packed rows if the model computes them exactly, else rows padded to the longest of a micro-batch.

    Raises:
        ConfigError: on all ranks, if the model is exact in neither layout, or if rows must be padded and a flag was
            given that only works on packs.
    """
    # Any id serves where a tokenizer has no padding token: padded positions are masked.
    pad_id = prepared.tokenizer.pad_token_id or 0
    padded: Layout = functools.partial(pad, pad_id=pad_id)
    model, config = prepared.source.config, prepared.settings.config
    if family_of(model).packs_by_construction:
        return pack
    verdict = _verdict(prepared, policy, probe_pairs(table), pad_id)
    if verdict.layout == PACKED:
        return pack
    if verdict.layout == REFUSED:
        raise ConfigError(
            f"{prepared.source.origin}: a {family_of(model).label(model)} model cannot be trained here, because the "
            f"run would not compute what transformers computes for each row alone: {verdict.reason}",
            agreed=True,
        )
    flag = ""
    if config.optimisation.micro_batch_tokens:
        flag = "--micro_batch_tokens counts tokens of packs"
    elif prepared.settings.explicit("attention") and config.engine.attention in (VARLEN, FLEX):
        flag = f"--attention {config.engine.attention} is for packs"
    if flag:
        raise ConfigError(f"{flag}, and rows must be padded here: {verdict.reason}", agreed=True)
    console.say(f"  rows are padded, not packed: {verdict.reason}")
    return padded


def _verdict(prepared: Prepared, policy: Policy, pairs: Sequence[PreferencePair], pad_id: int) -> Verdict:
    """The oracle's verdict, remembered from an earlier start or new. All ranks must call."""
    config, world = prepared.settings.config, policy.world
    obstacle = packing_obstacle(prepared.source.config, config.data.max_seq_len)
    about = describe_verdict(prepared, pairs, obstacle, world.device)
    store = VerdictStore(cache_dir(config) / "verdicts", about)
    # Rank 0 reads for all: ranks that disagree about the file would wait for each other in the oracle.
    verdict = from_main(world, store.read)
    if verdict is None:
        verdict = judge(policy, pairs, pad_id, obstacle, deterministic=not config.model.dropout)
        if world.is_main:
            store.write(verdict)
    return verdict
