"""Pairs by the run's own code: what is refused, what would stop the run, and the settings that follow."""

from __future__ import annotations

import pytest

from minimind import demo
from minimind.config import parse_settings
from minimind.data.table_build import SILENT
from minimind.errors import DataError
from minimind.inspection.loading import LoadedPairs, load_pairs
from minimind.inspection.opening import open_inputs, planned_world
from tests.conftest import pair
from tests.unit.data.tables import lines

ROWS = (pair("Good?", "Yes.", "No!"), "{broken", pair("Why? " * 40, "So.", "No!"))


@pytest.fixture
def loaded(write_rows, tmp_path):
    def run(*flags, rows=ROWS) -> LoadedPairs:
        given = ["--data_path", str(write_rows(*rows)), "--from_weight", "none", "--deepspeed", "ds_configs/zero2.json"]
        given += ["--tokenizer_path", str(demo.TOKENIZER_PATH), "--max_seq_len", "32", "--num_workers", "0"]
        settings = parse_settings([*given, "--cache_dir", str(tmp_path / "cache"), *flags])
        return load_pairs(open_inputs(settings, planned_world(1, 1)), SILENT)

    return run


@pytest.mark.parametrize(
    ("flags", "expected", "on_bad_row", "obstacle"),
    [
        ((), [1], "skip", None),
        (("--on_bad_row", "skip", "--on_long_row", "keep"), [1, 3], "skip", None),
        (("--on_bad_row", "error"), [1], "error", "1 of 3 rows cannot be trained on"),
        (("--on_long_row", "error"), [1], "skip", "1 of 2 pairs are longer than --max_seq_len 32"),
    ],
)
def test_what_the_run_would_do(loaded, flags, expected, on_bad_row, obstacle):
    found = loaded(*flags)
    assert [lines(table) for table in found.tables] == [expected]
    assert found.held_out == ()
    assert found.settings.config.data.on_bad_row == on_bad_row
    assert [obstacle in text for text in found.obstacles] == ([True] if obstacle else [])


def test_rows_that_are_right_need_no_policy(loaded):
    found = loaded(rows=ROWS[:1])
    assert (found.settings.config.data.on_bad_row, found.settings.explicit("on_bad_row")) == ("error", False)


def test_scores_that_the_loss_lacks_stop_the_run(loaded):
    assert (
        loaded("--loss", "rebel", rows=ROWS[:1])
        .obstacles[0]
        .partition("pairs.jsonl: ")[2]
        .startswith("1 of 1 pairs have no finite")
    )
    scored = {**ROWS[0], "score_chosen": 2, "score_rejected": 1}
    assert loaded("--loss", "odpo", rows=[scored]).obstacles == ()


def test_no_pair_left_is_an_error(loaded):
    with pytest.raises(DataError, match="none of the 2 rows can be trained on"):
        loaded(rows=ROWS[1:])
