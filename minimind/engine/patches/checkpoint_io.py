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
def collect_write_failures(engine: Any, on_progress: Callable[[], object]) -> Iterator[list[FailedWrite]]:
    """Collect this rank's write errors instead of raising them inside `engine.save_checkpoint`.

    DeepSpeed's save ends with a barrier. A rank that raised before it would leave the others waiting there, so the
    caller checks the list after the barrier.

    Args:
        engine: a DeepSpeed engine.
        on_progress: called after each file.
    """
    failures: list[FailedWrite] = []
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
def defer_load_epilogue(engine: Any) -> Iterator[Callable[[], None]]:
    """Take the collective at the end of `engine.load_checkpoint` out of it, and yield it as a function to call later.

    Under ZeRO-3 all ranks gather small weights there. A rank whose files cannot be loaded would never reach that
    collective, so the ranks first agree that all have loaded, and then the caller calls the function.
    """
    optimizer = engine.optimizer
    epilogue = getattr(optimizer, "checkpoint_event_epilogue", None)
    if epilogue is None:  # no optimizer of ZeRO-3: the load has no collective
        yield lambda: None
        return
    optimizer.checkpoint_event_epilogue = lambda: None
    try:
        yield epilogue
    finally:
        optimizer.checkpoint_event_epilogue = epilogue
