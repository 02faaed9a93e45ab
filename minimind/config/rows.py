"""Sections of the jobs over rows that stand alone, supervised fine-tuning and pretraining: what they have of those of
DPO, with defaults of their own. A flag about pairs or a reference is absent there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from minimind.config.adapters import AdapterConfig
from minimind.config.data import DataConfig
from minimind.config.engine import EngineConfig
from minimind.config.fields import absent, flag
from minimind.config.model import ModelConfig
from minimind.config.optimisation import OptimisationConfig
from minimind.config.run import RunConfig

# Values of --loss_mean.
TOKENS, MICRO_BATCH = "tokens", "micro_batch"


def files_flag(rows: str) -> Any:
    """The field of --data_path of a job on these rows."""
    return flag(
        (),
        f"{rows}: files, patterns, folders or data sets in the hub's cache, each with a weight if needed, e.g. "
        "a.jsonl:2 'b/*.parquet' folder:train owner/name (see the table of files)",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLossConfig:
    """The cross-entropy of tokens."""

    loss_mean: str = flag(
        TOKENS,
        "tokens: the loss is the mean over the tokens of a global batch that count, however it is split; micro_batch: "
        "the mean of the means of its micro-batches, as in MiniMind, in which tokens of a shorter micro-batch count "
        "more",
        choices=(TOKENS, MICRO_BATCH),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowDataConfig(DataConfig):
    """Files, tokenizer and order of rows."""

    pairing: str = absent("best_worst")
    score_gap: float = absent(0.0)
    filter_score_gap: float | None = absent(None)
    on_bad_row: str = flag(
        "error",
        "rows that are wrong: error: list them and stop; skip: count them and leave them out",
        choices=("error", "skip"),
    )
    dedup: bool = flag(False, "1: take equal rows once, and equal held-out rows once")
    limit: int | None = flag(
        None, "train on the first rows only: so many, of each source in proportion; 0: all rows", low=0
    )
    shuffle: bool = flag(True, "1: shuffle the rows anew in every epoch; 0: keep the order of the file")
    seed: int = flag(42, "random seed for the order of rows, dropout and new weights", low=0)
    cache_dir: str | None = flag(None, "folder of tokenised data; without it $XDG_CACHE_HOME/minimind")
    streaming: bool = flag(
        False, "1: tokenise the data in shards while training reads those that are ready; needs --max_steps"
    )
    shard_tokens: int = flag(10_000_000, "for --streaming 1: tokens after which a shard ends", low=1)
    window_tokens: int = flag(
        100_000_000,
        "for --streaming 1: tokens of consecutive shards after which a window ends, in which rows are shuffled",
        low=1,
    )
    keep_windows: int | None = flag(
        None,
        "for --streaming 1: number of windows on the disk; tokenising waits, and shards that are used up are removed; "
        "0: keep all shards",
        low=0,
    )


def streams(data: DataConfig) -> bool:
    """Whether a run streams its data; jobs over pairs do not."""
    return isinstance(data, RowDataConfig) and data.streaming


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowModelConfig(ModelConfig):
    """Start weights and model sizes."""

    reference_weight: str | None = absent(None)
    dropout: bool = flag(
        True, "1: train with the dropout of the model's configuration, which MiniMind's models do not have; 0: without"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowAdapterConfig(AdapterConfig):
    """Low-rank adapters of frozen weights."""

    lora_reference: str = absent("base")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowOptimisationConfig(OptimisationConfig):
    """Steps, batch size, learning rate, clipping and precision."""

    epochs: int = flag(2, "number of passes over the rows", low=1)
    batch_size: int = flag(16, "rows per rank and micro-batch", low=1)
    micro_batch_tokens: int | None = flag(
        None,
        "maximum number of tokens in a micro-batch: a rank's batch_size x accumulation_steps rows of a global step are "
        "distributed over as few micro-batches as possible; 0: every micro-batch has batch_size rows",
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowEngineConfig(EngineConfig):
    """DeepSpeed file, and how forward and backward are computed."""

    reference: str = absent("none")
    reference_update: str | None = absent(None)
    reference_config: str | None = absent(None)
    deepspeed: str | None = flag(None, "DeepSpeed configuration file, e.g. ds_configs/zero2.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowRunConfig(RunConfig):
    """Output folder, logging, evaluation, checkpoints and resuming."""

    ledger: bool = absent(False)
    save_interval: int = flag(1000, "global steps between two checkpoints; 0: only one, at the end", low=0)
