"""Script: takes training steps with real engines, and fails if the host waits for the GPU outside of DeepSpeed's step.

The reference's engine is left out: under ZeRO-3 a single rank waits for a stream that is idle. What it wraps is the
policy's module, and tests/unit/training/test_host_waits.py has it on tensors without contents.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from minimind.config import parse_settings
from minimind.data.packs import pack
from minimind.engine.ds_config import resolve_policy, resolve_reference
from minimind.engine.policy import Policy
from minimind.engine.reference import LiveReference
from minimind.engine.start import start_rank
from minimind.model.configuration import MiniMindConfig
from minimind.objective.losses import build_objective
from minimind.plan.work import ModelWork
from minimind.ranks import process
from minimind.ranks.watch import Watch
from minimind.training.jobs.dpo import DPOJob
from minimind.training.metrics import StepMetrics
from minimind.training.speed import Speed, Useful
from minimind.training.step import train_step
from minimind.weights.sources import RandomSource

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "distributed/workers"))
from engines import REPO, random_pair


@contextlib.contextmanager
def waits(allowed: bool, on_gpu: bool) -> Iterator[None]:
    """Within the block a wait of the host is an error, or is allowed."""
    if not on_gpu:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default" if allowed else "error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def main() -> None:
    started = start_rank(60.0)
    world, on_gpu = started.world, not started.world.on_cpu
    settings = parse_settings(["--batch_size", "2", "--accumulation_steps", "2"])
    config = MiniMindConfig(generation=3, hidden_size=256, num_hidden_layers=2, vocab_size=640)
    source = RandomSource(config, seed=7)
    policy_config = resolve_policy(REPO / "ds_configs/zero2.json", settings, 1, world.on_cpu)
    policy_config.values["tensorboard"]["enabled"] = False
    policy = Policy(source, policy_config, lambda step: 1.0, world, sys.argv[1])
    reference_config = resolve_reference(REPO / "ds_configs/reference.json", settings, 1, world.on_cpu)
    reference = LiveReference(source, reference_config, world, sys.argv[1])
    policy.train()
    job = DPOJob(objective=build_objective("sigmoid"), reference=reference)
    metrics = StepMetrics(world, job, {}, clip=1.0)
    useful = Useful(work=ModelWork.of(config, source.shapes()), passes=4)
    speed = Speed(world=world, watch=Watch(), job=job, useful=useful, dtype="bfloat16", say=print)

    def allowing(function: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*arguments: Any, **options: Any) -> Any:
            with waits(allowed=True, on_gpu=on_gpu):
                return function(*arguments, **options)

        return outer

    policy.engine.step, reference.score = allowing(policy.engine.step), allowing(reference.score)
    for step in range(4):
        batches = [pack([random_pair(10 * step + 2 * micro + n, 200) for n in range(2)]) for micro in range(2)]
        batches = [batch.pin_memory() for batch in batches] if on_gpu else batches
        # The first steps load kernels, and compare DeepSpeed with its patches.
        with waits(allowed=step < 2, on_gpu=on_gpu):
            speed.begin(batches)
            train_step(policy, job, batches, metrics.sums, speed, distributions=True)
            metrics.add_norm(policy.grad_norm)
            speed.end()
    found = speed.reduce({"tokens_per_second": 1.0})
    assert all(found[f"time/{phase}"] > 0 for phase in ("reference", "forward", "backward", "optimizer")), found
    print("no wait outside of DeepSpeed's step", flush=True)
    process.end(0, None)


if __name__ == "__main__":
    main()
