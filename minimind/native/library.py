"""Compiling the C++ parts: by each process that needs them, from `prepare` on or at their first use, in two seconds.

    kernels.cpp, attention.cpp, matmul.cpp -> compiler -> a library in a temporary folder -> ctypes
    heap.cpp                               likewise, against torch's own headers

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
from collections.abc import Sequence
from pathlib import Path

import torch

_KERNELS = tuple(Path(__file__).with_name(name) for name in ("kernels.cpp", "attention.cpp", "matmul.cpp"))
_HEAP = (Path(__file__).with_name("heap.cpp"),)
_FLAGS = ("-std=c++17", "-O3", "-fPIC")
_KERNEL_FLAGS = ("-march=native", "-fno-math-errno", "-fopenmp")
_COMPILE_SECONDS = 120

# As declared in the sources: p pointer, l long, f float, d double; behind > what comes back.
_KINDS = {"p": ctypes.c_void_p, "l": ctypes.c_long, "f": ctypes.c_float, "d": ctypes.c_double}
_SIGNATURES = {
    "made_for_matmul": ">l",
    "matmul_space": "pll>l",
    "matmul": "plplll",
    "swiglu_space": "ll>l",
    "matmul_swiglu": "pppppppllllll",
    "rms_norm_forward": "ppppllf",
    "rms_norm_backward": "ppppppplll",
    "rotate": "ppppllllf",
    "norm_rotate_forward": "pppppplllf",
    "norm_rotate_backward": "ppppppppllll",
    "swiglu_forward": "pppl",
    "swiglu_backward": "ppppppl",
    "widen_all": "ppl>d",
    "packed_attention": "ppppplllllfpp",
    "packed_attention_backward": "ppppplllllfpppppp",
    "log_sum_block": "ppppplll",
    "log_sum_block_backward": "pppplll",
}


_kernels_lock, _heap_lock = threading.Lock(), threading.Lock()


def prepare(kernels: bool = True) -> None:
    """Begin to compile the heap, and the kernels if they will be needed, while the caller goes on."""
    for compiled in (_heap, library) if kernels else (_heap,):
        threading.Thread(target=compiled, name=compiled.__name__, daemon=True).start()


@functools.cache  # asked for a thousand times a step; the lock is for who asks first
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with a warning that says why, where they cannot be compiled."""
    with _kernels_lock:
        return _load_kernels()


@functools.cache
def keep_memory() -> None:
    """From here on large tensors on the CPU live in memory that the process keeps, see heap.cpp.

    Where that cannot be had, a warning says why and torch goes on with the C library's.
    """
    heap = _heap()
    if heap is not None and heap.keep_memory() != 0:
        _warn("memory is not kept", "the system reserves no addresses (ulimit -v)")


def _heap() -> ctypes.CDLL | None:
    with _heap_lock:
        return _load_heap()


@functools.cache
def _load_heap() -> ctypes.CDLL | None:
    torch_folder = Path(torch.__file__).parent
    abi = int(torch.compiled_with_cxx11_abi())
    try:
        return _load(
            _HEAP,
            (f"-I{torch_folder / 'include'}", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"),
            (f"-L{torch_folder / 'lib'}", "-lc10"),
        )
    except (OSError, subprocess.SubprocessError) as error:
        _warn("memory is not kept", error)
        return None


@functools.cache
def _load_kernels() -> ctypes.CDLL | None:
    wide = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
    # Linked against the OpenMP that torch runs on: two of them would keep two sets of threads spinning.
    openmp = _openmp_runtime() or "-fopenmp"
    try:
        loaded = _load(_KERNELS, (*_KERNEL_FLAGS, *wide), (openmp,))
    except (OSError, subprocess.SubprocessError) as error:
        _warn("the CPU kernels were not compiled", error)
        return None
    for name, signature in _SIGNATURES.items():
        function = getattr(loaded, name)
        takes, _, gives = signature.partition(">")
        function.argtypes, function.restype = [_KINDS[letter] for letter in takes], _KINDS.get(gives)
    return loaded


def _warn(what: str, reason: Exception | str) -> None:
    told = (getattr(reason, "stderr", None) or str(reason)).strip().splitlines()
    line = next((line for line in told if "error" in line), told[-1] if told else type(reason).__name__)
    warnings.warn(f"{what}, training is slower: {line}", stacklevel=3)


def _load(sources: Sequence[Path], compile_flags: Sequence[str], link_flags: Sequence[str]) -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or ""]
    if not compiler[0]:
        raise FileNotFoundError("no C++ compiler on PATH (CXX, c++, g++)")
    with tempfile.TemporaryDirectory() as work:
        objects = [f"{source.stem}.o" for source in sources]
        for command in (
            ["-c", *map(str, sources), *_FLAGS, *compile_flags],
            ["-shared", *objects, *link_flags, "-o", "built.so"],
        ):
            subprocess.run(
                [*compiler, *command], cwd=work, capture_output=True, text=True, check=True, timeout=_COMPILE_SECONDS
            )
        return ctypes.CDLL(f"{work}/built.so")


def _openmp_runtime() -> str | None:
    """The OpenMP library that torch has loaded into this process."""
    torch.get_num_threads()
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"(/.*/lib(?:gomp|iomp5|omp)\b[^/\n]*\.so[^/\n]*)$", mapped, re.MULTILINE)
    return found.group(1) if found else None
