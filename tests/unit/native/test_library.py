"""Compiling the kernels: a cache that cannot be written to, a compiler that fails or is not there."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from minimind.native import library as module

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or shutil.which("c++") is None, reason="no compiler, or another CPU"
)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "minimind" / "native"


# The function without its memory of what it gave before.
fresh = module.library.__wrapped__


def test_compiled_once_and_kept(cache, monkeypatch):
    assert fresh() is not None
    (kept,) = cache.iterdir()
    assert kept.suffix == ".so"
    monkeypatch.setattr(module, "_compile", None)
    assert fresh() is not None


def test_a_change_of_the_source_is_another_library(cache, tmp_path, monkeypatch):
    fresh()
    changed = tmp_path / "kernels.cpp"
    changed.write_text(module._SOURCE.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    monkeypatch.setattr(module, "_SOURCE", changed)
    fresh()
    assert len(list(cache.iterdir())) == 2


def test_a_cache_that_is_a_file_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "minimind").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fresh() is not None


def test_without_a_compiler_there_is_a_warning_and_no_kernel(cache, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.warns(UserWarning, match="not compiled.*no C\\+\\+ compiler on PATH"):
        assert fresh() is None


def test_a_compiler_that_fails_is_quoted(cache, tmp_path, monkeypatch):
    broken = tmp_path / "broken.cpp"
    broken.write_text("this is no C++;", encoding="utf-8")
    monkeypatch.setattr(module, "_SOURCE", broken)
    with pytest.warns(UserWarning, match="error"):
        assert fresh() is None
    assert not cache.exists() or not os.listdir(cache)
