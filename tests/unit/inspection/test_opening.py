"""What is opened, and what would stop the run although its data can be looked at."""

from __future__ import annotations

import pytest

from minimind import demo
from minimind.config import parse_settings
from minimind.errors import MiniMindError
from minimind.inspection.opening import open_inputs, planned_world
from tests.conftest import pair

WORLD = planned_world(1, 2)


@pytest.fixture
def open_flags(write_rows):
    path = write_rows(pair("Why?", "So.", "No!"))

    def run(*flags):
        given = ["--data_path", str(path), "--deepspeed", "ds_configs/zero2.json", *flags]
        return open_inputs(parse_settings(given), WORLD)

    return run


TOKENIZER = ("--tokenizer_path", str(demo.TOKENIZER_PATH))


def test_a_run_that_would_start(open_flags):
    opened = open_flags("--from_weight", "none")
    assert opened.obstacle is None
    assert opened.prepared.settings is opened.settings
    assert opened.tokenizer.chat_template


def test_data_can_be_looked_at_without_weights(open_flags):
    opened = open_flags(*TOKENIZER, "--from_weight", "missing.pth")
    assert opened.prepared is None
    assert "--from_weight missing.pth: no such file" in opened.obstacle


def test_the_share_of_empty_think_blocks_is_that_of_the_run(open_flags):
    """So that the run finds the tokenised pairs in the cache."""

    def ratio(*flags):
        return open_flags(*TOKENIZER, *flags).settings.config.data.empty_think_ratio

    assert ratio("--from_weight", str(demo.WEIGHT_PATH)) == 0.2
    assert ratio("--from_weight", str(demo.WEIGHT_PATH), "--reference_config", "missing.json") == 0.2
    assert ratio("--from_weight", "missing.pth", "--generation", "3") == 0.2
    assert ratio("--from_weight", "missing.pth") == 1.0


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--from_weight", "missing.pth"), "no tokenizer"),
        ((*TOKENIZER, "--from_weight", "none", "--data_path", "missing.jsonl"), "missing.jsonl"),
        ((*TOKENIZER, "--from_weight", "none", "--eval_data_path", "missing.jsonl"), "missing.jsonl"),
    ],
)
def test_data_and_tokenizer_are_needed(open_flags, flags, problem):
    with pytest.raises(MiniMindError, match=problem):
        open_flags(*flags)


def test_planned_ranks():
    assert (WORLD.rank, WORLD.size, len(WORLD.hosts)) == (0, 2, 2)
