"""The kernels' tests again, compiled for other processors: with AVX2, with AVX-512 but no bfloat16, and without AVX."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minimind.native import processor

pytestmark = [
    pytest.mark.usefixtures("cpu_kernels"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the compiler's flags are for x86-64"),
]

HERE = Path(__file__).parent


def macros(compiler: str) -> str:
    """The compiler's predefined macros for this processor, which tell its instruction sets."""
    command = [*shlex.split(compiler), "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run_tests(**environment: str) -> None:
    tests = [str(HERE / name) for name in ("test_functions.py", "test_attention.py", "test_products.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("cpu", "needs"), [("avx2", "avx2"), ("avx512", "avx512f")])
def test_the_kernels_tests_pass_as_for_another_cpu(cpu, needs):
    if needs not in processor.instructions():
        pytest.skip(f"the processor has no {needs}")
    if cpu == "avx2" and "avx512f" not in processor.instructions():
        pytest.skip("the kernels of this processor are those for AVX2")
    run_tests(MINIMIND_CPU=cpu)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_kernels_tests_pass_without_avx():
    compiler = f"{os.environ.get('CXX', 'c++')} -mno-avx"
    assert "__AVX__" not in macros(compiler)
    run_tests(CXX=compiler)
