"""Builds the report: every statistic of the pairs that a run would train on.

Inputs, LoadedPairs -> build_report -> Report
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from minimind.data.pair_tables import PairTables
from minimind.data.sampler import PairSampler
from minimind.data.table import PairTable
from minimind.data.tokens import END_CUT
from minimind.errors import WeightsError
from minimind.inspection import findings
from minimind.inspection.answers import AnswerReport, read_sample
from minimind.inspection.cost import Cost, Memory, plan_memory
from minimind.inspection.equal_pairs import find_equal
from minimind.inspection.flags import OwnFlags
from minimind.inspection.lengths import LIMITS, describe_lengths, length_bias, try_limits
from minimind.inspection.loading import LoadedPairs
from minimind.inspection.opening import Inputs
from minimind.inspection.packing import Packing, measure_packing
from minimind.inspection.pairs import gather, right, selected
from minimind.inspection.report import STOPS, Finding, Report
from minimind.inspection.rows import SourceReport, describe_source
from minimind.inspection.scores import describe_scores
from minimind.inspection.texts import read_answers, read_pair, spread
from minimind.plan.check import this_machine
from minimind.plan.choice import Machine
from minimind.plan.sizes import ModelSizes
from minimind.ranks.world import World
from minimind.training.row_report import row_messages
from minimind.training.setup.prepare import policy_sizes
from minimind.training.setup.training_data import count_steps, pair_sampler

# Pairs whose answers are read, and pairs that are shown.
_READ, _SHOWN = 10_000, 10


def build_report(inputs: Inputs, loaded: LoadedPairs, own: OwnFlags, world: World, command: str) -> Report:
    """Everything that there is to say about the data of a run.

    Args:
        world: of the run that is planned.
        command: that trains.

    Raises:
        ConfigError: the pairs do not fill one global batch.
    """
    config = loaded.settings.config
    usable = gather(loaded.tables, right)
    trained, held_out = gather(loaded.tables, selected), gather(loaded.held_out, selected)
    tables = PairTables(tables=loaded.tables)
    sampler = pair_sampler(config, tables, world.size)
    steps = count_steps(sampler, config)
    packing = measure_packing(sampler, steps, _inputs(loaded.tables), tables.packed_tokens, config.data.max_seq_len)
    longest = np.sort(usable.longest)
    report = Report(
        sources=tuple(_sources(loaded.tables, loaded)),
        eval_sources=tuple(_sources(loaded.held_out, loaded)),
        pairs=len(trained),
        eval_pairs=len(held_out),
        max_seq_len=config.data.max_seq_len,
        enough_limit=int(longest[math.ceil(0.99 * len(longest)) - 1]),
        whole_limit=int(longest[-1]),
        lengths=describe_lengths(usable),
        limits=try_limits(usable, LIMITS, config.data.max_seq_len),
        bias=length_bias(usable),
        scores=describe_scores(loaded.tables, config.data.filter_score_gap),
        equal=find_equal(trained, held_out),
        answers=_answers(inputs, loaded.tables),
        packing=packing,
        cost=_cost(inputs, loaded, own, world, sampler, steps, packing),
        examples=tuple(read_pair(*at, inputs.tokenizer) for at in spread(loaded.tables, _SHOWN)),
        findings=(),
        command=command,
    )
    return dataclasses.replace(report, findings=findings.ordered(_find(report, inputs, loaded)))


def _find(report: Report, inputs: Inputs, loaded: LoadedPairs) -> Iterator[Finding]:
    obstacles = [*loaded.obstacles, *([inputs.obstacle] if inputs.obstacle else [])]
    yield from (Finding(kind=STOPS, text=f"The run would stop: {obstacle}") for obstacle in obstacles)
    yield from findings.about_rows((*report.sources, *report.eval_sources), loaded.settings.config.data.on_bad_row)
    yield from findings.about_lengths(report.limits, report.max_seq_len, report.enough_limit)
    yield from findings.about_bias(report.bias)
    yield from findings.about_scores(report.scores)
    yield from findings.about_equal(report.equal, report.pairs)
    yield from findings.about_answers(report.answers)
    yield from findings.about_cost(report.cost, report.eval_pairs)


def _sources(tables: Sequence[PairTable], loaded: LoadedPairs) -> Iterator[SourceReport]:
    for table in tables:
        yield describe_source(table, len(right(table)), row_messages(table, loaded.settings.config.data))


def _inputs(tables: Sequence[PairTable]) -> NDArray[np.int64]:
    """Tokens of both rows of each selected pair that the model reads, (pairs, 2): all but a row's last one."""
    return np.concatenate([np.diff(table.offsets).reshape(-1, 2)[table.selected] - 1 for table in tables])


def _answers(inputs: Inputs, tables: Sequence[PairTable]) -> AnswerReport:
    sample = (
        (table.source.place(int(table.lines[table.selected[index]])), read_answers(table, index, inputs.tokenizer))
        for table, index in spread([_whole(table) for table in tables], _READ)
    )
    return read_sample(sample)


def _whole(table: PairTable) -> PairTable:
    """A table with the selected pairs that are not cut at their end, which would make empty answers of others."""
    return dataclasses.replace(table, selected=table.selected[table.cuts[table.selected] & END_CUT == 0])


def _cost(
    inputs: Inputs,
    loaded: LoadedPairs,
    own: OwnFlags,
    world: World,
    sampler: PairSampler,
    steps: int,
    packing: Packing,
) -> Cost:
    batches = packing.micro_batches / packing.steps * steps
    # Both rows of a pair in full, as a run counts its tokens per second.
    rows = (packing.unpadded * packing.micro_batches / packing.steps + 2 * sampler.global_batch_size) * steps
    memory, problem = _memory(inputs, loaded, own, world, packing)
    return Cost(
        ranks=world.size,
        global_batch=sampler.global_batch_size,
        epochs=sampler.epochs,
        steps=steps,
        tokens=round(packing.packed * batches),
        row_tokens=round(rows),
        memory=memory,
        no_memory=problem,
        seconds=None if own.tokens_per_second is None else rows / own.tokens_per_second,
    )


def _memory(
    inputs: Inputs, loaded: LoadedPairs, own: OwnFlags, world: World, packing: Packing
) -> tuple[Memory | None, str]:
    """The planned memory, or why there is none."""
    prepared = inputs.prepared
    if prepared is None:
        return None, "the run would stop"
    try:
        sizes = policy_sizes(prepared)
        reference = prepared.other_reference
        other = None if reference is None else ModelSizes.of(reference.config, reference.shapes())
    except WeightsError as error:
        return None, str(error)
    configs = (prepared.policy_config.values, prepared.reference_config.values)
    return plan_memory(sizes, loaded.settings.config, _machine(own, world), packing, *configs, other), ""


def _machine(own: OwnFlags, world: World) -> Machine:
    nodes = own.nodes or 1
    ranks_per_node = world.size // nodes
    if own.gpu_memory is not None:
        return Machine(nodes=nodes, ranks_per_node=ranks_per_node, device_memory=own.gpu_memory)
    return this_machine(world.device, world.size, ranks_per_node)
