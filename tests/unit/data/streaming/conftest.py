"""Fixtures of the tests of streamed data."""

from __future__ import annotations

import pytest

from minimind.data import tokens
from minimind.data.streaming import builder, rows


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    """Chunks of four rows, and no time between two looks at a folder."""
    monkeypatch.setattr(tokens, "_ROWS_PER_TASK", 4)
    monkeypatch.setattr(builder, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(rows, "_POLL_SECONDS", 0.001)
