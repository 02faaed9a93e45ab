"""The CPU's own kernels for bfloat16: what torch does in several passes over memory, in one.

    kernels.cpp -> library.py (compiled at first use) -> functions.py (autograd functions)

A GPU never comes here, float32 neither: there torch's operations are used, which are the kernels' oracle in the tests.
"""

from minimind.native.functions import (
    add_to_,
    applies,
    causal_softmax_,
    causal_softmax_backward_,
    log_sum_block_,
    log_sum_block_backward_,
    rms_norm,
    rotate,
    swiglu,
)

__all__ = [
    "add_to_",
    "applies",
    "causal_softmax_",
    "causal_softmax_backward_",
    "log_sum_block_",
    "log_sum_block_backward_",
    "rms_norm",
    "rotate",
    "swiglu",
]
