"""The analysis of a ledger: which pairs are judged, their groups, and the lists."""

from __future__ import annotations

import numpy as np
import pytest

from minimind.diagnosis import analysis, ledger
from minimind.diagnosis.analysis import HARDEST, MOVED, SUSPICIOUS, analyse
from tests.unit.diagnosis.made_runs import made, made_run, write_pairs


def test_held_out_pairs_are_judged_and_training_pairs_are_listed(tmp_path):
    found = analyse(ledger.read(made_run(tmp_path / "run")), {})
    assert (found.judged, found.step, found.pairs, found.listed_set) == (("eval",), 3, 12, "train")
    assert len(found.dots) == 12
    assert np.isnan(found.correlation)  # all pairs differ by 5 tokens
    assert [(one.name, one.pairs, one.accuracy) for one in found.groups["language"]] == [
        ("Latin", 6, 1.0),
        ("Chinese", 6, 0.0),
    ]
    (source,) = found.groups["source"]
    assert (source.name, source.pairs, source.accuracy) == ("run.jsonl", 12, 0.5)
    assert [one.name for one in found.groups["prompt"]] == ["3-9", "12-18", "21-27", "30-36"]
    assert sum(one.pairs for one in found.groups["answer"]) == 12
    (first, *_) = found.lists[SUSPICIOUS]
    assert (first.source, first.unit, first.line) == ("run.jsonl", "line", 12)
    assert (first.margin, first.times) == (-1.0, 1)
    assert first.row.chosen[-1]["content"] == "好12"
    assert len(found.lists[SUSPICIOUS]) == 6
    assert found.lists[HARDEST][0].line == 12
    assert len(found.lists[MOVED]) == 12
    assert found.obstacles == []


def test_without_evaluations_training_pairs_are_judged():
    rows = made([1, 2, 2], [1, 1, 2], [-1.0, 1.0, 0.0], chosen_tokens=[9, 9, 4])
    found = analyse(rows, {}, texts=False)
    assert (found.judged, found.pairs) == (("train",), 2)
    assert found.groups["source"][0].accuracy == 0.75  # a tie counts half
    assert found.correlation == pytest.approx(1.0)
    assert "language" not in found.groups
    assert found.lists[HARDEST][0].row is None


def test_a_loss_without_margins_cannot_be_judged():
    assert analyse(made([1], [1], [np.nan]), {}) is None


def test_texts_of_a_changed_file_are_missing_with_a_reason(tmp_path):
    source = write_pairs(tmp_path / "pairs.jsonl", 3)
    (tmp_path / "pairs.jsonl").unlink()
    found = analyse(made([1, 1], [1, 2], [1.0, -1.0], source=source), {})
    assert found.lists[SUSPICIOUS][0].row is None
    assert "is not there any more" in str(found.obstacles[0])
    assert found.groups["language"] == []


def test_many_pairs_are_many_dots_and_no_more(monkeypatch):
    monkeypatch.setattr(analysis, "_DOTS", 5)
    rows = made([1] * 50, range(1, 51), np.linspace(-1, 1, 50), prompts=[7] * 50)
    found = analyse(rows, {}, texts=False)
    assert len(found.dots) == 5
    assert [(one.name, one.pairs) for one in found.groups["prompt"]] == [("7", 50)]
    assert len(found.lists[HARDEST]) == 20
