"""The process of a rank: its context, user errors on the console, and its end with a truthful exit status."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

import torch.distributed as dist

from minimind.errors import MiniMindError
from minimind.ranks.collectives import barrier
from minimind.ranks.exits import FAILED, PREEMPTED, leave
from minimind.ranks.verdicts import notice_seconds
from minimind.ranks.watch import Watch
from minimind.ranks.world import World


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
def user_errors() -> Iterator[None]:
    """Print a user error once and end the process with status 1. Other exceptions keep their traceback."""
    rank = int(os.environ.get("RANK", 0))
    try:
        yield
    except MiniMindError as error:
        if rank == 0 or not error.agreed:
            where = "" if rank == 0 else f" on rank {rank}"
            print(f"\n{type(error).__name__}{where}: {error}", file=sys.stderr, flush=True)
        end(FAILED)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error):
            # A broken connection means that another rank is lost. The watch names it and ends this process; the
            # traceback below is only for the case that the watch does not.
            time.sleep(notice_seconds(int(os.environ["WORLD_SIZE"])))
        raise


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
