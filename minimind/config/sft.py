"""Flags of supervised fine-tuning where they are not those of DPO; the defaults are those of MiniMind's
train_full_sft.py."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from minimind.config.data import held_out_flag
from minimind.config.fields import flag
from minimind.config.rows import RowDataConfig, RowModelConfig, RowOptimisationConfig, RowRunConfig, files_flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTDataConfig(RowDataConfig):
    """Files of conversations, tokenizer and order."""

    described_as: ClassVar[str] = "conversations"

    data_path: tuple[str, ...] = files_flag("conversations")
    data_format: str = flag(
        "auto",
        "shape of the rows; conversations: messages, or turns of ShareGPT; instructions: Alpaca's; completions: a "
        "prompt and its answer; auto: each row is recognised by its columns",
        choices=("auto", "conversations", "instructions", "completions"),
    )
    eval_data_path: tuple[str, ...] = held_out_flag("conversations")
    max_seq_len: int = flag(
        768, "maximum length of a row in tokens, 340 for MiniMind generation 2; --on_long_row is for longer rows", low=2
    )
    on_long_row: str = flag(
        "cut",
        "conversations above max_seq_len: cut: cut them at their end, and leave out those without a token that counts; "
        "skip: leave out all of them; error: list them and stop",
        choices=("cut", "skip", "error"),
    )
    empty_think_ratio: float = flag(
        1.0,
        "share of conversations that keep their empty <think> block, chosen at random; 0.2 for MiniMind generation 3",
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTModelConfig(RowModelConfig):
    """Start weights and model sizes."""

    from_weight: str = flag(
        "pretrain",
        "start weights: a MiniMind .pth file, a Hugging Face folder, none (new random weights), or the short MiniMind "
        "name of a file in save_dir",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTOptimisationConfig(RowOptimisationConfig):
    """Steps, batch size, learning rate, clipping and precision."""

    learning_rate: float = flag(
        1e-5, "highest learning rate, 1e-6 for MiniMind generation 2; --lr_schedule says how it changes", above=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTRunConfig(RowRunConfig):
    """Output folder, logging, evaluation, checkpoints and resuming."""

    save_dir: str = flag("out/sft", "output folder of the run")
    save_weight: str = flag("full_sft", "base name of the written weights")
    wandb_project: str = flag("MiniMind-Full-SFT", "project of --use_wandb")
