"""Keeps what ZeRO-3 has gathered: a generation then gathers each weight once, not once for each token.

parameters -> mark as in use by a module that does not exist -> modules gather them, and do not release them -> unmark
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from minimind.engine.patches.registry import Patch

KEEP_GATHERED = Patch(
    name="keep_gathered",
    purpose="lets a generation under ZeRO-3 gather each weight once, where memory suffices",
    without="each token gathers the weights anew",
    attributes=("ds_active_sub_modules",),
)
# DeepSpeed numbers modules from 0.
_NO_MODULE = -1


@contextlib.contextmanager
def kept_weights(engine: Any, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Within it, weights that a module of the engine has gathered stay whole; at its end all are released."""
    marked: list[Any] = list(parameters)
    for parameter in marked:
        parameter.ds_active_sub_modules.add(_NO_MODULE)
    try:
        yield
    finally:
        for parameter in marked:
            parameter.ds_active_sub_modules.discard(_NO_MODULE)
        engine.empty_partition_cache()
