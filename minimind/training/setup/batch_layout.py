"""The batch layout of a run: packed wherever the model computes on packs what it computes for each row alone.

model, start weights, a few pairs -> choose_layout -> pack, pad, or an error: nothing inexact is trained
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from minimind.data.packs import Layout, pack, pad
from minimind.data.pair_tables import PairTables
from minimind.data.table import PreferencePair
from minimind.engine.policy import Policy
from minimind.errors import ConfigError
from minimind.model.family import family_of, packing_obstacle
from minimind.model.packed_attention import FLEX, VARLEN
from minimind.ranks.collectives import from_main
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.setup.oracle import PACKED, REFUSED, Scored, Verdict, judge, probe_pairs
from minimind.training.setup.prepare import Prepared, cache_dir
from minimind.training.setup.verdicts import VerdictStore, describe_verdict
from minimind.weights.sources import WeightSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Judged:
    """A model that must compute the layout exactly.

    Attributes:
        source: its weights and configuration.
        stage: ZeRO stage of its engine.
        engine: builds the engine, or returns it.
        dropout: it may train with dropout.
        use: what it cannot do if it is refused.
    """

    source: WeightSource
    stage: int
    engine: Callable[[], Scored]
    dropout: bool
    use: str


def choose_layout(
    prepared: Prepared,
    policy: Policy,
    table: PairTables,
    console: Console,
    reference: Callable[[], Scored] | None = None,
) -> Layout:
    """Packed rows if the model computes them exactly, else rows padded to the longest of a micro-batch.

    Args:
        reference: gives the engine of a reference that is another model, which must be exact too.

    Raises:
        ConfigError: on all ranks, if a model is exact in neither layout, or if rows must be padded and a flag was
            given that only works on packs.
    """
    # Any id serves where a tokenizer has no padding token: padded positions are masked.
    pad_id = prepared.tokenizer.pad_token_id or 0
    padded: Layout = functools.partial(pad, pad_id=pad_id)
    config = prepared.settings.config
    judged = _judged_models(prepared, policy, reference)
    reason = ""
    for one in judged:
        reason = _why_padded(prepared, one, policy.world, table, pad_id, reason)
    if not reason:
        return pack
    if len(judged) > 1:
        # The policy may have been judged on packs, and rows are padded for the reference's sake.
        _why_padded(prepared, judged[0], policy.world, table, pad_id, reason)
    flag = ""
    if config.optimisation.micro_batch_tokens:
        flag = "--micro_batch_tokens counts tokens of packs"
    elif prepared.settings.explicit("attention") and config.engine.attention in (VARLEN, FLEX):
        flag = f"--attention {config.engine.attention} is for packs"
    if flag:
        raise ConfigError(f"{flag}, and rows must be padded here: {reason}", agreed=True)
    console.say(f"  rows are padded, not packed: {reason}")
    return padded


def _judged_models(prepared: Prepared, policy: Policy, reference: Callable[[], Scored] | None) -> list[_Judged]:
    """The policy, and the reference if it is given."""
    config = prepared.settings.config
    models = [
        _Judged(
            source=prepared.source,
            stage=prepared.policy_config.stage,
            engine=lambda: policy,
            dropout=config.model.dropout or config.adapters.lora_dropout > 0,
            use="be trained here",
        )
    ]
    if reference is not None:
        models.append(
            _Judged(
                source=prepared.reference_source,
                stage=prepared.reference_config.stage,
                engine=reference,
                # It computes in eval mode only.
                dropout=True,
                use="be the reference here",
            )
        )
    return models


def _why_padded(prepared: Prepared, judged: _Judged, world: World, table: PairTables, pad_id: int, reason: str) -> str:
    """Why rows must be padded; empty if the model is exact on packs.

    Args:
        reason: why another model of the run needs padded rows; empty if none does.

    Raises:
        ConfigError: on all ranks, if the model is exact in neither layout.
    """
    model = judged.source.config
    # MiniMind's own classes: their attention over packs is tested against single rows in the suite.
    if family_of(model).packs_by_construction:
        return reason
    obstacle = reason or packing_obstacle(model, prepared.settings.config.data.max_seq_len)
    verdict = _verdict(prepared, judged, world, probe_pairs(table), pad_id, obstacle)
    if verdict.layout == REFUSED:
        raise ConfigError(
            f"{judged.source.origin}: a {family_of(model).label(model)} model cannot {judged.use}, because the "
            f"run would not compute what transformers computes for each row alone: {verdict.reason}",
            agreed=True,
        )
    return "" if verdict.layout == PACKED else verdict.reason


def _verdict(
    prepared: Prepared,
    judged: _Judged,
    world: World,
    pairs: Sequence[PreferencePair],
    pad_id: int,
    obstacle: str | None,
) -> Verdict:
    """The oracle's verdict, remembered from an earlier start or new. All ranks must call."""
    about = describe_verdict(prepared, judged.source.config, judged.stage, pairs, obstacle, world.device)
    store = VerdictStore(cache_dir(prepared.settings.config) / "verdicts", about)
    # Rank 0 reads for all: ranks that disagree about the file would wait for each other in the oracle.
    verdict = from_main(world, store.read)
    if verdict is None:
        verdict = judge(judged.engine(), pairs, pad_id, obstacle, deterministic=not judged.dropout)
        if world.is_main:
            store.write(verdict)
    return verdict
