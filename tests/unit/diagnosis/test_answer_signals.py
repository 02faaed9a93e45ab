"""Numbers about answers, by hand."""

from __future__ import annotations

import pytest

from minimind.diagnosis.answer_signals import (
    SIGNALS,
    GeneratedAnswer,
    answer_signals,
    distinct_share,
    language_switched,
)


def made(ids, text="ok", *, ended=True, expected="Hello"):
    return GeneratedAnswer(ids=ids, text=text, ended=ended, expected=expected)


def test_means_over_answers():
    found = answer_signals(
        [made([5, 6, 5, 6, 2], "Hi there"), made([7], "你好", ended=False), made([2], " ", expected="Yes")]
    )
    assert found == {
        "length": pytest.approx((4 + 1 + 0) / 3),
        "distinct_1": pytest.approx((2 / 4 + 1) / 2),
        "distinct_2": pytest.approx(2 / 3),
        "distinct_3": 1.0,
        "ended": pytest.approx(2 / 3),
        "empty": pytest.approx(1 / 3),
        "language_switched": 0.5,
    }
    assert tuple(found) == SIGNALS


def test_a_loop_is_seen_by_longer_n_grams():
    assert distinct_share([1, 2, 3] * 5, 1) == 3 / 15
    assert distinct_share([1, 2, 3] * 5, 3) == 3 / 13
    assert distinct_share([1, 2, 3, 4], 2) == 1.0


@pytest.mark.parametrize(
    ("answer", "expected", "switched"),
    [
        ("Bonjour à tous", "Hello all", False),
        ("你好，很高兴", "Hello all", True),
        ("Hello all", "今天天气如何", True),
        ("42", "Hello", None),
        ("Hello", "", None),
    ],
)
def test_the_script_stands_for_the_language(answer, expected, switched):
    assert language_switched(answer, expected) is switched


def test_what_no_answer_has_is_left_out():
    assert "language_switched" not in answer_signals([made([4], "42")])
    assert "distinct_2" not in answer_signals([made([4, 2])])
