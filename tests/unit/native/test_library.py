"""Compiling the kernels: a compiler with options, one that fails, none."""

from __future__ import annotations

import shutil

import pytest

from minimind.native import library as module

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")

# The function without its memory of what it gave before.
fresh = module._load_kernels.__wrapped__


def test_compiled_and_loaded_without_a_trace(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert fresh() is not None
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_may_come_with_options(monkeypatch):
    monkeypatch.setenv("CXX", "c++ -std=c++17")
    assert fresh() is not None


def test_without_a_compiler_there_is_a_warning_and_no_kernel(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.warns(UserWarning, match=r"not compiled.*no C\+\+ compiler on PATH"):
        assert fresh() is None


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch):
    broken = tmp_path / "broken.cpp"
    broken.write_text("this is no C++;", encoding="utf-8")
    monkeypatch.setattr(module, "_KERNELS", (broken,))
    with pytest.warns(UserWarning, match="error"):
        assert fresh() is None
