"""The draft of a run: what checks read."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.training.setup.test_checks import draft


def test_a_check_cannot_change_what_the_next_one_reads():
    with pytest.raises(dataclasses.FrozenInstanceError):
        draft().is_demo = True
