"""The process of a rank: its context, user errors on the console, and its end with a truthful exit status."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn

import torch.distributed as dist

from minimind.errors import MiniMindError
from minimind.ranks.collectives import barrier
from minimind.ranks.exits import CRASHED, FAILED, PREEMPTED, leave
from minimind.ranks.verdicts import notice_seconds
from minimind.ranks.watch import Watch
from minimind.ranks.world import World

# Of an error's first line, for the other ranks.
_ERROR_CHARACTERS = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankContext:
    """A started rank.

    Attributes:
        world: this rank among all ranks.
        watch: reports this rank's phase and progress, and ends a run that is stuck or has lost a rank.
    """

    world: World
    watch: Watch


@contextlib.contextmanager
def tell_errors(watch: Watch) -> Iterator[None]:
    """Tell the other ranks an error that ends this one alone; the error goes on to `user_errors`.

    Ranks of other machines would otherwise notice only its silence.
    """
    try:
        yield
    except Exception as error:
        if not _is_lost_connection(error) and not (isinstance(error, MiniMindError) and error.agreed):
            first_line = str(error).strip().partition("\n")[0]
            watch.fail(f"{type(error).__name__}: {first_line[:_ERROR_CHARACTERS]}")
        raise


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Print an error and end the process: a user error once and with status 1, any other with its traceback and 70."""
    rank = int(os.environ.get("RANK", 0))
    try:
        yield
    except MiniMindError as error:
        if rank == 0 or not error.agreed:
            where = "" if rank == 0 else f" on rank {rank}"
            print(f"\n{type(error).__name__}{where}: {error}", file=sys.stderr, flush=True)
        end(FAILED)
    except Exception as error:  # noqa: BLE001 - the interpreter's own exit may wait for NCCL for ever
        if _is_lost_connection(error):
            # The watch names the lost rank and ends this process; the traceback below is only for the case that the
            # watch does not.
            time.sleep(notice_seconds(int(os.environ["WORLD_SIZE"])))
        # Printed at once: the output of the ranks would mix within it.
        leave(CRASHED, f"On rank {rank}:\n{''.join(traceback.format_exception(error)).rstrip()}")


def _is_lost_connection(error: BaseException) -> bool:
    """Whether an error says that the connection to another rank broke: that rank is lost, not this one."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
    )


def end(status: int, context: RankContext | None = None) -> NoReturn:
    """End this process. After a finished or preempted run the ranks first wait for each other.

    Args:
        status: exit status.
        context: the started rank; its watch names ranks that are lost while the others wait here.
    """
    if status in (0, PREEMPTED):
        gc.collect()
        if context is not None:
            # Rank 0 may still be writing files. The watch stays active until every rank is here, to report its death.
            context.world.meet()
            context.watch.close()
        barrier()
        dist.destroy_process_group()
    leave(status)
