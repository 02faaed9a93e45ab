"""The run's data: tokenised pairs, the order in which they are trained on, and the number of global steps.

preference files -> load_pairs -> PairTable -> PairSampler -> TrainingData
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from minimind.config import DPOConfig
from minimind.config.data import DataConfig
from minimind.data.columns import NO_VARIABLES
from minimind.data.encoding import EncodingOptions
from minimind.data.left_out import words_of
from minimind.data.sampler import PairSampler
from minimind.data.selection import CUT_PROMPT, select_pairs
from minimind.data.shapes import ShapeOptions
from minimind.data.sources import open_source
from minimind.data.table import PairTable
from minimind.data.table_build import TokenisingListener
from minimind.data.table_cache import load_table
from minimind.data.template import ChatTemplate
from minimind.errors import ConfigError
from minimind.ranks.collectives import from_main, main_first
from minimind.ranks.world import World
from minimind.training.setup.prepare import Prepared, cache_dir


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Data of a run.

    Attributes:
        table: the pairs that are trained on.
        eval_table: held-out pairs; None without --eval_data_path.
        stream: order of the pairs, by global step, rank and micro-batch.
        total_steps: global steps of the run.
    """

    table: PairTable
    eval_table: PairTable | None
    stream: PairSampler
    total_steps: int

    @property
    def tables(self) -> list[PairTable]:
        """All tables: training pairs first."""
        return [self.table] if self.eval_table is None else [self.table, self.eval_table]


def load_data(prepared: Prepared, world: World, listener: TokenisingListener) -> TrainingData:
    """Tokenise the preference files, or read their cache, and lay out the order of pairs; all ranks call it.

    Raises:
        DataError: a file cannot be used, or has rows that `--on_bad_row error` or `--on_long_row error` refuse.
        ConfigError: the pairs do not fill one global batch.
    """
    config = prepared.settings.config
    assert config.data.data_path is not None
    table = _load_pairs(prepared, world, config.data.data_path, listener)
    eval_path = config.data.eval_data_path
    eval_table = _load_pairs(prepared, world, eval_path, listener) if eval_path else None
    stream = pair_sampler(config, table, world.size)
    # Raised on all ranks at once, instead of on each rank by itself.
    total_steps = from_main(world, lambda: count_steps(stream, config))
    return TrainingData(table=table, eval_table=eval_table, stream=stream, total_steps=total_steps)


def _load_pairs(prepared: Prepared, world: World, path: str, listener: TokenisingListener) -> PairTable:
    """The pairs of one preference file that the run uses. One rank per machine tokenises, the others read."""
    config = prepared.settings.config

    def load() -> PairTable:
        return select_table(tokenized_table(config, prepared.tokenizer, path, listener), config.data)

    return main_first(world, load)


def tokenized_table(
    config: DPOConfig, tokenizer: PreTrainedTokenizerBase, path: str, listener: TokenisingListener
) -> PairTable:
    """The table of a source, from the cache or tokenised now, with all pairs selected.

    Raises:
        DataError: the source cannot be used.
    """
    data = config.data
    return load_table(
        open_source(Path(path)),
        tokenizer,
        max_length=data.max_seq_len,
        options=encoding_options(data, words_of(ChatTemplate(tokenizer))),
        shapes=shape_options(data),
        cut_prompt=data.on_long_row == CUT_PROMPT,
        num_workers=data.num_workers,
        cache_dir=cache_dir(config),
        listener=listener,
    )


def select_table(table: PairTable, config: DataConfig) -> PairTable:
    """The table with the pairs that the run uses.

    Raises:
        DataError: what `--on_bad_row error` and `--on_long_row error` refuse, or no pair is left.
    """
    return select_pairs(table, on_bad_row=config.on_bad_row, on_long_row=config.on_long_row)


def pair_sampler(config: DPOConfig, table: PairTable, ranks: int) -> PairSampler:
    """The order of a run's pairs, and their distribution over ranks and micro-batches."""
    return PairSampler(
        num_pairs=len(table),
        epochs=config.optimisation.epochs,
        micro_batch_size=config.optimisation.batch_size,
        accumulation_steps=config.optimisation.accumulation_steps,
        world_size=ranks,
        shuffle=config.data.shuffle,
        seed=config.data.seed,
        costs=table.costs,
        tokens=table.packed_tokens,
        token_budget=config.optimisation.micro_batch_tokens,
    )


def shape_options(config: DataConfig) -> ShapeOptions:
    """How rows are read under these flags."""
    return ShapeOptions(data_format=config.data_format)


def encoding_options(config: DataConfig, words: frozenset[str]) -> EncodingOptions:
    """How conversations are encoded under these flags.

    Args:
        words: all words of the chat template's source.

    Raises:
        ConfigError: --template_kwargs is not a JSON object of variables that the template reads.
    """
    kwargs: Any = {}
    if config.template_kwargs:
        try:
            kwargs = json.loads(config.template_kwargs)
        except ValueError as error:
            raise ConfigError(f"--template_kwargs: invalid JSON ({error}): {config.template_kwargs}") from error
    if not isinstance(kwargs, dict):
        raise ConfigError(f"--template_kwargs: not a JSON object: {config.template_kwargs}")
    if taken := sorted(NO_VARIABLES.intersection(kwargs)):
        raise ConfigError(f"--template_kwargs: {taken[0]!r} is no variable of a chat template")
    if unknown := sorted(kwargs.keys() - words):
        raise ConfigError(f"--template_kwargs: the chat template does not read {unknown[0]!r}; see its source")
    return EncodingOptions(
        mask=config.mask,
        empty_think_ratio=config.empty_think_ratio,
        template_kwargs=kwargs,
        last_turn_only=config.last_turn_only,
    )


def count_steps(stream: PairSampler, config: DPOConfig) -> int:
    """Global steps of a run.

    Raises:
        ConfigError: the pairs do not fill one global batch.
    """
    total = stream.total_steps
    if not total:
        raise ConfigError(
            f"{stream.num_pairs} pairs x {stream.epochs} epochs do not fill one global batch of "
            f"{stream.global_batch_size}; lower --batch_size or --accumulation_steps, or use fewer ranks"
        )
    return min(total, config.optimisation.max_steps or total)
