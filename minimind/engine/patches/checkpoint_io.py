"""Changes how DeepSpeed writes and loads checkpoint files, so that one rank's failure does not hang the others.

engine.save_checkpoint -> checkpoint_engine.save       wrapped: errors are collected, every rank reaches the barrier
                       -> _copy_recovery_script        skipped: it runs on one rank and its errors are not collected
engine.load_checkpoint -> checkpoint_event_epilogue    deferred: it is a collective that a failed rank never reaches
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minimind.engine.patches.registry import Patch, PatchSelection

_ENGINE = "deepspeed.runtime.engine:DeepSpeedEngine"

COLLECT_WRITE_FAILURES = Patch(
    name="collect_write_failures",
    purpose="lets a rank report a checkpoint file that it cannot write after all ranks have passed DeepSpeed's barrier",
    without="a checkpoint file that cannot be written ends the run",
    names=(
        f"{_ENGINE}._copy_recovery_script",
        "deepspeed.runtime.checkpoint_engine.checkpoint_engine:CheckpointEngine.save",
    ),
    attributes=("checkpoint_engine",),
)
DEFER_LOAD_EPILOGUE = Patch(
    name="defer_load_epilogue",
    purpose="lets ranks agree that all have loaded their files before ZeRO-3's collective at the end of a load",
    without="if only some ranks can load their files, the others wait until --timeout ends the run",
    names=("deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3.checkpoint_event_epilogue",),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailedWrite:
    """A checkpoint file that this rank could not write.

    Attributes:
        path: the file.
        error: the exception that DeepSpeed's writer raised.
    """

    path: Path
    error: Exception


@contextlib.contextmanager
def collect_write_failures(
    engine: Any, on_progress: Callable[[], object], patches: PatchSelection
) -> Iterator[list[FailedWrite]]:
    """Collect this rank's write errors instead of raising them inside `engine.save_checkpoint`.

    DeepSpeed's save ends with a barrier. A rank that raised before it would leave the others waiting there, so the
    caller checks the list after the barrier.

    Args:
        engine: a DeepSpeed engine.
        on_progress: called after each file.
        patches: if they leave out COLLECT_WRITE_FAILURES, errors are raised and the list stays empty.
    """
    failures: list[FailedWrite] = []
    if not patches.uses(COLLECT_WRITE_FAILURES, engine):
        yield failures
        return
    writer = engine.checkpoint_engine
    write, copy_scripts = writer.save, engine._copy_recovery_script

    def save(state_dict: Any, path: str) -> None:
        try:
            write(state_dict, path)
        # torch's zip writer turns the OSError of a full disk into a RuntimeError.
        except (OSError, RuntimeError) as error:
            failures.append(FailedWrite(path=Path(path), error=error))
        on_progress()

    writer.save, engine._copy_recovery_script = save, lambda folder: None
    try:
        yield failures
    finally:
        writer.save, engine._copy_recovery_script = write, copy_scripts


@contextlib.contextmanager
def defer_load_epilogue(engine: Any, patches: PatchSelection) -> Iterator[Callable[[], None]]:
    """Take the collective at the end of `engine.load_checkpoint` out of it, and yield it as a function to call later.

    Under ZeRO-3 all ranks gather small weights there. A rank whose files cannot be loaded would never reach that
    collective, so the ranks first agree that all have loaded, and then the caller calls the function.

    Args:
        engine: a DeepSpeed engine.
        patches: if they leave out DEFER_LOAD_EPILOGUE, the collective stays where it is.
    """
    optimizer = engine.optimizer
    epilogue = getattr(optimizer, "checkpoint_event_epilogue", None)
    # Only the optimizer of ZeRO-3 has this method.
    if epilogue is None or not patches.uses(DEFER_LOAD_EPILOGUE):
        yield lambda: None
        return
    optimizer.checkpoint_event_epilogue = lambda: None
    try:
        yield epilogue
    finally:
        optimizer.checkpoint_event_epilogue = epilogue
