"""All patches, by the module that applies them."""

from __future__ import annotations

from minimind.engine.patches.buffers import SKIP_BUFFERS
from minimind.engine.patches.checkpoint_io import COLLECT_WRITE_FAILURES, DEFER_LOAD_EPILOGUE
from minimind.engine.patches.compiles import GUARD_COMPILES
from minimind.engine.patches.first_step import COMPARE_FIRST_STEP
from minimind.engine.patches.kept_weights import KEEP_GATHERED
from minimind.engine.patches.late_compile import LATE_COMPILE
from minimind.engine.patches.narrow_headers import NARROW_HEADERS
from minimind.engine.patches.optimizer import (
    CAST_GRADIENTS_ONCE,
    DETECT_OVERFLOW_FROM_NORM,
    SKIP_REDUCTION_BUCKETS,
    SKIP_UNNEEDED_CLIPPING,
)
from minimind.engine.patches.partitions import FILL_OWN_SHARDS, RESHARD_CHECKPOINTS
from minimind.engine.patches.shared_memory import SHARE_MEMORY

PATCHES = (
    DETECT_OVERFLOW_FROM_NORM,
    SKIP_REDUCTION_BUCKETS,
    SKIP_UNNEEDED_CLIPPING,
    CAST_GRADIENTS_ONCE,
    COMPARE_FIRST_STEP,
    GUARD_COMPILES,
    LATE_COMPILE,
    NARROW_HEADERS,
    SKIP_BUFFERS,
    SHARE_MEMORY,
    FILL_OWN_SHARDS,
    COLLECT_WRITE_FAILURES,
    DEFER_LOAD_EPILOGUE,
    RESHARD_CHECKPOINTS,
    KEEP_GATHERED,
)
