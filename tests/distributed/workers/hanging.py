"""Run by two ranks with a limit of 6 seconds. One argument: how they come to a halt."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch

from minimind.engine.start import start_rank
from minimind.ranks import collectives, process
from minimind.ranks.watch import Watch
from minimind.ranks.world import World

LIMIT = 6


def slow(world: World, watch: Watch) -> None:
    """One rank takes longer than the limit, and says that it gets on; then the other hangs."""
    watch.enter("tokenising")

    def tokenise() -> str:
        for _ in range(16 if world.is_main else 0):
            time.sleep(0.5)
            watch.tick()
        return "tokens"

    collectives.main_first(world, tokenise)
    if world.is_main:
        print("eight seconds of tokenising are no hang", flush=True)
    watch.enter("policy forward", 7)
    if world.rank == 1:
        time.sleep(600)
    watch.enter("backward")
    collectives.barrier()


def stopped(world: World, watch: Watch) -> None:
    """Rank 0, whose store the others ask, stands still: its threads too."""
    watch.enter("saving", 7)
    if world.is_main:
        os.kill(os.getpid(), signal.SIGSTOP)
    collectives.barrier()


def summing(world: World, watch: Watch) -> None:
    """Rank 1 does not come to a sum in shared memory, where the other spins without a pause or a limit."""
    watch.enter("backward", 7)
    if world.rank == 1:
        time.sleep(600)
    torch.ops.deepspeed.inference_all_reduce_(torch.ones(2**20))


if __name__ == "__main__":
    with process.user_errors():
        joined = start_rank()
        joined.watch.timeout = LIMIT
        {"slow": slow, "stopped": stopped, "summing": summing}[sys.argv[-1]](joined.world, joined.watch)
