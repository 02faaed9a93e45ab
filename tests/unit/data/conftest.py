"""Fixtures of the tests of minimind/data/."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimind.data.sources import Source, open_source
from minimind.data.table import PairTable
from minimind.data.table_cache import load_table


@pytest.fixture
def load(tokenizer, tmp_path):
    """`load_table` with the demo's tokenizer and a cache in the test's own folder."""

    def call(source: Path | Source, **changes) -> PairTable:
        settings = {
            "tokenizer": tokenizer,
            "max_length": 64,
            "num_workers": 0,
            "cache_dir": tmp_path / "cache",
        }
        return load_table(source if isinstance(source, Source) else open_source(source), **{**settings, **changes})

    return call
