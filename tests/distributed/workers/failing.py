"""Run by two ranks: ways to fail. One argument: which."""

from __future__ import annotations

import sys
from pathlib import Path

from minimind.config import parse_settings
from minimind.data.pack import pack
from minimind.engine import process
from minimind.engine.ds_config import resolve_policy, resolve_reference
from minimind.engine.policy import Policy
from minimind.engine.reference import Reference
from minimind.errors import DataError
from minimind.model.configuration import MiniMindConfig
from minimind.training.step import check_start
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
    reference = Reference(RandomSource(config, seed=1), reference_config, world)
    policy = Policy(RandomSource(config, seed=2), policy_config, lambda step: 1.0, world)
    check_start(policy, reference, pack([random_pair(3, 20)]), "float32")


if __name__ == "__main__":
    with process.user_errors():
        joined = process.start()
        {"user_error": user_error, "crash": crash, "other_reference": other_reference}[sys.argv[-1]](joined)
    process.end(0)
