"""Flags of pretraining where they are not those of DPO; the defaults are those of MiniMind's train_pretrain.py."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from minimind.config.data import held_out_flag
from minimind.config.fields import absent, flag
from minimind.config.rows import RowDataConfig, RowModelConfig, RowOptimisationConfig, RowRunConfig, files_flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainDataConfig(RowDataConfig):
    """Files of texts, tokenizer and order. No chat template is involved."""

    described_as: ClassVar[str] = "texts"

    data_path: tuple[str, ...] = files_flag("texts")
    data_format: str = absent("auto")
    eval_data_path: tuple[str, ...] = held_out_flag("texts")
    tokenizer_path: str | None = flag(
        None, "tokenizer folder; without it that of the start weights, and the demo's for new weights"
    )
    chat_template: str | None = absent(None)
    template_kwargs: str | None = absent(None)
    mask: str = absent("text")
    last_turn_only: bool = absent(False)
    empty_think_ratio: float = absent(1.0)
    max_seq_len: int = flag(340, "maximum length of a row in tokens; --on_long_row is for longer texts", low=2)
    on_long_row: str = flag(
        "split",
        "texts above max_seq_len: split: train on all of them, in rows of at most so many tokens; cut: cut them at "
        "their end; keep: cut them and close them with the end token, as MiniMind does; skip: leave them out; error: "
        "list them and stop",
        choices=("split", "cut", "keep", "skip", "error"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainModelConfig(RowModelConfig):
    """Start weights and model sizes."""

    from_weight: str = flag(
        "none",
        "start weights: none (new random weights), a MiniMind .pth file, a Hugging Face folder, or the short MiniMind "
        "name of a file in save_dir",
    )
    generation: int | None = flag(
        3, "MiniMind generation of new weights, which other defaults follow; read from other weights", choices=(2, 3)
    )
    hidden_size: int = flag(768, "hidden size H; 512 with --generation 2; read from the weights", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainOptimisationConfig(RowOptimisationConfig):
    """Steps, batch size, learning rate, clipping and precision."""

    batch_size: int = flag(32, "rows per rank and micro-batch", low=1)
    accumulation_steps: int = flag(8, "micro-batches per global step", low=1)
    learning_rate: float = flag(5e-4, "highest learning rate; --lr_schedule says how it changes", above=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainRunConfig(RowRunConfig):
    """Output folder, logging, evaluation, checkpoints and resuming."""

    save_dir: str = flag("out/pretrain", "output folder of the run")
    save_weight: str = flag("pretrain", "base name of the written weights")
    wandb_project: str = flag("MiniMind-Pretrain", "project of --use_wandb")
