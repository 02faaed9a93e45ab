"""The processor that the CPU kernels are compiled for: this machine's, or one with fewer instructions to try it here.

    MINIMIND_CPU=native | avx512 | avx2 -> compiler flags        avx512: without bfloat16 instructions
    compiled kernels -> how bfloat16 matrices are multiplied     by the kernel, by torch, or by torch in float32

Torch itself is held to AVX2 by MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2.
"""

from __future__ import annotations

import enum
import os
import platform

VARIABLE = "MINIMIND_CPU"
_X86 = ("x86_64", "AMD64")
# GCC and clang use only half of AVX-512's vector width unless told otherwise.
_WIDE = "-mprefer-vector-width=512"
_FLAGS = {"avx512": ("-march=x86-64-v4", _WIDE), "avx2": ("-march=x86-64-v3",)}


class Products(enum.Enum):
    """The fastest way of multiplying bfloat16 matrices on a processor; the values are the kernels' numbers for it."""

    KERNEL = 1  # it has vector instructions for bfloat16 and no matrix units
    TORCH = 2  # it has matrix units (AMX), or it is an ARM with bfloat16 instructions: torch's library uses these
    FLOAT32 = 0  # it has none: products of matrices that are cast to float32


def requested() -> str:
    """The value of MINIMIND_CPU."""
    return os.environ.get(VARIABLE) or "native"


def problem() -> str | None:
    """Why the value of MINIMIND_CPU cannot be used on this machine; None if it can."""
    value = requested()
    if value != "native" and value not in _FLAGS:
        return f"{VARIABLE}={value}: use native, {' or '.join(_FLAGS)}"
    if value != "native" and platform.machine() not in _X86:
        return f"{VARIABLE}={value} is for x86-64 processors, this is {platform.machine()}; use native"
    return None


def compiler_flags() -> tuple[str, ...]:
    """Flags that make a compiler use the requested instructions."""
    wide = (_WIDE,) if platform.machine() in _X86 else ()
    return _FLAGS.get(requested(), ("-march=native", *wide))


def fastest_products() -> Products:
    """What the kernels will say when they are compiled; from the processor's own list of its instructions."""
    has = instructions()
    # Before AVX512-BF16, which processors with AMX have too.
    if has & {"amx_bf16", "bf16"}:  # bf16: ARM's name
        return Products.TORCH
    return Products.KERNEL if "avx512_bf16" in has else Products.FLOAT32


def instructions() -> frozenset[str]:
    """Names of the instruction sets that the kernels are compiled for, among those that matter here.

    Empty on a system without /proc/cpuinfo.
    """
    known = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "bf16")
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        line = ""
    left_out = {"avx2": set(known) - {"avx2"}, "avx512": {"amx_bf16", "avx512_bf16"}}.get(requested(), set())
    return frozenset(set(line.split()) & set(known)) - left_out


def describe() -> str:
    """How this processor multiplies bfloat16 matrices, for the user."""
    has = instructions()
    if fastest_products() is Products.KERNEL:
        return "the project's CPU kernel (AVX512-BF16)"
    if fastest_products() is Products.TORCH:
        return f"torch's library ({'AMX' if 'amx_bf16' in has else 'ARM bfloat16'})"
    best = next((text for name, text in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if name in has), platform.machine())
    return f"float32 products, since the CPU has no bfloat16 instructions ({best})"
