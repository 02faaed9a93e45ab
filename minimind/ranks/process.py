"""Ranks: bringing them together, agreeing among them, stopping them at one step, and ending with a truthful status.

Whatever can fail on one rank alone goes through `agree`: every rank learns of it and raises the same error, so that
nobody waits for a rank that has given up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from minimind.errors import MiniMindError
from minimind.ranks import status
from minimind.ranks.watch import PREEMPTED, Watch, notice_seconds

Result = TypeVar("Result")

# The watch says who is late; torch's own limit, which cannot, is so many seconds later, for a watch that fails.
BEYOND_TIMEOUT = 60
# Shapes of matrix products that are remembered: those of some steps.
_PRIMITIVES = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """This process among the others.

    Attributes:
        rank, local_rank, size: its number, its number on this machine, how many there are.
        device: where its tensors live.
        hosts: the machine of every rank.
        watch: knows the phase that the rank is in, and ends runs that cannot go on.
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    hosts: tuple[str, ...] = ("localhost",)
    watch: Watch = dataclasses.field(default_factory=Watch)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"


def agree(world: World, action: Callable[[], Result], runs: bool = True) -> Result | None:
    """Run an action on every rank with `runs`; if it fails on any with a user's error, raise that error on all.

    Raises:
        MiniMindError: of the class and with the text of the first rank that failed, and which ranks did if not all
            that ran it.
    """
    error: MiniMindError | None = None
    result = None
    try:
        if runs:
            result = action()
    except MiniMindError as caught:
        error = caught
    outcomes = gather(world, (runs, error))
    failed = {rank: other for rank, (_, other) in enumerate(outcomes) if other is not None}
    if failed:
        first = next(iter(failed.values()))
        some = f" (only on {name_places(world, failed)})"
        raised = type(first)(f"{first}{some if len(failed) < sum(ran for ran, _ in outcomes) else ''}")
        raised.agreed = True
        raise raised
    return result


def main_first(world: World, action: Callable[[], Result]) -> Result:
    """The same on one rank per machine first: what it writes (a cache), the others on that machine only read."""
    leads = world.local_rank == 0
    first = agree(world, action, runs=leads)
    second = agree(world, action, runs=not leads)
    result = first if leads else second
    assert result is not None
    return result


def from_main(world: World, action: Callable[[], Result]) -> Result:
    """What an action gives on rank 0, on all ranks; a user's error there is raised on all."""
    box: list[Any] = [agree(world, action, runs=world.is_main)]
    dist.broadcast_object_list(box, src=0, device=None if world.on_cpu else world.device)
    return box[0]


def gather(world: World, value: Result) -> list[Result]:
    """Every rank's value, on all ranks; however long one of them takes to come, as long as it makes progress."""
    world.watch.meet()
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def all_reduce(values: Tensor, op: str = "sum") -> Tensor:
    """Sum or maximum over ranks, in place."""
    dist.all_reduce(values, op=dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX)
    return values


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()


class StopVote:
    """One question a step, on which all ranks agree: does any of them have to stop?

    The answer travels while the step computes, over the CPU's own connections, so that no device is waited for.
    """

    def __init__(self, world: World) -> None:
        self._watch = world.watch
        limit = datetime.timedelta(seconds=world.watch.timeout + BEYOND_TIMEOUT)
        self._group = dist.new_group(backend="gloo", timeout=limit)

    def ask(self) -> None:
        """At the start of a step."""
        self._wish = torch.tensor(int(self._watch.stop_reason is not None))
        self._work = dist.all_reduce(self._wish, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def answer(self) -> bool:
        """At its end: whether any rank had been told to stop when it began the step. The same on all ranks."""
        self._work.wait()
        return bool(self._wish)


def bound_primitives(world: World) -> None:
    """Bound what the CPU's matrix library keeps of the shapes it has met; to be called before the first product.

    Packs differ in length, so that every step brings some twenty new shapes, each half a megabyte of code and tables:
    unbounded they come to half a gigabyte, of shapes that will not come again. What one step needs twice is kept.
    """
    if world.on_cpu:
        for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # the library's own, and torch's
            os.environ.setdefault(name, str(_PRIMITIVES))


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Print a user's error once and end with status 1; everything else keeps its traceback."""
    rank = int(os.environ.get("RANK", 0))
    try:
        yield
    except MiniMindError as error:
        if rank == 0 or not error.agreed:
            where = "" if rank == 0 else f" on rank {rank}"
            print(f"\n{type(error).__name__}{where}: {error}", file=sys.stderr, flush=True)
        end(1)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error):
            # A connection broke: another rank is gone. The watch finds out which, says so and ends this process.
            time.sleep(notice_seconds(int(os.environ["WORLD_SIZE"])))
        raise


def end(status: int, world: World | None = None) -> NoReturn:
    """Leave the process group and end; all ranks together if the run ended as it should, by itself or by request.

    The process ends here rather than at the interpreter's own exit, where a gloo thread that still takes the
    interpreter's lock aborts a finished run now and then.
    """
    if status in (0, PREEMPTED):
        gc.collect()
        if world is not None:
            world.watch.meet()  # what rank 0 still does for itself may fail, and be noticed
            world.watch.close()
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def name_places(world: World, ranks: Iterable[int]) -> str:
    """Ranks, and their machines where there are several."""
    return status.name_places(ranks, world.hosts)
