"""The kernels' tests again, compiled without AVX-512 and without AVX, as for processors that have neither."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.usefixtures("cpu_kernels"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the compiler's flags are for x86-64"),
]

HERE = Path(__file__).parent


def macros(compiler: str) -> str:
    """The compiler's predefined macros for this processor, which tell its instruction sets."""
    command = [*shlex.split(compiler), "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("without", ["avx512f", "avx"])
def test_the_kernels_tests_pass_without(without):
    compiler = os.environ.get("CXX", "c++")
    if f"__{without.upper()}__" not in macros(compiler):
        pytest.skip(f"the processor has no {without}: the other tests have run without it")
    compiler += f" -mno-{without}"
    assert f"__{without.upper()}__" not in macros(compiler)
    tests = [str(HERE / name) for name in ("test_functions.py", "test_attention.py", "test_products.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env={**os.environ, "CXX": compiler}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
