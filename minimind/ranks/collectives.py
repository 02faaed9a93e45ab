"""Communication between ranks that keeps them together when one of them fails.

    action on each rank -> agree, main_first, from_main -> the result, or the same error on every rank

An error that only some ranks can have goes through `agree`. A rank that raised it alone would leave the others waiting
in their next collective.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from minimind.errors import MiniMindError
from minimind.ranks.world import World

Result = TypeVar("Result")

# Seconds that torch's own time limit exceeds the watch's: the watch ends a stuck run first, since it can name the rank.
EXTRA_TIMEOUT = 60


def agree(world: World, action: Callable[[], Result], runs: bool = True) -> Result | None:
    """Run an action on every rank with `runs`. If it raises a user error on any rank, raise that error on all ranks.

    All ranks must call.

    Args:
        world: the ranks.
        action: what to run; may differ between ranks.
        runs: whether this rank runs it.

    Returns:
        The action's result; None on ranks without `runs`.

    Raises:
        MiniMindError: the class and text of the first failed rank's error, and the failed ranks if not all failed.
    """
    error: MiniMindError | None = None
    result = None
    # Other exceptions are defects. They end this process with a traceback, and the watch then ends the other ranks.
    try:
        if runs:
            result = action()
    except MiniMindError as caught:
        error = caught
    outcomes = gather(world, (runs, error))
    failed = {rank: other for rank, (_, other) in enumerate(outcomes) if other is not None}
    if failed:
        # Every rank raises the same text, so that only rank 0 has to print it.
        first = next(iter(failed.values()))
        all_failed = len(failed) == sum(ran for ran, _ in outcomes)
        raise type(first)(f"{first}{'' if all_failed else f' (only on {world.name(failed)})'}", agreed=True)
    return result


def main_first(world: World, action: Callable[[], Result]) -> Result:
    """Run an action on the first rank of every machine, then on the others, which find its files (a cache) written.

    All ranks must call.

    Raises:
        MiniMindError: on all ranks, if the action raised it on any.
    """
    is_first = world.local_rank == 0
    # Two agreements on every rank: the second group starts when the first one has finished.
    early = agree(world, action, runs=is_first)
    late = agree(world, action, runs=not is_first)
    result = early if is_first else late
    assert result is not None
    return result


def from_main(world: World, action: Callable[[], Result]) -> Result:
    """Run an action on rank 0 and return its result, which must be picklable, on all ranks. All ranks must call.

    Raises:
        MiniMindError: on all ranks, if the action raised it.
    """
    # torch fills the list in place on the ranks that receive. NCCL can broadcast only from a GPU's memory.
    box: list[Any] = [agree(world, action, runs=world.is_main)]
    dist.broadcast_object_list(box, src=0, device=None if world.on_cpu else world.device)
    return box[0]


def gather(world: World, value: Result) -> list[Result]:
    """Every rank's picklable value, in the order of ranks, on all ranks. All ranks must call.

    There is no time limit as long as any rank makes progress.
    """
    # The collective itself would fail at torch's time limit while one rank still works.
    world.meet()
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def all_reduce(values: Tensor, op: str = "sum") -> Tensor:
    """Sum (`op` "sum") or maximum ("max") of every rank's tensor, written into `values`. All ranks must call."""
    dist.all_reduce(values, op=dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX)
    return values


def barrier() -> None:
    """Wait for all ranks, up to torch's time limit."""
    # NCCL's barrier is a sum on one GPU. Without its number torch may guess it from the rank, which is another rank's
    # GPU if a machine has more GPUs than ranks.
    on_gpu = dist.get_backend() == dist.Backend.NCCL
    dist.barrier(device_ids=[torch.cuda.current_device()] if on_gpu else None)


class StopVote:
    """One vote a step: whether any rank was asked to stop. All ranks get the same answer, so all stop at one step.

    The vote runs while the step computes. It uses gloo on CPU tensors, so that no GPU stream has to be synchronised.

    Args:
        timeout: seconds without progress after which the watch ends the run.
    """

    def __init__(self, timeout: float) -> None:
        limit = datetime.timedelta(seconds=timeout + EXTRA_TIMEOUT)
        # A group of its own: within one group the vote would have to keep its place among the step's collectives.
        self._group = dist.new_group(backend="gloo", timeout=limit)

    def start(self, wants_stop: bool) -> None:
        """Start the vote at the beginning of a step."""
        self._votes = torch.tensor(int(wants_stop))
        self._work = dist.all_reduce(self._votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def result(self) -> bool:
        """Wait for the vote at the end of the step: whether any rank voted to stop."""
        self._work.wait()
        return bool(self._votes)
