"""Histories of single pairs: confidence, movement, and the three orders."""

from __future__ import annotations

import numpy as np
import pytest

from minimind.diagnosis.pairs import hardest, most_moved, most_suspicious, pair_histories
from tests.unit.diagnosis.made_runs import made


def sigmoid(*values):
    return float(np.mean([1 / (1 + np.exp(-value)) for value in values]))


def test_the_confidence_is_the_mean_probability_of_the_label():
    pairs = pair_histories(made([1, 2, 3, 4], [2, 1, 2, 1], [-1.0, 2.0, -3.0, 1.0], loss=[1, 2, 3, 4]))
    assert pairs.times.tolist() == [2, 2]
    assert pairs.last.line.tolist() == [1, 2]
    assert pairs.last.step.tolist() == [4, 3]
    assert pairs.first_margins.tolist() == [2.0, -1.0]
    assert pairs.margins.tolist() == [1.0, -3.0]
    assert pairs.confidence.tolist() == pytest.approx([sigmoid(2, 1), sigmoid(-1, -3)])


def test_a_huge_margin_is_a_probability_too():
    assert pair_histories(made([1, 1], [1, 2], [1e5, -1e5])).confidence.tolist() == pytest.approx([1.0, 0.0])


def test_suspicious_are_those_whose_opposite_is_likelier_the_most_first():
    pairs = pair_histories(made([1] * 4, [1, 2, 3, 4], [-0.5, 1.0, -2.0, 0.0]))
    assert most_suspicious(pairs).tolist() == [2, 0]
    assert most_suspicious(pairs, 1).tolist() == [2]
    assert most_suspicious(pair_histories(made([1], [1], [np.nan]))).tolist() == []


def test_hardest_have_the_largest_losses_at_the_last_time():
    pairs = pair_histories(made([1, 1, 2], [1, 2, 1], loss=[9.0, 0.5, 0.1]))
    assert hardest(pairs, 5).tolist() == [1, 0]
    assert hardest(pairs, 1).tolist() == [1]


def test_a_pair_moves_away_from_the_reference_or_from_its_first_time():
    tokens = {"chosen_tokens": [2, 4], "rejected_tokens": [2, 4]}
    values = {"chosen_logps": [-4.0, -8.0], "rejected_logps": [-6.0, -8.0]}
    reference = {"ref_chosen_logps": [-2.0, -8.0], "ref_rejected_logps": [-4.0, -4.0]}
    pairs = pair_histories(made([1, 1], [1, 2], **tokens, **values, **reference))
    assert pairs.moved.tolist() == [1.0, 0.5]
    assert most_moved(pairs, 2).tolist() == [0, 1]

    none = {"ref_chosen_logps": [np.nan] * 3, "ref_rejected_logps": [np.nan] * 3}
    values = {"chosen_logps": [-4.0, -9.0, -6.0], "rejected_logps": [-4.0, -9.0, -4.0]}
    tokens = {"chosen_tokens": [2] * 3, "rejected_tokens": [2] * 3}
    pairs = pair_histories(made([1, 1, 2], [1, 2, 1], **tokens, **values, **none))
    assert pairs.moved[0] == 0.5
    assert np.isnan(pairs.moved[1])  # met once: from where it moved is not known
    assert most_moved(pairs, 2).tolist() == [0]


def test_no_rows_have_no_pairs():
    assert len(pair_histories(made([], []))) == 0
