"""The run's data: tokenised pairs, the order in which they are trained on, and the number of global steps.

sources -> PairTable of each -> PairTables -> PairSampler -> TrainingData
           or, under --streaming 1, shards (streamed_data.py) -> StreamSampler -> TrainingData
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from minimind.config import JobConfig, Settings
from minimind.config.data import DataConfig
from minimind.config.rows import streams
from minimind.data.narrowing import first_pairs, without_duplicates
from minimind.data.pair_tables import PairTables, Rows
from minimind.data.sampler import PairSampler
from minimind.data.scores import check_scores
from minimind.data.selection import CUT_PROMPT, select_pairs
from minimind.data.sets import plain_words, set_ranges, without_duplicates_in_sets
from minimind.data.shapes import Items, shape_named
from minimind.data.sources import Source, find_sources
from minimind.data.streaming.rows import StreamSampler
from minimind.data.table import PairTable, PreferencePair
from minimind.data.table_build import TokenisingListener
from minimind.data.table_cache import load_table
from minimind.errors import ConfigError, LaunchError
from minimind.objective.interface import AnyObjective
from minimind.objective.losses import Need
from minimind.objective.schedule import make_schedule
from minimind.ranks.collectives import agree, from_main, gather
from minimind.ranks.world import World
from minimind.training.jobs.kinds import kind_of
from minimind.training.setup.prepare import Prepared, cache_dir
from minimind.training.setup.problems import Problems
from minimind.training.setup.row_options import encoding_options, shape_options
from minimind.training.setup.streamed_data import open_stream

# Sources with problems that are listed: all files of a folder may have the same one.
_PROBLEMS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Data of a run.

    Attributes:
        table: the pairs that are trained on; of streamed data those of the first window that the run takes.
        eval_table: held-out pairs of all sets; None without --eval_data_path.
        eval_sets: name of each set -> its indices in `eval_table`.
        stream: order of the pairs, by global step, rank and micro-batch.
        total_steps: global steps of the run.
    """

    table: PairTables
    eval_table: PairTables | None
    stream: PairSampler | StreamSampler
    total_steps: int
    eval_sets: Mapping[str, range] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> Rows:
        """What the indices of the stream are of."""
        return self.stream.rows if isinstance(self.stream, StreamSampler) else self.table

    def first_micro_batch(self) -> list[PreferencePair]:
        """Pairs of a micro-batch, for measurements; of streamed data rows of the first window, which is there."""
        if isinstance(self.stream, StreamSampler):
            return [self.table[index] for index in range(min(len(self.table), self.stream.micro_batch_size))]
        return [self.table[index] for index in self.stream.micro_batches(1, 0)[0]]

    @property
    def identity(self) -> Mapping[str, object]:
        """What the global batches depend on besides seed, size and epochs, for manifests."""
        if isinstance(self.stream, StreamSampler):
            return self.stream.identity
        mix = [str(weight) for weight in self.stream.mix.weights]
        return {"data": self.table.key, "mix": mix, "pairs": len(self.table)}

    @property
    def tables(self) -> list[PairTables]:
        """Training pairs, then held-out pairs."""
        return [self.table] if self.eval_table is None else [self.table, self.eval_table]

    @property
    def eval_identity(self) -> str:
        """Changes with the held-out pairs and their sets; empty without any."""
        return f"{self.eval_table.key} {dict(self.eval_sets)}" if self.eval_table is not None else ""


def load_data(prepared: Prepared, world: World, listener: TokenisingListener) -> TrainingData:
    """Tokenise the sources, or read their caches, and lay out the order of pairs; all ranks call it.

    Raises:
        DataError: a source cannot be used, has rows that `--on_bad_row error` or `--on_long_row error` refuse, or has
            pairs without the scores that the loss needs.
        ConfigError: the pairs do not fill one global batch, or --pairing is given for rows without several answers.
        LaunchError: the machines have other data.
    """
    config = prepared.settings.config
    held_out = config.data.eval_data_path
    if streams(config.data):
        return _streamed(prepared, world, listener)
    table = _load_pairs(prepared, world, config.data.data_path, listener)
    eval_table = _load_pairs(prepared, world, plain_words(held_out), listener) if held_out else None
    _check_pairing(prepared.settings, [*table.tables, *(eval_table.tables if eval_table is not None else ())])
    table, eval_table = narrowed(table, eval_table, config.data)
    for tables in filter(None, (table, eval_table)):
        check_needs(prepared.objective, tables)
    stream = pair_sampler(config, table, world.size, balanced=not prepared.objective.depends_on_split)
    # Raised on all ranks at once, instead of on each rank by itself.
    total_steps = from_main(world, lambda: count_steps(stream, config))
    sets = set_ranges(eval_table, held_out) if eval_table is not None else {}
    return TrainingData(table=table, eval_table=eval_table, stream=stream, total_steps=total_steps, eval_sets=sets)


def _streamed(prepared: Prepared, world: World, listener: TokenisingListener) -> TrainingData:
    """Data of which shards are made while the run trains on others; held-out data are tokenised before."""
    config = prepared.settings.config
    steps, held_out = config.optimisation.max_steps, config.data.eval_data_path
    assert steps is not None
    eval_table = _load_pairs(prepared, world, plain_words(held_out), listener) if held_out else None
    stream, table = open_stream(prepared, world, listener)
    from_main(world, lambda: make_schedule(config.optimisation, steps))  # raises
    sets = set_ranges(eval_table, held_out) if eval_table is not None else {}
    return TrainingData(table=table, eval_table=eval_table, stream=stream, total_steps=steps, eval_sets=sets)


