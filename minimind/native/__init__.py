"""Kernels for the operations that take most of a step's time, behind one table, and a heap for large CPU tensors.

    ops.py         the table: operation -> torch's way, the CPU's way, a GPU's way; what callers import
    selection.py   which of them this process uses: `prepare`, `using`
    torch_ops.py   torch's way, the oracle
    functions.py   the CPU's way: kernels.cpp and attention.cpp as autograd functions
    products.py    the CPU's way: matmul.cpp as autograd functions
    library.py     compiles and loads the C++ sources; heap.cpp's `keep_memory`

Importing this package compiles nothing, and without `prepare` nothing ever is.
"""

from minimind.native.library import keep_memory
from minimind.native.selection import AUTO, KERNELS, TORCH, prepare, using

__all__ = ["AUTO", "KERNELS", "TORCH", "keep_memory", "prepare", "using"]
