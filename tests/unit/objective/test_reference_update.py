"""Forms of --reference_update, and what they mean."""

from __future__ import annotations

import pytest

from minimind.errors import ConfigError
from minimind.objective.reference_update import ReferenceUpdate, parse_reference_update


@pytest.mark.parametrize(
    ("text", "share", "every", "shown"),
    [
        ("soft:0.6@64", 0.6, 64, "every 64 global steps 0.6 of the policy and 0.4 of itself"),
        # An average is named by what it keeps.
        ("ema:0.99@1", 0.01, 1, "every global step 0.01 of the policy and 0.99 of itself"),
        ("hard@512", 1.0, 512, "every 512 global steps 1 of the policy"),
    ],
)
def test_forms(text, share, every, shown):
    update = parse_reference_update(text)
    assert update == ReferenceUpdate(share=pytest.approx(share), every=every)
    assert update.hard == (share == 1)
    assert str(update) == shown
    assert [step for step in range(1, 2 * every + 1) if update.due(step)] == [every, 2 * every]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.6@64", "the forms are soft:SHARE@STEPS"),
        ("soft:0.6", "the forms are"),
        ("soft@64", "the forms are"),
        ("hard:0.6@64", "the forms are"),
        ("ema:0.99@steps", "the forms are"),
        ("soft:half@64", "'half' is no number"),
        ("soft:nan@64", "nan is not between 0 and 1"),
        ("soft:1@64", "1 is not between 0 and 1; hard@64 takes the whole policy"),
        ("ema:0@64", "0 is not between 0 and 1"),
        ("soft:-0.5@64", "-0.5 is not between 0 and 1"),
        ("hard@0", "every 0 steps; give at least 1"),
    ],
)
def test_wrong_values_are_named(text, message):
    with pytest.raises(ConfigError, match=r"^--reference_update ") as caught:
        parse_reference_update(text)
    assert message in str(caught.value)
