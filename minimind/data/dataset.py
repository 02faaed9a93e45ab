"""MiniMind's data set class, reproduced exactly: a public name, and the reference that tests compare with.

    file -> checked rows -> six padded tensors per pair

Training does not use it; it reads `PairTables` (pair_tables.py) and builds packs (packs.py).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from minimind.data.encoding import MINIMIND, EncodingOptions
from minimind.data.minimind_rule import MiniMindEncoder
from minimind.data.rows import PreferenceRow
from minimind.data.shapes import parse_rows
from minimind.data.sources import RowError, open_source
from minimind.errors import DataError


class DPODataset(Dataset[dict[str, Tensor]]):
    """Preference pairs as the batches of MiniMind's training script contain them.

    Args:
        path: file with rows of a shape in `shapes.SHAPES`: JSON lines, a JSON array, CSV, parquet or Arrow.
        tokenizer: must have a chat template with MiniMind's markers. Without a pad token, id 0 pads.
        max_length: tokens per row; longer rows are truncated, shorter rows padded.
        empty_think_ratio: see `EncodingOptions`.

    Raises:
        DataError: the file cannot be read, or a row is invalid; the message names the line.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 4096,
        empty_think_ratio: float = 1.0,
    ) -> None:
        self.source = open_source(Path(path))
        self.encoder = MiniMindEncoder(tokenizer, EncodingOptions(mask=MINIMIND, empty_think_ratio=empty_think_ratio))
        self.max_length = max_length
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.rows: list[tuple[int, PreferenceRow]] = []
        for number, content in self.source.rows():
            try:
                if isinstance(content, RowError):
                    raise content
                self.rows += [(number, row) for row in parse_rows(content)]
            except RowError as error:
                raise DataError(f"{self.source.place(number)}: {error}") from error

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One pair: x (inputs), y (the next token of each input) and mask (1 where y counts), of chosen and rejected.

        Returns:
            x_chosen, y_chosen, mask_chosen, x_rejected, y_rejected, mask_rejected, each (max_length - 1,) int64.

        Raises:
            DataError: the chat template rejects the row.
        """
        number, row = self.rows[index]
        out = {}
        for half, messages in (("chosen", row.chosen), ("rejected", row.rejected)):
            try:
                encoded = self.encoder.encode(messages, number, row.tools, row.template_kwargs)
            except RowError as error:
                raise DataError(f"{self.source.place(number)}: {error}") from error
            ids, mask = (part[: self.max_length] for part in encoded)
            padding = self.max_length - len(ids)
            tokens = torch.tensor(ids + [self.pad_id] * padding)
            out[f"x_{half}"], out[f"y_{half}"] = tokens[:-1], tokens[1:]
            out[f"mask_{half}"] = torch.tensor(mask + [0] * padding)[1:]
        return out
