"""The report of a small file: every statistic is that of its pairs."""

from __future__ import annotations

import json

import pytest

from minimind import demo
from minimind.inspection.command import prepare_data
from minimind.inspection.report import STOPS
from tests.conftest import pair


@pytest.fixture
def report(write_rows, tmp_path):
    def run(*flags, rows):
        given = ["--data_path", str(write_rows(*rows)), "--from_weight", "none", "--batch_size", "2"]
        given += ["--hidden_size", "64", "--num_hidden_layers", "1", "--tokenizer_path", str(demo.TOKENIZER_PATH)]
        given += ["--num_workers", "0", "--cache_dir", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
        return prepare_data([*given, *flags])

    return run


ROWS = [
    pair("2 + 2?", "It is 4.", "5"),
    pair("2 + 2?", "5", "It is 4."),
    pair("What do horses eat?", "Hay and grass.", "I cannot say."),
    pair("What do horses eat?", "Hay and grass.", "I cannot say."),
    pair("Why? " * 100, "So.", "No!"),
    {"chosen": [], "rejected": []},
]


def test_statistics_are_those_of_the_pairs(report):
    found = report("--max_seq_len", "64", "--tokens_per_second", "10", rows=ROWS)
    (source,) = found.sources
    assert (source.rows, source.refused_rows, source.pairs, source.selected) == (6, 1, 5, 4)
    assert (found.pairs, found.equal.duplicates.pairs, found.equal.contradictions.pairs) == (4, 1, 2)
    effect = next(effect for effect in found.limits if effect.limit == 64)
    assert (effect.whole, effect.cut, effect.lost) == (4, 0, 1)
    assert (found.cost.steps, found.cost.global_batch) == (2, 2)
    assert found.cost.seconds == pytest.approx(found.cost.row_tokens / 10)
    assert found.answers.refusals == (0, 2)
    assert [one.place.rsplit(" ", 1)[1] for one in found.examples] == ["1", "2", "3", "4"]
    assert found.cost.memory.peak > 0
    assert "--on_bad_row skip" in found.command


def test_answers_that_were_cut_are_not_read(report):
    found = report("--max_seq_len", "16", rows=[pair("Hi", "one two three four five six seven", "no")] * 2)
    assert (found.pairs, found.answers.pairs) == (2, 0)


def test_what_would_stop_the_run_comes_first(report):
    found = report("--on_bad_row", "error", "--dtype", "float16", rows=ROWS)
    stops = [one.text for one in found.findings if one.kind == STOPS]
    assert list(found.findings[: len(stops)]) == [one for one in found.findings if one.kind == STOPS]
    assert any("1 of 6 rows cannot be trained on" in text for text in stops)


def test_scores_and_columns_of_no_use_are_reported(report, tmp_path, capsys):
    rows = [{**row, "score_chosen": 3, "score_rejected": 5 - index, "note": "x"} for index, row in enumerate(ROWS[:4])]
    found = report(rows=rows)
    assert (found.scores.scored, found.scores.worse, found.scores.equal) == (4, 2, 1)
    shown = capsys.readouterr().out
    assert "not used: column 'note' (4)" in shown
    assert "--filter_score_gap 0 leaves 2, " in shown
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "--filter_score_gap" in page
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["scores"]["worse"] == 2
