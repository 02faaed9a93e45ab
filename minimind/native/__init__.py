"""The CPU's own kernels for bfloat16: what torch does in several passes over memory, in one.

    *.cpp -> library.py (compiled at first use) -> functions.py (autograd functions)

A GPU never comes here, float32 neither: there torch's operations are used, which are the kernels' oracle in the tests.
"""

from minimind.native.functions import (
    applies,
    log_sum_block_,
    log_sum_block_backward_,
    packed_attention,
    rms_norm,
    rotate,
    swiglu,
)
from minimind.native.library import prepare

__all__ = [
    "applies",
    "log_sum_block_",
    "log_sum_block_backward_",
    "packed_attention",
    "prepare",
    "rms_norm",
    "rotate",
    "swiglu",
]
