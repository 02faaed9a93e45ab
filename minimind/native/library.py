"""Compiles the C++ sources and loads them.

    kernels.cpp, attention.cpp, matmul.cpp -> cache, or compiler -> shared library in a temporary folder -> ctypes
    heap.cpp                               -> likewise, with torch's headers

Compiling takes about two seconds, and what is compiled is kept for the next process (compiled_files.py).
"""

from __future__ import annotations

import ctypes
import functools
import os
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

from minimind.native import compiled_files, processor

_KERNELS = tuple(Path(__file__).with_name(name) for name in ("kernels.cpp", "attention.cpp", "matmul.cpp"))
_HEAP = (Path(__file__).with_name("heap.cpp"),)
_FLAGS = ("-std=c++17", "-O3", "-fPIC")
_KERNEL_FLAGS = ("-fno-math-errno", "-fopenmp")
_BUILT = "built.so"
_COMPILE_SECONDS = 120

# Argument types of each exported function, one letter per argument: p pointer, l long, f float, d double. After ">" the
# type of the result. They must match the C++ declarations: ctypes does not check them.
_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_long, "f": ctypes.c_float, "d": ctypes.c_double}
_SIGNATURES = {
    "bfloat16_products": ">l",
    "matmul_space": "pll>l",
    "matmul": "plplll",
    "matmul_swiglu_space": "ll>l",
    "matmul_swiglu": "pppppppllllll",
    "rms_norm_forward": "ppppllf",
    "rms_norm_backward": "ppppppplll",
    "rotate": "ppppllllf",
    "norm_rotate_forward": "pppppplllf",
    "norm_rotate_backward": "ppppppppllll",
    "swiglu_forward": "pppl",
    "swiglu_backward": "ppppppl",
    "cast_and_sum_squares": "ppl>d",
    "packed_attention": "ppppplllllfpp",
    "packed_attention_backward": "ppppplllllfpppppp",
    "log_sum_block": "pppppplll",
    "log_sum_block_backward": "pppplll",
}

# Held while compiling: a thread that needs the library waits for the background thread instead of compiling it again.
_kernels_lock, _heap_lock = threading.Lock(), threading.Lock()


def compile_in_background(*, kernels: bool, heap: bool) -> None:
    """Start to compile the kernels, the heap or both; `compiled_kernels` and `keep_memory` wait for the result."""
    if heap:  # first: the training run needs it first
        threading.Thread(target=_compiled_heap, name="compile heap", daemon=True).start()
    if kernels:
        threading.Thread(target=compiled_kernels, name="compile kernels", daemon=True).start()


@functools.cache  # asked a thousand times a step; only the first callers reach the lock
def compiled_kernels() -> ctypes.CDLL | None:
    """The compiled kernels; None, after a warning that gives the reason, if they cannot be compiled."""
    with _kernels_lock:
        return _load_kernels()


@functools.cache
def keep_memory() -> None:
    """Allocate large CPU tensors from a heap of the process from here on, see heap.cpp. It cannot be undone.

    If the heap cannot be compiled or cannot reserve addresses, a warning gives the reason and torch's own allocator
    stays.
    """
    heap = _compiled_heap()
    if heap is not None and heap.keep_memory() != 0:
        _warn("memory is not kept", "the system reserves no addresses (ulimit -v)")


def _compiled_heap() -> ctypes.CDLL | None:
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
    # Link to the OpenMP runtime that torch has loaded. A second one would have its own threads, which spin on the cores
    # of the first one's while they wait for work.
    openmp = _openmp_runtime() or "-fopenmp"
    try:
        loaded = _load(_KERNELS, (*processor.compiler_flags(), *_KERNEL_FLAGS), (openmp,))
    except (OSError, subprocess.SubprocessError) as error:
        _warn("the CPU kernels were not compiled", error)
        return None
    for name, signature in _SIGNATURES.items():
        function = getattr(loaded, name)
        arguments, _, result = signature.partition(">")
        function.argtypes, function.restype = [_TYPES[letter] for letter in arguments], _TYPES.get(result)
    return loaded


def _warn(problem: str, reason: Exception | str) -> None:
    """Warn with the first line of a compiler's output that names an error, or else its last line."""
    lines = (getattr(reason, "stderr", None) or str(reason)).strip().splitlines()
    line = next((line for line in lines if "error" in line), lines[-1] if lines else type(reason).__name__)
    warnings.warn(f"{problem}, training is slower: {line}", stacklevel=3)


def _load(sources: Sequence[Path], compile_flags: Sequence[str], link_flags: Sequence[str]) -> ctypes.CDLL:
    """Load what an earlier process has compiled of these sources, else compile them."""
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or ""]
    if not compiler[0]:
        raise FileNotFoundError("no C++ compiler on PATH (CXX, c++, g++)")
    commands = (
        [*compiler, "-c", *map(str, sources), *_FLAGS, *compile_flags],
        [*compiler, "-shared", *(f"{source.stem}.o" for source in sources), *link_flags, "-o", _BUILT],
    )
    key = _key(compiler[0], sources, commands)
    with tempfile.TemporaryDirectory() as work:
        built = Path(work, _BUILT)
        if (library := compiled_files.find(key)) is not None:
            built.write_bytes(library)
        else:
            for command in commands:
                subprocess.run(command, cwd=work, capture_output=True, text=True, check=True, timeout=_COMPILE_SECONDS)
            compiled_files.keep(key, built.read_bytes())
        # The file is deleted at once; the loaded library stays mapped.
        return ctypes.CDLL(str(built))


def _key(compiler: str, sources: Sequence[Path], commands: Sequence[Sequence[str]]) -> str:
    """The key of everything that the library depends on."""
    texts = [path.read_bytes() for path in (*sources, *sorted(Path(__file__).parent.glob("*.h")))]
    program = Path(shutil.which(compiler) or compiler).resolve()
    status = program.stat()
    version = (torch.__version__, str(torch.version.git_version), torch.__file__)
    return compiled_files.key_of(*texts, repr(commands), f"{program} {status.st_size} {status.st_mtime_ns}", *version)


def _openmp_runtime() -> str | None:
    """Path of the OpenMP library that torch has loaded into this process; None if there is no /proc to look in."""
    torch.get_num_threads()  # loads it
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"(/.*/lib(?:gomp|iomp5|omp)\b[^/\n]*\.so[^/\n]*)$", mapped, re.MULTILINE)
    return found.group(1) if found else None
