"""Run by two ranks, which fail. One argument: how, the name of a function."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from minimind.config import parse_settings
from minimind.data.packs import pack
from minimind.engine import start
from minimind.engine.ds_config import resolve_policy, resolve_reference
from minimind.engine.policy import Policy
from minimind.engine.reference import LiveReference
from minimind.errors import DataError
from minimind.model.configuration import MiniMindConfig
from minimind.objective.losses import build_objective
from minimind.ranks import collectives, process
from minimind.ranks.process import RankContext
from minimind.training.setup.start_check import check_start
from minimind.weights.sources import RandomSource

sys.path.insert(0, str(Path(__file__).parent))
from engines import REPO, random_pair


def user_error(context: RankContext) -> None:
    """A file that one rank does not have."""

    def read() -> None:
        if context.world.rank == 1:
            raise DataError("rank 1 has no file")

    collectives.agree(context.world, read)


def crash(context: RankContext) -> None:
    """An exception on one rank while the other waits for it, and a thread for which an interpreter's exit waits."""
    with process.tell_errors(context.watch):
        if context.world.rank == 1:
            threading.Thread(target=time.sleep, args=(600,)).start()
            print(1 // 0)
        collectives.barrier()


def other_reference(context: RankContext) -> None:
    """Policy and reference start from different weights."""
    world = context.world
    settings = parse_settings(["--dtype", "float32"])
    policy_config = resolve_policy(REPO / "ds_configs/zero2.json", settings, world.size, world.on_cpu)
    policy_config.values["tensorboard"]["enabled"] = False
    reference_config = resolve_reference(REPO / "ds_configs/reference.json", settings, world.size, world.on_cpu)
    config = MiniMindConfig(hidden_size=64, num_hidden_layers=1, vocab_size=640)
    reference = LiveReference(RandomSource(config, seed=1), reference_config, world)
    policy = Policy(RandomSource(config, seed=2), policy_config, lambda step: 1.0, world)
    check_start(policy, reference, pack([random_pair(3, 20)]), "float32", build_objective("sigmoid"), "pair {}".format)


def killed_at_the_end(context: RankContext) -> None:
    """Rank 0 is killed after the last step, while the other rank waits for it."""
    if context.world.is_main:
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGKILL)
    process.end(0, context)


def other_device(context: RankContext) -> None:
    raise AssertionError("the ranks have come together")


if __name__ == "__main__":
    with process.user_errors():
        how = sys.argv[-1]
        if how == "other_device" and os.environ["RANK"] == "1":
            # As on a machine whose driver works, unlike that of the other.
            gpu = SimpleNamespace(device_name=lambda: "cuda", device_count=lambda: 8)
            start.get_accelerator = lambda: gpu
        joined = start.start_rank()
        ways = (user_error, crash, other_reference, killed_at_the_end, other_device)
        {way.__name__: way for way in ways}[how](joined)
    process.end(0)
