"""Run by two ranks that stop making progress, with a limit of 6 s. One argument: how, the name of a function."""

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
    """Rank 0 takes longer than the limit but reports progress; then rank 1 hangs."""
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
    """Rank 0, whose process holds the store, is suspended with all its threads."""
    watch.enter("saving", 7)
    if world.is_main:
        os.kill(os.getpid(), signal.SIGSTOP)
    collectives.barrier()


def summing(world: World, watch: Watch) -> None:
    """Rank 1 does not join a sum in shared memory, in which rank 0 spins without a limit."""
    watch.enter("backward", 7)
    if world.rank == 1:
        time.sleep(600)
    torch.ops.deepspeed.inference_all_reduce_(torch.ones(2**20))


def interrupted(world: World, watch: Watch) -> None:
    """Both ranks are in a step that does not end."""
    watch.timeout = 600
    watch.enter("policy forward", 7)
    watch.can_save()
    print("in a long step", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    with process.user_errors():
        joined = start_rank()
        joined.watch.timeout = LIMIT
        ways = (slow, stopped, summing, interrupted)
        {way.__name__: way for way in ways}[sys.argv[-1]](joined.world, joined.watch)
