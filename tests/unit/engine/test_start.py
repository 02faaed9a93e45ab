"""Parts of a rank's start that need no process group."""

from __future__ import annotations

import os

from minimind.engine.start import limit_primitive_cache


def test_the_primitive_cache_is_limited_unless_the_user_did(monkeypatch):
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    monkeypatch.setenv(names[0], "7")
    monkeypatch.setenv(names[1], "")  # registers the variable, so that monkeypatch removes it afterwards
    monkeypatch.delenv(names[1])
    limit_primitive_cache()
    assert os.environ[names[0]] == "7"
    assert int(os.environ[names[1]]) > 0
