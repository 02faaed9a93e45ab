"""Builds the report: every statistic of the pairs, conversations or texts that a run would train on.

Inputs, LoadedPairs -> build_report -> Report
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from minimind.data.pair_tables import PairTables
from minimind.data.reasons import described
from minimind.data.sampler import PairSampler
from minimind.data.table import PairTable
from minimind.data.tokens import END_CUT, WRONG
from minimind.errors import ConfigError, WeightsError
from minimind.inspection import findings
from minimind.inspection.answers import AnswerReport, read_sample
from minimind.inspection.cost import Cost, Memory, plan_memory
from minimind.inspection.equal_pairs import find_equal
from minimind.inspection.flags import OwnFlags
from minimind.inspection.items import ITEMS, ItemKind
from minimind.inspection.lengths import LIMITS, describe_lengths, length_bias, try_limits
from minimind.inspection.loading import LoadedPairs, objective_of
from minimind.inspection.opening import Inputs
from minimind.inspection.packing import Packing, measure_packing
from minimind.inspection.pairs import gather, right, selected
from minimind.inspection.report import STOPS, Finding, Report
from minimind.inspection.rows import SourceReport, describe_source
from minimind.inspection.scores import describe_scores
from minimind.inspection.texts import read_answers, read_item, spread
from minimind.plan.check import this_machine
from minimind.plan.choice import Machine
from minimind.plan.sizes import ModelSizes
from minimind.ranks.world import World
from minimind.training.row_report import row_messages
from minimind.training.setup.prepare import policy_sizes
from minimind.training.setup.training_data import count_steps, pair_sampler

# Pairs whose answers are read, and pairs that are shown.
_READ, _SHOWN = 10_000, 10
# Reasons of wrong rows in an error.
_REASONS = 4


def build_report(inputs: Inputs, loaded: LoadedPairs, own: OwnFlags, world: World, command: str) -> Report:
    """Everything that there is to say about the data of a run.

    Args:
        world: of the run that is planned.
        command: that trains.

    Raises:
        ConfigError: the pairs do not fill one global batch.
    """
    config = loaded.settings.config
    kind = ITEMS[config.items]
    usable = gather(loaded.tables, right)
    trained, held_out = gather(loaded.tables, selected), gather(loaded.held_out, selected)
    tables = PairTables(tables=loaded.tables)
    objective = objective_of(inputs)
    balanced = objective is None or not objective.depends_on_split
    sampler = pair_sampler(config, tables, world.size, balanced=balanced)
    steps = _steps(sampler, loaded)
    inputs_of_rows = _inputs(loaded.tables, config.rows)
    packing = measure_packing(sampler, steps, inputs_of_rows, tables.packed_tokens, config.data.max_seq_len)
    longest = np.sort(usable.longest)
    report = Report(
        items=config.items,
        sources=tuple(_sources(loaded.tables, loaded)),
        eval_sources=tuple(_sources(loaded.held_out, loaded)),
        pairs=len(tables),
        eval_pairs=sum(map(len, loaded.held_out)),
        max_seq_len=config.data.max_seq_len,
        on_long_row=config.data.on_long_row,
        enough_limit=int(longest[math.ceil(0.99 * len(longest)) - 1]),
        whole_limit=int(longest[-1]),
        lengths=describe_lengths(usable, kind),
        limits=try_limits(usable, LIMITS, config.data.max_seq_len, config.data.on_long_row),
        bias=length_bias(usable) if kind.has_two else None,
        scores=describe_scores(loaded.tables, config.data.filter_score_gap),
        equal=find_equal(trained, held_out, kind),
        answers=_answers(inputs, loaded.tables, kind),
        packing=packing,
        cost=_cost(inputs, loaded, own, world, sampler, steps, packing),
        examples=tuple(read_item(*at, inputs.tokenizer, kind) for at in spread(loaded.tables, _SHOWN)),
        findings=(),
        command=command,
    )
    return dataclasses.replace(report, findings=findings.ordered(_find(report, inputs, loaded)))


def _steps(sampler: PairSampler, loaded: LoadedPairs) -> int:
    """Steps of the run; where there are too few rows for one, the error names those that are refused."""
    config = loaded.settings.config
    try:
        return count_steps(sampler, config)
    except ConfigError as error:
        refused = [
            f"{table.source.name}: {len(table.bad)} of {table.total_rows} rows are wrong: "
            + "; ".join(described(table.source, table.bad, _REASONS))
            for table in loaded.tables
            if table.bad
        ]
        raise ConfigError("; ".join([str(error), *refused])) from error


def _find(report: Report, inputs: Inputs, loaded: LoadedPairs) -> Iterator[Finding]:
    obstacles = [*loaded.obstacles, *([inputs.obstacle] if inputs.obstacle else [])]
    yield from (Finding(kind=STOPS, text=f"The run would stop: {obstacle}") for obstacle in obstacles)
    yield from findings.about_rows((*report.sources, *report.eval_sources), loaded.settings.config.data.on_bad_row)
    yield from findings.about_lengths(report)
    yield from findings.about_bias(report.bias)
    yield from findings.about_scores(report.scores)
    yield from findings.about_equal(report.equal, report.kind)
    yield from findings.about_answers(report.answers, report.kind)
    yield from findings.about_cost(report.cost, report.eval_pairs, report.kind)


def _sources(tables: Sequence[PairTable], loaded: LoadedPairs) -> Iterator[SourceReport]:
    for table in tables:
        usable = int((table.cuts & WRONG == 0).sum())
        yield describe_source(table, usable, row_messages(table, loaded.settings.config.data))


def _inputs(tables: Sequence[PairTable], rows: int) -> NDArray[np.int64]:
    """Tokens of the rows of each selected item that the model reads, (items, rows): all but a row's last one."""
    return np.concatenate([np.diff(table.offsets).reshape(-1, 2)[table.selected, :rows] - 1 for table in tables])


def _answers(inputs: Inputs, tables: Sequence[PairTable], kind: ItemKind) -> AnswerReport:
    sample = (
        (
            table.source.place(int(table.lines[table.selected[index]])),
            read_answers(table, index, inputs.tokenizer, kind),
        )
        for table, index in spread([_whole(table) for table in tables], _READ)
    )
    return read_sample(sample, kind)


def _whole(table: PairTable) -> PairTable:
    """A table with the selected items that are not cut at their end, which would make empty answers of others; of a
    text that makes several rows the first."""
    items = selected(table)
    return dataclasses.replace(table, selected=items[table.cuts[items] & END_CUT == 0])


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
    # Each row in full, as a run counts its tokens per second.
    rows_of_step = loaded.settings.config.rows * sampler.global_batch_size
    rows = (packing.unpadded * packing.micro_batches / packing.steps + rows_of_step) * steps
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
