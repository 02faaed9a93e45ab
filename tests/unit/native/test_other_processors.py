"""Kernels as a processor with less would have them: the same tests, compiled without its instructions."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minimind.native.library import compiled_kernels

pytestmark = [
    pytest.mark.skipif(compiled_kernels() is None, reason="no compiler here for the CPU kernels"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="its flags are for x86-64"),
]

HERE = Path(__file__).parent


@pytest.mark.timeout(300)
@pytest.mark.parametrize("without", ["avx512f", "avx"])
def test_the_kernels_tests_pass_without(without):
    tests = [str(HERE / name) for name in ("test_functions.py", "test_attention.py", "test_products.py")]
    compiler = f"{os.environ.get('CXX', 'c++')} -mno-{without}"
    macros = subprocess.run(
        [*shlex.split(compiler), "-march=native", "-dM", "-E", "-x", "c++", os.devnull],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert f"__{without.upper()}__" not in macros
    environment = {**os.environ, "CXX": compiler}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
