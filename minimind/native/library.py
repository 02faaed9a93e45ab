"""Compiling the kernels: once per machine and version of their source, in a few seconds, without locks.

    kernels.cpp -> compiler -> $XDG_CACHE_HOME/minimind/native/KEY.so -> ctypes

The key is made of all that the result depends on, and the file appears whole or not at all, so processes that compile
at the same time do no harm, and a compile that is killed leaves nothing that another would wait for.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fPIC", "-fopenmp")
_COMPILE_SECONDS = 120

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
# As declared in kernels.cpp: p pointer, l long, f float.
_SIGNATURES = {
    "rms_norm_forward": "ppppllf",
    "rms_norm_backward": "ppppppll",
    "rotate": "ppppllllf",
    "swiglu_forward": "pppl",
    "swiglu_backward": "pppppl",
    "causal_softmax": "plllf",
    "causal_softmax_backward": "pplllf",
    "add_to": "plplll",
    "log_sum_block": "ppppplll",
    "log_sum_block_backward": "pppplll",
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with a warning that says why, where they cannot be compiled."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None  # where bfloat16 has no vector instructions of this kind, torch's own operations do as well
    try:
        loaded = _load()
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        reason = next((line for line in told if "error" in line), told[-1] if told else type(error).__name__)
        warnings.warn(f"the CPU kernels were not compiled, training is slower: {reason}", stacklevel=2)
        return None
    kinds = {"p": _POINTER, "l": _LONG, "f": _FLOAT}
    for name, signature in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = [kinds[letter] for letter in signature], None
    return loaded


def _load() -> ctypes.CDLL:
    """The library, from the cache or compiled."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler on PATH (CXX, c++, g++)")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    runtime = _openmp_runtime()
    parts = (_SOURCE.read_text(encoding="utf-8"), " ".join(_FLAGS), version, _processor(), str(runtime))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    kept = _cache_folder() / f"{key}.so"
    if kept.is_file():
        return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory() as work:
        fresh = _compile(compiler, Path(work), runtime)
        with contextlib.suppress(OSError):  # a cache that cannot be written to costs the next process a second
            kept.parent.mkdir(parents=True, exist_ok=True)
            partial = kept.with_suffix(f".{os.getpid()}.partial")
            shutil.copyfile(fresh, partial)
            partial.replace(kept)
        return ctypes.CDLL(str(fresh))


def _compile(compiler: str, work: Path, runtime: Path | None) -> Path:
    kernels, shared = work / "kernels.o", work / "kernels.so"
    # Linked against the OpenMP that torch runs on: two of them would keep two sets of threads spinning.
    openmp = [str(runtime)] if runtime else ["-fopenmp"]
    for command in (
        [compiler, *_FLAGS, "-c", str(_SOURCE), "-o", str(kernels)],
        [compiler, "-shared", str(kernels), *openmp, "-o", str(shared)],
    ):
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=_COMPILE_SECONDS)
    return shared


def _openmp_runtime() -> Path | None:
    """The OpenMP library that torch has loaded into this process."""
    torch.get_num_threads()
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"/\S*lib(?:gomp|iomp5)\S*\.so\S*", mapped)
    return Path(found.group()) if found else None


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.processor())


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimind" / "native"
