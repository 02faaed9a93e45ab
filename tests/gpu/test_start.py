"""Contexts on GPUs: none before a rank has chosen its own, and none on another rank's."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.support import needs_gpu, run_script

pytestmark = needs_gpu

# Asks the driver, which knows what torch does not.
CONTEXTS = """
import ctypes
driver = ctypes.CDLL("libcuda.so.1")
def contexts():
    count, active = ctypes.c_int(), []
    assert driver.cuInit(0) == driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    for number in range(count.value):
        flags, is_active = ctypes.c_uint(), ctypes.c_int()
        assert driver.cuDevicePrimaryCtxGetState(number, ctypes.byref(flags), ctypes.byref(is_active)) == 0
        active += [number] if is_active.value else []
    return active
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_imports_make_no_context():
    out = run_script("-c", f"{CONTEXTS}\nimport minimind.training.run\nprint('contexts', contexts())")
    assert "contexts []" in out


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_rank_has_a_context_on_its_own_gpu_only():
    start = (
        f"{CONTEXTS}\nfrom minimind.engine.start import start_rank\nfrom minimind.ranks.process import end\n"
        "started = start_rank(60.0)\nprint('contexts', contexts(), flush=True)\nend(0, started)"
    )
    free = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577", "LOCAL_RANK": "1"}
    assert "contexts [1]" in run_script("-c", start, **free)
