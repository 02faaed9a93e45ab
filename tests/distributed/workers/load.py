"""Run by several ranks: measures the memory of building policy and reference as ZeRO-3 shards.

Arguments: a weight file or folder, and a file for the answer: for each rank, in bytes above what it held before, the
most and what stays, of its own memory (`anon`) and of pages of files that it has mapped (`file`, shared by ranks, and
taken back by the system when it needs them).
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from minimind.config import parse_settings
from minimind.engine.build import _fill_gathered, build_scorer
from minimind.engine.ds_config import resolve_policy, resolve_reference
from minimind.engine.policy import Policy
from minimind.engine.start import start_rank
from minimind.model.configuration import MiniMindConfig
from minimind.ranks import collectives, process
from minimind.ranks.world import World
from minimind.weights.sources import RandomSource, open_weights

REPO = Path(__file__).resolve().parents[3]
_FIELDS = {"RssAnon": "anon", "RssFile": "file"}


def resident() -> dict[str, int]:
    """Resident memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if ":" in line and len(line.split()) > 1}
    return {ours: int(values[theirs]) * 1024 for theirs, ours in _FIELDS.items()}


class Watched:
    """Growth of resident memory while a block runs, sampled every two milliseconds."""

    def __enter__(self) -> Watched:
        settle()
        self.before = resident()
        self.most = dict(self.before)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.is_set():
            now = resident()
            self.most = {name: max(now[name], most) for name, most in self.most.items()}
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        settle()
        now = resident()
        self.answer = {f"{name}_peak": self.most[name] - before for name, before in self.before.items()}
        self.answer |= {f"{name}_stays": now[name] - before for name, before in self.before.items()}


def settle() -> None:
    """Free unused memory, so that resident memory is memory in use."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def check_both_fills(ds_config: dict[str, Any], world: World) -> None:
    """Module by module, for what is more than shards (no CPU can run that), gives the shards that ranks read alone."""
    source = RandomSource(MiniMindConfig(hidden_size=64), seed=1)
    scorer = build_scorer(source, ds_config, torch.bfloat16, world)
    read = [parameter.ds_tensor.clone() for parameter in scorer.parameters()]
    for parameter in scorer.parameters():
        parameter.ds_tensor.zero_()
    _fill_gathered(scorer.model, source, world, on_progress=lambda: None)
    assert len(read) > 20
    for parameter, shard in zip(scorer.parameters(), read, strict=True):
        assert shard.abs().max() > 0
        assert torch.equal(parameter.ds_tensor, shard)


def main() -> None:
    path, answer_path = map(Path, sys.argv[-2:])
    world = start_rank().world
    settings = parse_settings(["--dtype", "bfloat16", "--batch_size", "1"])
    source = open_weights(path, {})
    configs = [
        resolve_reference(REPO / "ds_configs/reference.json", settings, world.size, world.on_cpu),
        resolve_policy(REPO / "ds_configs/zero3.json", settings, world.size, world.on_cpu),
    ]
    configs[1].values["tensorboard"]["enabled"] = False
    # Before anything is measured: modules imported, buffers of collectives.
    check_both_fills(configs[0].values, world)
    with Watched() as builds:
        scorers = [build_scorer(source, config.values, torch.bfloat16, world) for config in configs]
    held = sum(parameter.ds_tensor.numel() * 2 for scorer in scorers for parameter in scorer.parameters())
    del scorers
    with Watched() as engine:
        policy = Policy(source, configs[1], lambda step: 1.0, world)
    elements = sum(parameter.ds_numel for parameter in policy.engine.module.parameters())
    answer = {"size": 2 * elements, "shards": held, "builds": builds.answer, "engine": engine.answer}
    answers = collectives.gather(world, answer)
    if world.is_main:
        answer_path.write_text(json.dumps(answers))
    process.end(0)


if __name__ == "__main__":
    with process.user_errors():
        main()
