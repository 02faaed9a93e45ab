"""MINIMIND_CPU: the instructions that the kernels are compiled for."""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys

import pytest

from minimind.native import library, processor

X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the instruction sets are x86-64's")


@X86
@pytest.mark.parametrize("value", ["", "native", "avx2", "avx512"])
def test_known_values_are_no_problem(monkeypatch, value):
    monkeypatch.setenv("MINIMIND_CPU", value)
    assert processor.problem() is None


def test_an_unknown_value_is_named_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("MINIMIND_CPU", "sse")
    assert processor.problem() == "MINIMIND_CPU=sse: use native, avx512 or avx2"


def test_other_machines_are_native_only(monkeypatch):
    monkeypatch.setenv("MINIMIND_CPU", "avx2")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "is for x86-64 processors, this is aarch64; use native" in processor.problem()
    monkeypatch.setenv("MINIMIND_CPU", "native")
    assert processor.problem() is None
    assert processor.compiler_flags() == ("-march=native",)


@X86
@pytest.mark.parametrize(("value", "has", "lacks"), [("avx2", "AVX2", "AVX512F"), ("avx512", "AVX512F", "AVX512BF16")])
def test_the_compiler_uses_the_requested_instructions(monkeypatch, value, has, lacks):
    monkeypatch.setenv("MINIMIND_CPU", value)
    command = ["c++", *processor.compiler_flags(), "-dM", "-E", "-x", "c++", os.devnull]
    macros = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"__{has}__" in macros
    assert f"__{lacks}__" not in macros


@X86
@pytest.mark.usefixtures("cpu_kernels")
def test_kernels_for_avx2_multiply_in_float32():
    """In a process of its own: a process compiles the kernels once."""
    if "avx512f" not in processor.instructions():
        pytest.skip("the kernels of this processor are those for AVX2")
    code = (
        "import torch\nfrom minimind import native\nfrom minimind.native import ops, products\n"
        "native.prepare(heap=False)\na, b = torch.randn(64, 32).bfloat16(), torch.randn(32, 48).bfloat16()\n"
        "assert torch.equal(ops.matmul(a, b), (a.float() @ b.float()).bfloat16())\nprint(products._fastest().name)\n"
    )
    environment = {**os.environ, "MINIMIND_CPU": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=200)
    assert done.stdout.split() == ["FLOAT32"], done.stderr


CPUINFO = {
    "a server with AMX": ("flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n", "TORCH", "AMX"),
    "a server without AMX": ("processor: 0\nflags : avx avx2 avx512f avx512_bf16\n", "KERNEL", "AVX512-BF16"),
    "an older server": ("flags : avx avx2 avx512f\n", "FLOAT32", "AVX-512"),
    "a laptop": ("flags : avx avx2\n", "FLOAT32", "(AVX2)"),
    "an old machine": ("flags : sse4_2\n", "FLOAT32", f"({platform.machine()})"),
    "an ARM with bfloat16": ("Features\t: fp asimd bf16 i8mm\n", "TORCH", "ARM"),
    "an ARM without": ("Features\t: fp asimd\n", "FLOAT32", f"({platform.machine()})"),
}


@pytest.mark.parametrize("name", CPUINFO)
def test_the_way_of_multiplying_is_read_from_the_processor_s_list(monkeypatch, name):
    text, fastest, said = CPUINFO[name]
    monkeypatch.delenv("MINIMIND_CPU", raising=False)
    monkeypatch.setattr("builtins.open", lambda *given, **more: io.StringIO(text))
    assert processor.fastest_products().name == fastest
    assert said in processor.describe()


@pytest.mark.parametrize(("value", "left"), [("avx2", {"avx2"}), ("avx512", {"avx2", "avx512f"})])
def test_a_requested_instruction_set_leaves_out_later_ones(monkeypatch, value, left):
    monkeypatch.setenv("MINIMIND_CPU", value)
    monkeypatch.setattr("builtins.open", lambda *given, **more: io.StringIO(CPUINFO["a server with AMX"][0]))
    assert processor.instructions() == left
    assert processor.fastest_products() is processor.Products.FLOAT32


def test_a_system_without_the_list(monkeypatch):
    def missing(*given, **more):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert processor.instructions() == frozenset()


@pytest.mark.usefixtures("cpu_kernels")
def test_the_list_and_the_compiled_kernels_agree():
    compiled = library.compiled_kernels()
    assert processor.Products(compiled.bfloat16_products()) is processor.fastest_products()
