"""Flags that cannot work with streamed data are refused by name."""

from __future__ import annotations

import pytest

from minimind.config import PretrainConfig, SFTConfig, parse_settings
from minimind.objective.token_mean import TokenMean
from minimind.training.setup.prepare import with_implied
from minimind.training.setup.streaming_checks import STREAMING_CHECKS
from tests.unit.training.setup.test_checks import draft

ON = ("--streaming", "1", "--max_steps", "10")


def problems(*flags, job=PretrainConfig):
    one = draft(settings=with_implied(parse_settings(flags, job)), objective=TokenMean())
    return [str(error) for check in STREAMING_CHECKS for error in check(one)]


def test_a_run_that_streams_is_right():
    assert problems(*ON, "--shard_tokens", "9", "--window_tokens", "9", "--keep_windows", "2") == []
    assert problems(*ON, "--on_bad_row", "skip", "--on_long_row", "skip", job=SFTConfig) == []
    assert problems("--epochs", "3", "--dedup", "1") == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--streaming", "1"), "--streaming 1 needs --max_steps"),
        ((*ON, "--epochs", "2"), "--epochs: under --streaming 1 the run ends after --max_steps"),
        ((*ON, "--dedup", "1"), "--dedup 1: compares all rows"),
        ((*ON, "--limit", "9"), "--limit: under --streaming 1"),
        ((*ON, "--on_bad_row", "error"), "--on_bad_row error: under --streaming 1"),
        ((*ON, "--on_long_row", "error"), "--on_long_row error: under --streaming 1"),
        (("--keep_windows", "3", "--shard_tokens", "9"), "--shard_tokens and --keep_windows: only for --streaming 1"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags, message):
    (problem,) = problems(*flags)
    assert problem.startswith(message)


def test_wrong_rows_are_left_out_where_no_flag_says_so():
    settings = with_implied(parse_settings(ON, SFTConfig))
    assert (settings.config.data.on_bad_row, settings.origins["on_bad_row"]) == ("skip", "--streaming 1")
    assert with_implied(parse_settings((), SFTConfig)).config.data.on_bad_row == "error"