def _load_pairs(prepared: Prepared, world: World, words: Sequence[str], listener: TokenisingListener) -> PairTables:
    """The pairs of some sources that the run uses. One rank per machine hashes and tokenises, the others read."""
    config = prepared.settings.config
    items = kind_of(config).items(prepared.objective)

    def load_one(source: Source, known: str | None) -> PairTable:
        table = tokenized_table(config, prepared.tokenizer, source, listener, items, known=known)
        return select_table(table, config.data)

    def load(known: Sequence[str] = ()) -> PairTables:
        problems, sources = Problems(), find_sources(words)
        keys = known if len(known) == len(sources) else [None] * len(sources)
        tables = [
            problems.attempt(functools.partial(load_one, source, key))
            for source, key in zip(sources, keys, strict=True)
        ]
        problems.raise_if_any(_PROBLEMS)
        return PairTables(tables=tuple(table for table in tables if table is not None))

    is_first = world.local_rank == 0
    tables = agree(world, load, runs=is_first)
    # Files are compared before the start by samples of their bytes. The keys are hashes of all of them.
    keys = _alike(world, words, None if tables is None else [table.key for table in tables.tables])
    others = agree(world, lambda: load(keys), runs=not is_first)
    loaded = tables if is_first else others
    assert loaded is not None
    return loaded


def _alike(world: World, words: Sequence[str], keys: list[str] | None) -> list[str]:
    """The keys of all tables, from ranks that have them; None: this one does not. All ranks must call.

    Raises:
        LaunchError: the machines have other data.
    """
    found = {rank: of for rank, of in enumerate(gather(world, keys)) if of is not None}
    first = next(iter(found))
    different = [rank for rank, of in found.items() if of != found[first]]
    if different:
        raise LaunchError(
            f"{' '.join(words)}: the data of {world.name([first])} and of {world.name(different[:1])} differ; give all "
            "machines the same files",
            agreed=True,
        )
    return found[first]


def tokenized_table(
    config: JobConfig,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    listener: TokenisingListener,
    items: Items = Items.PAIRS,
    *,
    known: str | None = None,
) -> PairTable:
    """The table of a source, from the cache or tokenised now, with all pairs selected.

    Args:
        items: what rows become.
        known: its key, if another rank of this machine has loaded it.

    Raises:
        DataError: the source cannot be used.
    """
    data = config.data
    return load_table(
        source,
        tokenizer,
        max_length=data.max_seq_len,
        options=encoding_options(data, tokenizer),
        shapes=dataclasses.replace(shape_options(data, source), items=items),
        cut_prompt=data.on_long_row == CUT_PROMPT,
        long_text=data.on_long_row if items is Items.TEXTS else "",
        num_workers=data.num_workers,
        cache_dir=cache_dir(config),
        listener=listener,
        known=known,
    )


def select_table(table: PairTable, config: DataConfig) -> PairTable:
    """The table with the pairs that the run uses.

    Raises:
        DataError: what `--on_bad_row error` and `--on_long_row error` refuse, or no pair is left.
    """
    return select_pairs(
        table,
        on_bad_row=config.on_bad_row,
        on_long_row=config.on_long_row,
        filter_score_gap=config.filter_score_gap,
    )


def narrowed(
    table: PairTables, eval_table: PairTables | None, config: DataConfig
) -> tuple[PairTables, PairTables | None]:
    """Training pairs and held-out pairs as `--dedup` and `--limit` leave them; the limit is for training pairs."""
    if config.dedup:
        table = without_duplicates(table)
        eval_table = eval_table and without_duplicates_in_sets(eval_table, config.eval_data_path)
    return first_pairs(table, config.limit) if config.limit else table, eval_table


def pair_sampler(config: JobConfig, table: PairTables, ranks: int, *, balanced: bool = True) -> PairSampler:
    """The order of a run's pairs, and their distribution over ranks and micro-batches.

    Args:
        balanced: micro-batches cost about the same; else each has consecutive pairs.
    """
    return PairSampler(
        mix=table.mix,
        epochs=config.optimisation.epochs,
        micro_batch_size=config.optimisation.batch_size,
        accumulation_steps=config.optimisation.accumulation_steps,
        world_size=ranks,
        shuffle=config.data.shuffle,
        seed=config.data.seed,
        costs=table.costs if balanced else None,
        tokens=table.packed_tokens,
        token_budget=config.optimisation.micro_batch_tokens,
    )


def check_needs(objective: AnyObjective, tables: PairTables) -> None:
    """Check that the pairs have what the losses need of them besides their answers.

    Raises:
        DataError: on every rank, if some have not.
    """
    if Need.SCORES in objective.needs:
        check_scores(tables, objective.name, above=Need.SCORE_GAPS in objective.needs)


def _check_pairing(settings: Settings, tables: list[PairTable]) -> None:
    """Flags about rows of several answers are for data that has such rows."""
    given = [f"--{name}" for name in ("pairing", "score_gap") if settings.explicit(name)]
    if given and not any(shape_named(name).several for table in tables for name in table.shapes):
        raise ConfigError(f"{' and '.join(given)}: no row has several answers with scores or ranks", agreed=True)


def count_steps(stream: PairSampler, config: JobConfig) -> int:
    """Global steps of a run.

    Raises:
        ConfigError: the pairs do not fill one global batch, or the steps are too few for the learning-rate schedule.
    """
    total = stream.total_steps
    if not total:
        raise ConfigError(
            f"{sum(stream.mix.sizes)} {config.items} x {stream.epochs} epochs do not fill one global batch of "
            f"{stream.global_batch_size}; lower --batch_size or --accumulation_steps, or use fewer ranks"
        )
    total = min(total, config.optimisation.max_steps or total)
    make_schedule(config.optimisation, total)  # raises
    return total
