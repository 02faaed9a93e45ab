"""Compiling the kernels: by each process that needs them, from `prepare` on or at their first use, in two seconds.

    kernels.cpp, attention.cpp -> compiler -> a library in a temporary folder -> ctypes

Nothing is kept: no cache that another machine, another user or a kill could leave wrong, and no lock to wait for.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from pathlib import Path

import torch

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.cpp", "attention.cpp"))
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-fopenmp")
_COMPILE_SECONDS = 120

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
# As declared in the sources: p pointer, l long, f float.
_SIGNATURES = {
    "rms_norm_forward": "ppppllf",
    "rms_norm_backward": "pppppplll",
    "rotate": "ppppllllf",
    "swiglu_forward": "pppl",
    "swiglu_backward": "pppppl",
    "packed_attention": "ppppplllllfpp",
    "packed_attention_backward": "ppppplllllfpppppp",
    "log_sum_block": "ppppplll",
    "log_sum_block_backward": "pppplll",
}


_lock = threading.Lock()


def prepare() -> None:
    """Begin to compile, while the caller goes on."""
    threading.Thread(target=library, name="kernels", daemon=True).start()


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with a warning that says why, where they cannot be compiled."""
    with _lock:
        return _library()


@functools.cache
def _library() -> ctypes.CDLL | None:
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
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or ""]
    if not compiler[0]:
        raise FileNotFoundError("no C++ compiler on PATH (CXX, c++, g++)")
    flags = [*_FLAGS, "-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else _FLAGS
    # Linked against the OpenMP that torch runs on: two of them would keep two sets of threads spinning.
    openmp = _openmp_runtime() or "-fopenmp"
    with tempfile.TemporaryDirectory() as work:
        objects = [f"{source.stem}.o" for source in _SOURCES]
        for command in (["-c", *map(str, _SOURCES), *flags], ["-shared", *objects, openmp, "-o", "kernels.so"]):
            subprocess.run(
                [*compiler, *command], cwd=work, capture_output=True, text=True, check=True, timeout=_COMPILE_SECONDS
            )
        return ctypes.CDLL(f"{work}/kernels.so")


def _openmp_runtime() -> str | None:
    """The OpenMP library that torch has loaded into this process."""
    torch.get_num_threads()
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"(/.*/lib(?:gomp|iomp5|omp)\b[^/\n]*\.so[^/\n]*)$", mapped, re.MULTILINE)
    return found.group(1) if found else None
