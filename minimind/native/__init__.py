"""The CPU's own: kernels for bfloat16 that do in one pass what torch does in several, and a heap for tensors.

    kernels.cpp, attention.cpp, matmul.cpp -> library.py (compiled at first use) -> functions.py (autograd functions)
    heap.cpp                               -> library.py -> torch's allocator

A GPU never comes here. Kernels are for bfloat16 only: elsewhere torch's operations are used, which are the kernels'
oracle in the tests.
"""

from minimind.native.functions import (
    applies,
    feed_forward,
    linear,
    linears,
    log_sum_block_,
    log_sum_block_backward_,
    matmul,
    norm_rotate,
    packed_attention,
    rms_norm,
    rotate,
    swiglu,
)
from minimind.native.library import keep_memory, prepare

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
    "rotate",
    "swiglu",
]
