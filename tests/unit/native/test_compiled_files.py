"""Kept libraries: whole, this user's own, for this machine; without a folder none is kept."""

from __future__ import annotations

import os
import time

import pytest

from minimind.native import compiled_files
from minimind.native.compiled_files import find, keep, key_of


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "minimind/native"


def test_a_library_is_found_by_its_key(folder):
    one, other = key_of("source", "-O3"), key_of("source", "-O2")
    assert find(one) is None
    keep(one, b"library")
    assert (find(one), find(other)) == (b"library", None)
    (path,) = folder.iterdir()
    assert (path.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)


def test_parts_are_not_joined():
    assert len({key_of("ab", "c"), key_of("a", "bc"), key_of(b"ab", "c", "")}) == 3


def test_the_key_is_that_of_the_processor_and_of_what_the_compiler_reads(monkeypatch):
    keys = {key_of("source")}
    monkeypatch.setattr(compiled_files, "_processor", lambda: "another")
    keys.add(key_of("source"))
    monkeypatch.setenv("CPATH", "/other/headers")
    keys.add(key_of("source"))
    assert len(keys) == 3


def test_a_library_with_other_contents_is_removed(folder):
    keep(key_of("source"), b"library")
    (path,) = folder.iterdir()
    path.write_bytes(b"librarz")
    assert find(key_of("source")) is None
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_library_that_others_can_write_is_none(mode, folder):
    keep(key_of("source"), b"library")
    (path,) = folder.iterdir()
    path.chmod(mode)
    assert find(key_of("source")) is None
    assert path.exists()


def test_what_is_not_used_for_a_month_is_removed(folder):
    keep("old", b"old")
    keep("used", b"used")
    for path in folder.iterdir():
        os.utime(path, (0, time.time() - 40 * 86400))
    assert find("used") == b"used"
    keep("new", b"new")
    assert (find("old"), find("used"), find("new")) == (None, b"used", b"new")


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep("key", b"library")
    assert find("key") is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compiled_files.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    keep("key", b"library")
    assert find("key") is None
