"""The reference's engine is built only if pairs must be scored, and once for all files."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from minimind.config import parse_settings
from minimind.data.packs import pack
from minimind.data.sources import open_source
from minimind.data.table_cache import load_table
from minimind.engine.reference_cache import ReferenceCache
from minimind.ranks.watch import Watch
from minimind.training.console import Console
from minimind.training.setup import references
from tests.conftest import pair
from tests.unit.engine.test_reference_cache import ABOUT, WORLD, StandIn


@pytest.fixture
def tables(tokenizer, tmp_path):
    found = []
    for name, count in (("train", 9), ("eval", 4)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps(pair(f"{name} {i}?", "Yes.", "No!")) for i in range(count)))
        options = {"max_length": 64, "num_workers": 0, "cache_dir": tmp_path}
        found.append(load_table(open_source(path), tokenizer, **options))
    return found


class Engine(StandIn):
    """Counts how often it is built and closed."""

    built: int = 0
    closed: int = 0

    def __init__(self, *_: object) -> None:
        super().__init__(pairs_per_forward=3)
        Engine.built += 1

    def close(self) -> None:
        Engine.closed += 1


def test_an_engine_is_built_only_for_pairs_that_no_cache_contains(one_rank, tables, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(references, "LiveReference", Engine)
    prepared = SimpleNamespace(
        reference_source=None, other_reference=None, adapters=None, reference_config=None, settings=parse_settings([])
    )

    def fill() -> str:
        caches = [ReferenceCache(tmp_path / "cache", table, ABOUT, WORLD) for table in tables]
        engine = references.ReferenceEngine(prepared, SimpleNamespace(world=WORLD), Watch().tick)
        references._fill(caches, engine, pack, Console(enabled=True), Watch())
        engine.close()
        assert all(cache.num_known == len(cache) for cache in caches)
        return capsys.readouterr().out

    printed = fill()
    assert "reference of train.jsonl: 0 of 9 pairs" in printed
    assert "9/9 pairs scored" in printed
    assert "4/4 pairs scored" in printed
    assert (Engine.built, Engine.closed) == (1, 1)
    printed = fill()
    assert "reference of train.jsonl: 9 of 9 pairs" in printed
    assert "scored" not in printed
    assert (Engine.built, Engine.closed) == (1, 1)
    # One of the two caches is deleted.
    (path := next((tmp_path / "cache").glob("reference-*/rows.bin"))).unlink()
    assert "0 of" in fill()
    assert path.is_file()
    assert (Engine.built, Engine.closed) == (2, 2)


def test_a_loss_without_a_reference_builds_no_engine(monkeypatch):
    monkeypatch.setattr(references, "LiveReference", lambda *_: pytest.fail("an engine was built"))
    prepared = SimpleNamespace(objective=SimpleNamespace(needs=frozenset()))
    found = references.open_references(prepared, None, None, [1, 2], pack, {}, None, None)
    assert list(found) == [None, None]
