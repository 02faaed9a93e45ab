"""The CPU's own: kernels for bfloat16 that do in one pass what torch does in several, and a heap for tensors.

    kernels.cpp, attention.cpp -> library.py (compiled at first use) -> functions.py (autograd functions)
    matmul.cpp                 -> library.py                         -> products.py  (the same, of products)
    heap.cpp                   -> library.py                         -> torch's allocator

A GPU never comes here. Kernels are for bfloat16 only: elsewhere torch's operations are used, which are the kernels'
oracle in the tests.
"""

from minimind.native.functions import (
    applies,
    log_sum_block_,
    log_sum_block_backward_,
    norm_rotate,
    packed_attention,
    rms_norm,
    rms_norm_beside,
    rotate,
    swiglu,
    widen,
)
from minimind.native.library import keep_memory, prepare
from minimind.native.products import feed_forward, linear, linears, matmul

__all__ = [
    "applies",
    "feed_forward",
    "keep_memory",
    "linear",
    "linears",
    "log_sum_block_",
    "log_sum_block_backward_",
    "matmul",
    "norm_rotate",
    "packed_attention",
    "prepare",
    "rms_norm",
    "rms_norm_beside",
    "rotate",
    "swiglu",
    "widen",
]
