"""Sections of jobs over rows: no flag about pairs or a reference, and the values that stand for their absence."""

from __future__ import annotations

import dataclasses

from minimind.config import DataConfig, DPOConfig, SFTConfig, fields_of
from minimind.config.rows import RowDataConfig, RowEngineConfig, RowModelConfig, TokenLossConfig, streams

OF_PAIRS = {"pairing", "score_gap", "filter_score_gap", "reference", "reference_weight"} | {
    "reference_update",
    "reference_config",
    "loss",
    "beta",
    "average_log_prob",
    "label_smoothing",
    "loss_options",
    "lora_reference",
    "ledger",
}
OF_STREAMING = {"streaming", "shard_tokens", "window_tokens", "keep_windows"}


def test_flags_about_pairs_are_absent_and_no_others():
    own = {item.name for item in fields_of(SFTConfig)}
    assert {item.name for item in fields_of(DPOConfig)} - own == OF_PAIRS
    of_loss = {item.name for item in dataclasses.fields(TokenLossConfig)}
    assert own - {item.name for item in fields_of(DPOConfig)} == of_loss | OF_STREAMING


def test_only_rows_are_streamed():
    assert streams(RowDataConfig(streaming=True))
    assert not streams(RowDataConfig())
    assert not streams(DataConfig())


def test_what_is_absent_has_the_value_of_a_run_without_it():
    assert RowEngineConfig().reference == "none"
    assert RowModelConfig().reference_weight is None
    assert RowDataConfig().filter_score_gap is None
