"""The data of a run that streams: the process that tokenises ahead, and the order of rows.

    words of --data_path -> Recipe -> build now, if there is little data, or in a process of its own
    Recipe -> ShardReader -> StreamedRows -> StreamSampler, and the tables of the first window

One rank of each machine tokenises; the others read its shards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from minimind.config import JobConfig
from minimind.config.rows import RowDataConfig
from minimind.data.encoder import build_encoder
from minimind.data.pair_tables import PairTables
from minimind.data.pairs import LengthLimit
from minimind.data.shapes import Items
from minimind.data.sources import Source, find_sources
from minimind.data.streaming.builder import GONE, Process, Recipe, WordRecipe, build, describe
from minimind.data.streaming.order import Word
from minimind.data.streaming.rows import ShardReader, StreamedRows, StreamSampler
from minimind.data.streaming.shards import Policies
from minimind.data.table_build import TokenisingListener
from minimind.data.table_cache import encoder_key
from minimind.errors import DataError, LaunchError
from minimind.ranks.collectives import agree, gather
from minimind.ranks.preflight import content_hash
from minimind.ranks.world import World
from minimind.training.jobs.kinds import kind_of
from minimind.training.setup.prepare import Prepared, cache_dir
from minimind.training.setup.row_options import encoding_options, shape_options

# Data of at most so many bytes are tokenised before training: a process of its own would take longer to start.
_SMALL_BYTES = 2**22
# Steps that a rank may be behind the first rank of its machine: batches are loaded ahead.
_STEPS_BEHIND = 8
# Of the order in which the files of a word are tokenised. It is the same for every seed, so that shards are used again.
_FILE_SEED = 0
# Version of the list of shards; increase it when the same data get another list.
_FORMAT = 2
# A folder of shards, and digits of its key.
_NAME, _DIGITS = "stream-", 24


def open_stream(prepared: Prepared, world: World, listener: TokenisingListener) -> tuple[StreamSampler, PairTables]:
    """The order of rows, and the tables of its first window. All ranks must call.

    Raises:
        DataError: on all ranks, if the data cannot be used.
        LaunchError: on all ranks, if the machines have other data.
    """
    config = prepared.settings.config
    recipe = agree(world, lambda: make_recipe(prepared, world))
    assert recipe is not None
    names = [[word.folder.name for word in recipe.words]]
    if any(others != names[0] for others in gather(world, names[0])):
        raise LaunchError("the data of two machines differ; give all machines the same files", agreed=True)
    step = prepared.checkpoint.manifest.step if prepared.checkpoint is not None else 0
    tokenises = world.local_rank == 0
    # On all machines before any starts: they may share the folders, and a failure of this run must stay.
    agree(world, lambda: _forget_failures(recipe), runs=tokenises)
    # The other ranks look at the folders when tokenising has begun.
    process = agree(world, lambda: _start(recipe, step * _global_batch(prepared, world), listener), runs=tokenises)
    reader = ShardReader(
        recipe.stores(verifies=tokenises),
        process.problem if process is not None else lambda: GONE if tokenises else "",
        listener.on_work,
    )
    rows = StreamedRows(recipe.order(reader.shard), reader, config.items)
    window = agree(world, lambda: rows.tables(rows.order.window_at(step * _global_batch(prepared, world)).number))
    assert window is not None
    sampler = StreamSampler(
        rows=rows,
        micro_batch_size=config.optimisation.batch_size,
        accumulation_steps=config.optimisation.accumulation_steps,
        world_size=world.size,
        balanced=not prepared.objective.depends_on_split,
        token_budget=config.optimisation.micro_batch_tokens,
        identity=_identity(recipe),
        on_rows=process.wants if process is not None else lambda row: None,
    )
    return sampler, PairTables(tables=tuple(table for table in window if len(table)))


def make_recipe(prepared: Prepared, world: World) -> Recipe:
    """How the shards of a run are made.

    Raises:
        DataError: a source cannot be used.
    """
    config = prepared.settings.config
    data, steps = config.data, config.optimisation.max_steps
    assert steps is not None and isinstance(data, RowDataConfig)  # noqa: PT018 - flags were checked
    items = kind_of(config).items(prepared.objective)
    encoder = build_encoder(prepared.tokenizer, encoding_options(data, prepared.tokenizer))
    limit = LengthLimit(
        max_length=data.max_seq_len, cut_prompt=False, long_text=data.on_long_row if items is Items.TEXTS else ""
    )
    policies = Policies(on_bad_row=data.on_bad_row, on_long_row=data.on_long_row)
    about = [_FORMAT, encoder_key(encoder), *vars(limit).values(), *vars(policies).values(), data.shard_tokens]
    size = _global_batch(prepared, world)
    run = _hash(str(Path(config.run.save_dir).resolve()))[:8]
    # A run that removes shards must not share them with other runs.
    owner = "" if data.keep_windows is None else f"-{run}"
    words = [_word_recipe(config, sources, items, about, owner) for sources in _by_word(find_sources(data.data_path))]
    for place, word in enumerate(words):
        same = [other.word.name for other in words[:place] if other.folder == word.folder]
        if same:
            raise DataError(
                f"--data_path: {same[0]} and {word.word.name} have the same content; give one of them, with a weight"
            )
    return Recipe(
        words=tuple(words),
        encoder=encoder,
        limit=limit,
        policies=policies,
        shard_tokens=data.shard_tokens,
        window_tokens=data.window_tokens,
        seed=data.seed if data.shuffle else None,
        rows=steps * size,
        keep_windows=data.keep_windows,
        behind=_STEPS_BEHIND * size,
        num_workers=data.num_workers,
        run=run,
    )


def _word_recipe(
    config: JobConfig, sources: Sequence[Source], items: Items, about: Sequence[Any], owner: str
) -> WordRecipe:
    """How the shards of a word are made.

    Args:
        about: what they depend on besides the rows, as JSON values.
        owner: ends the name of a folder that one run has for itself.
    """
    data = config.data
    if data.shuffle:
        sources = [sources[place] for place in np.random.default_rng(_FILE_SEED).permutation(len(sources))]
    shapes = [dataclasses.replace(shape_options(data, source), items=items) for source in sources]
    # Hashing all bytes of large data would take longer than tokenising the first window.
    files = [[content_hash(file) for file in source.files] for source in sources]
    known = [[shape.key(), hashes] for shape, hashes in zip(shapes, files, strict=True)]
    key = _hash(json.dumps([about, known]))[:_DIGITS]
    size = sum(source.size for source in sources)
    return WordRecipe(
        word=Word(name=sources[0].word, bytes=max(1, size), weight=sources[0].weight),
        folder=cache_dir(config) / f"{_NAME}{key}{owner}",
        sources=tuple(sources),
        shapes=tuple(shapes),
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _by_word(sources: Sequence[Source]) -> Iterator[list[Source]]:
    """The sources of each word."""
    for _, of_word in itertools.groupby(sources, key=lambda source: source.word):
        yield list(of_word)


def _global_batch(prepared: Prepared, world: World) -> int:
    optimisation = prepared.settings.config.optimisation
    return optimisation.batch_size * optimisation.accumulation_steps * world.size


def _forget_failures(recipe: Recipe) -> None:
    """Remove what an earlier run has left in the folders of shards.

    Raises:
        DataError: a file cannot be removed.
    """
    try:
        for store in recipe.stores():
            store.forget_failure()
    except OSError as error:
        raise DataError(describe(error, recipe)) from error


def _start(recipe: Recipe, first_row: int, listener: TokenisingListener) -> Process | None:
    """Start to tokenise from the window of a row on; None: all that the run needs is there.

    Raises:
        DataError: the data cannot be used.
    """
    if recipe.keep_windows is not None or sum(word.word.bytes for word in recipe.words) > _SMALL_BYTES:
        listener.on_message(
            f"tokenising ahead in shards of {recipe.shard_tokens:,} tokens; training begins when the first window of "
            f"{recipe.window_tokens:,} is there"
        )
        return Process(recipe, first_row)
    try:
        build(recipe, lambda: first_row, listener.on_work)
    except (OSError, BrokenProcessPool) as error:
        raise DataError(describe(error, recipe)) from error
    return None


def _identity(recipe: Recipe) -> Mapping[str, object]:
    """What the global batches depend on besides seed and size; named as that of a table where it is the same."""
    return {
        "data": " ".join(word.folder.name[: len(_NAME) + _DIGITS] for word in recipe.words),
        "mix": [str(word.word.weight) for word in recipe.words],
        "pairs": f"windows of {recipe.window_tokens} tokens",
    }
