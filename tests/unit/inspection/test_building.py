"""The report of a small file: every statistic is that of its pairs."""

from __future__ import annotations

import json

import pytest

from minimind import demo
from minimind.errors import ConfigError
from minimind.inspection.command import prepare_data
from minimind.inspection.report import STOPS
from tests.conftest import conversation, pair


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


def test_a_tie_is_a_row_without_a_pair(report):
    scored = {"prompt": "What do cows eat?", "responses": ["Grass.", "Stones."]}
    tie = {**scored, "scores": [1, 1]}
    (source,) = report(rows=[*ROWS[:4], tie, {**scored, "scores": [2, 1]}]).sources
    assert (source.rows, source.refused_rows, source.unpaired, source.pairs) == (6, 0, 1, 5)


def test_too_few_rows_for_a_step_are_an_error_that_names_the_refused_ones(report):
    with pytest.raises(
        ConfigError, match=r"^1 pairs x 1 epochs do not fill .*pairs\.jsonl: 1 of 2 rows are wrong: line 2: "
    ):
        report(rows=ROWS[-2:])


TURNS = [
    {"conversations": conversation("2 + 2?", "It is 4.")},
    {"conversations": conversation("2 + 2?", "It is 4.")},
    {"conversations": conversation("2 + 2?", "I cannot say.", "And now?", "4")},
    {"instruction": "Why? " * 100, "output": "So."},
    {"conversations": conversation("Hi", "")},
    {"conversations": [], "label": True},
]


def test_conversations_have_the_statistics_that_they_can_have(report, capsys):
    found = report("--job", "sft", "--max_seq_len", "64", "--on_long_row", "cut", rows=TURNS)
    (source,) = found.sources
    assert (source.rows, source.pairs, source.selected) == (6, 5, 4)
    assert source.shapes == {"a conversation": 4, "Alpaca": 1}
    assert [one.first for one in source.refused] == ["line 6"]
    assert (found.items, found.pairs, found.bias, found.scores) == ("conversations", 4, None, None)
    assert list(found.lengths) == ["whole", "counted"]
    assert found.lengths["whole"].longest > 200
    effect = next(effect for effect in found.limits if effect.limit == 64)
    assert (effect.whole, effect.cut, effect.lost, effect.rows) == (4, 0, 1, None)
    assert 0 < effect.kept < 0.5
    equal = found.equal
    assert (equal.pairs, equal.prompts, equal.duplicates.pairs, equal.contradictions) == (4, 2, 1, None)
    # The last answer of each: It is 4., twice; 4; and an empty one.
    answers = found.answers
    assert (answers.pairs, answers.one_word, answers.empty, answers.refusals) == (4, (1,), (1,), (0,))
    assert [list(one.parts) for one in found.examples] == [["conversation"]] * 4
    counts = "".join(run.text for run in found.examples[2].parts["conversation"] if run.counts)
    assert counts == "I cannot say.<|im_end|>\n4<|im_end|>\n"
    assert (found.cost.steps, found.cost.global_batch) == (4, 2)
    assert found.cost.row_tokens == found.cost.tokens + 4 * 2
    assert found.cost.memory.peak > 0
    assert found.command.startswith("    deepspeed --num_gpus 1 launch/train_sft.py")


TEXTS = [{"text": "Horses eat hay. " * 20}, {"text": "Rain."}, {"text": "Rain."}, {"text": " "}, {"txt": "?"}]


@pytest.mark.parametrize("policy", ["split", "cut"])
def test_texts_are_counted_as_wholes_and_rows_as_they_are_trained_on(report, policy):
    flags = ("--job", "pretrain", "--max_seq_len", "32", "--on_long_row", policy, "--accumulation_steps", "1")
    found = report(*flags, rows=TEXTS)
    (source,) = found.sources
    tokens = found.lengths["whole"].longest
    pieces = -(-(tokens - 1) // 31)
    assert pieces > 2
    assert [one.first for one in source.refused] == ["line 4", "line 5"]
    assert source.refused[0].reason == "the text is empty"
    assert source.rows == 5
    assert found.pairs == (2 + pieces if policy == "split" else 3)
    effect = next(effect for effect in found.limits if effect.limit == 32)
    assert (effect.whole, effect.cut, effect.lost) == (2, 1, 0)
    if policy == "split":
        assert (effect.rows, effect.kept) == (found.pairs, 1.0)
        assert "row 2 of it" in found.examples[1].place
    else:
        kept = 32 + 2 * (found.lengths["whole"].median)
        assert (effect.rows, effect.kept) == (None, pytest.approx(kept / (tokens + 2 * found.lengths["whole"].median)))
    equal = found.equal
    assert (equal.pairs, equal.prompts, equal.duplicates.pairs, equal.leaked_prompts) == (3, 2, 1, None)
    assert equal.duplicates.places[0].endswith(
        "line 3, repeats " + equal.duplicates.places[0].split(", line")[0] + ", line 2"
    )
    assert found.answers.refusals == ()
    # A text that is cut is not read; the first row of one that is split is.
    assert (found.answers.pairs, found.answers.one_word) == ((3, (2,)) if policy == "split" else (2, (2,)))
    first = found.examples[0].parts["text"]
    assert [run.counts for run in first] == [False, True]


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
