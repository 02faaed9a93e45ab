"""The fastest rate at which a GPU multiplies matrices, as its vendor states it: the denominator of MFU.

name of the device, dtype -> stated_peak -> operations per second, or None
"""

from __future__ import annotations

# Dense 16-bit operations per second that the vendor states, by words of the device's name. The entry with most words
# counts. Cards whose name does not tell the variant, or that clocks and power limits hold far below, are left out.
_STATED = {
    ("A100",): 312e12,
    ("A800",): 312e12,
    ("H100",): 989.4e12,
    ("H100", "PCIe"): 756e12,
    ("H100", "NVL"): 835e12,
    ("H800",): 989.4e12,
    ("H200",): 989.4e12,
    ("H200", "NVL"): 835e12,
    ("GH200",): 989.4e12,
    ("H20",): 148e12,
    ("B200",): 2250e12,
    ("A30",): 165e12,
    ("A40",): 149.7e12,
    ("L40S",): 362e12,
    ("L4",): 121e12,
}


def stated_peak(device: str, dtype: str) -> float | None:
    """Operations per second that the vendor states for a GPU, by its name; None for others and for a part of a GPU."""
    words = set(device.replace("-", " ").split())
    if dtype not in ("bfloat16", "float16") or "MIG" in words:
        return None
    fitting = [entry for entry in _STATED if words.issuperset(entry)]
    return _STATED[max(fitting, key=len)] if fitting else None
