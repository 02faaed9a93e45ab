"""Run by two ranks: ways to fail. One argument: which."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from minimind.config import parse_settings
from minimind.data.packs import pack
from minimind.engine.ds_config import resolve_policy, resolve_reference
from minimind.engine.policy import Policy
from minimind.engine.reference import LiveReference
from minimind.engine.start import start_rank
from minimind.errors import DataError
from minimind.model.configuration import MiniMindConfig
from minimind.objective.losses import SigmoidLoss
from minimind.ranks import process
from minimind.training.setup.start_check import check_start
from minimind.weights.sources import RandomSource

sys.path.insert(0, str(Path(__file__).parent))
from engines import REPO, random_pair


def user_error(world: process.World) -> None:
    """A file that one rank does not have."""

    def read() -> None:
        if world.rank == 1:
            raise DataError("rank 1 has no file")

    process.agree(world, read)


def crash(world: process.World) -> None:
    """A defect on one rank, while the other waits."""
    if world.rank == 1:
        print(1 // 0)
    process.barrier()


def other_reference(world: process.World) -> None:
    """Policy and reference start from different weights."""
    settings = parse_settings(["--dtype", "float32"])
    policy_config = resolve_policy(REPO / "ds_configs/zero2.json", settings, world.size, world.on_cpu)
    policy_config.values["tensorboard"]["enabled"] = False
    reference_config = resolve_reference(REPO / "ds_configs/reference.json", settings, world.size, world.on_cpu)
    config = MiniMindConfig(hidden_size=64, num_hidden_layers=1, vocab_size=640)
    reference = LiveReference(RandomSource(config, seed=1), reference_config, world)
    policy = Policy(RandomSource(config, seed=2), policy_config, lambda step: 1.0, world)
    check_start(policy, reference, pack([random_pair(3, 20)]), "float32", SigmoidLoss())


def killed_at_the_end(world: process.World) -> None:
    """Rank 0 dies over what it still does alone when the others have nothing left to do."""
    if world.is_main:
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGKILL)
    process.end(0, world)


def other_device(world: process.World) -> None:
    raise AssertionError("the ranks have come together")


if __name__ == "__main__":
    with process.user_errors():
        how = sys.argv[-1]
        if how == "other_device" and os.environ["RANK"] == "1":
            # As on a machine whose driver works, unlike that of the other.
            gpu = SimpleNamespace(device_name=lambda: "cuda", device_count=lambda: 8)
            process.get_accelerator = lambda: gpu
        joined = start_rank()
        ways = (user_error, crash, other_reference, killed_at_the_end, other_device)
        {way.__name__: way for way in ways}[how](joined)
    process.end(0)
