"""DeepSpeed's Muon is compiled when it is first used, not when it is imported.

DeepSpeed imports Muon in every run, whatever its optimizer, and compiling a function imports torch's compiler: seconds
of every rank's start.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from minimind.engine.patches.registry import Patch, PatchSelection, find

_COMPILE = "deepspeed.runtime.compiler:compile"
LATE_COMPILE = Patch(
    name="late_compile",
    purpose="keeps a start from importing torch's compiler for Muon, until Muon is used",
    without="each rank's start takes seconds longer",
    names=(_COMPILE,),
)


def compile_late(patches: PatchSelection) -> None:
    """Compile what DeepSpeed decorates at its first call, in what this process imports from here on."""
    if not patches.uses(LATE_COMPILE):
        return
    decorator = find(_COMPILE)

    def late() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return lambda function: _compiled_at_first_call(decorator(), function)

    module, _, name = _COMPILE.partition(":")
    setattr(importlib.import_module(module), name, late)


def _compiled_at_first_call(decorate: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = functools.cache(lambda: decorate(function))

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return compiled()(*args, **options)

    return call
