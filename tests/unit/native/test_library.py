"""Compiling: a compiler with options, one that fails, none; what is compiled is kept for the next process."""

from __future__ import annotations

import re
import shutil

import pytest

from minimind.native import library as module

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")

# The functions without their caches.
load_kernels = module._load_kernels.__wrapped__
load_heap = module._load_heap.__wrapped__


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of libraries that are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/minimind/native"


@pytest.fixture
def one_source(tmp_path, monkeypatch):
    """A source that compiles at once, in place of the kernels; it exports one function."""
    source = tmp_path / "source.cpp"
    source.write_text('extern "C" long answer() { return FLAG; }', encoding="utf-8")
    monkeypatch.setattr(module, "_KERNELS", (source,))
    monkeypatch.setattr(module, "_SIGNATURES", {"answer": ">l"})
    return source


def test_a_library_is_loaded_and_its_working_files_are_deleted(one_source, tmp_path, monkeypatch):
    """A compiler may come with options."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(work))
    monkeypatch.setenv("CXX", "c++ -DFLAG=42")
    assert load_kernels().answer() == 42
    assert list(work.iterdir()) == []


def test_what_is_compiled_is_not_compiled_again(one_source, cache, monkeypatch):
    """Another option, another text of the source, or a damaged file: it is."""
    runs, run = [], module.subprocess.run
    monkeypatch.setattr(module.subprocess, "run", lambda command, **options: (runs.append(1), run(command, **options)))
    monkeypatch.setenv("CXX", "c++ -DFLAG=42")
    assert [load_kernels().answer() for _ in range(3)] == [42, 42, 42]
    assert len(runs) == 2  # compile, link
    monkeypatch.setenv("CXX", "c++ -DFLAG=43")
    assert load_kernels().answer() == 43
    one_source.write_text('extern "C" long answer() { return 1 + FLAG; }', encoding="utf-8")
    assert load_kernels().answer() == 44
    assert len(runs) == 6
    assert len(list(cache.iterdir())) == 3
    for path in cache.iterdir():
        path.write_bytes(b"not a library")
    assert load_kernels().answer() == 44
    assert len(runs) == 8


def test_signatures_are_those_of_the_exported_functions():
    """ctypes cannot check them: with a wrong letter it would pass a wrong argument."""
    sources = "".join(path.read_text(encoding="utf-8").partition('extern "C" {')[2] for path in module._KERNELS)
    definition = re.compile(r"^(void|long|double) (\w+)\((.*?)\) \{", re.MULTILINE | re.DOTALL)
    declared = {}
    for result, name, parameters in definition.findall(sources):
        types = [one.replace("const ", "").strip() for one in parameters.split(",")] if parameters else []
        letters = "".join("p" if "*" in one else one[0] for one in types)
        declared[name] = letters + (">" + result[0]) * (result != "void")
    assert declared == module._SIGNATURES


def test_a_compiler_that_fails_is_quoted(one_source, monkeypatch):
    monkeypatch.setenv("CXX", "c++")  # FLAG is not declared
    with pytest.warns(UserWarning, match=r"the CPU kernels were not compiled, training is slower: .*error.*FLAG"):
        assert load_kernels() is None


def test_without_a_compiler_there_is_a_warning_and_no_library(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.warns(UserWarning, match=r"not compiled.*no C\+\+ compiler on PATH"):
        assert load_kernels() is None
    with pytest.warns(UserWarning, match=r"memory is not kept.*no C\+\+ compiler on PATH"):
        assert load_heap() is None


def test_the_openmp_runtime_is_the_one_that_torch_has_loaded():
    found = module._openmp_runtime()
    assert found is None or "omp" in found.rpartition("/")[2]


def test_compiling_in_the_background_starts_what_is_asked_for(monkeypatch):
    started = []
    monkeypatch.setattr(module, "_compiled_heap", lambda: started.append("heap"))
    monkeypatch.setattr(module, "compiled_kernels", lambda: started.append("kernels"))

    class Thread:
        def __init__(self, *, target, name, daemon):
            self.start = target
            assert daemon  # a run that ends meanwhile does not wait for the compiler

    monkeypatch.setattr(module.threading, "Thread", Thread)
    module.compile_in_background(kernels=False, heap=False)
    assert started == []
    module.compile_in_background(kernels=True, heap=True)
    assert started == ["heap", "kernels"]
