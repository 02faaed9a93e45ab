"""Run by two ranks: steps of a token budget against plain autograd over the whole global batch, clipping included.

For every ZeRO stage and precision: two steps of SGD, which shows the gradient itself, with other numbers of
micro-batches in each, none of them that of `accumulation_steps`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from minimind import native
from minimind.config import parse_settings
from minimind.data.mix import Mix
from minimind.data.packs import PairBatch, pack
from minimind.data.sampler import PairSampler
from minimind.engine.ds_config import resolve_policy
from minimind.engine.policy import Policy
from minimind.engine.reference import Reference
from minimind.engine.scorer import PairScorer
from minimind.engine.start import start_rank
from minimind.model.configuration import MiniMindConfig
from minimind.model.modeling import MiniMindForCausalLM
from minimind.objective.losses import build_objective
from minimind.objective.rows import ReferenceScores
from minimind.ranks import process
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.jobs.dpo import DPOJob, PairTargets
from minimind.training.metrics import MetricSums
from minimind.training.step import train_step
from minimind.weights.sources import RandomSource

sys.path.insert(0, str(Path(__file__).parent))
from engines import REPO, random_pair

PAIRS = {line: random_pair(line, length) for line, length in enumerate(range(6, 38, 2), start=1)}
CLIP = 0.01
# Gradient and norm, each relative: rounding, and at stage 0 torch's float32 norm.
TOLERANCE = {"float32": (2e-6, 2e-6), "bfloat16": (3e-2, 1e-2)}


class Shifted(Reference):
    """A reference that no policy is at the start, so that losses and gradients of pairs differ."""

    def score(self, batches, per_token=False):
        rows = ([[-9.0 * line, -8.0 * line] for line in batch.indices] for batch in batches)
        return [ReferenceScores(sums=torch.tensor(sums)) for sums in rows]

    def mismatch(self, worst, index, place, start_value):
        raise AssertionError("nothing compares this reference with the policy")


JOB = DPOJob(objective=build_objective("sigmoid"), reference=Shifted())


def stream_of(world: World) -> PairSampler:
    """8 pairs a step; at most 60 tokens, which the longest pair exceeds, in a micro-batch."""
    tokens = np.array([len(pack([pair]).token_ids) for pair in PAIRS.values()])
    assert tokens.max() > 50
    return PairSampler(
        mix=Mix.plain(len(PAIRS)), epochs=1, micro_batch_size=2, accumulation_steps=2, world_size=world.size,
        shuffle=False, seed=0, costs=tokens.astype(float), tokens=tokens, token_budget=50,
    )  # fmt: skip


def packs(stream: PairSampler, step: int, rank: int) -> list[PairBatch]:
    return [pack([PAIRS[index + 1] for index in part]) for part in stream.micro_batches(step, rank)]


def plain_gradient(config: MiniMindConfig, state: dict[str, torch.Tensor], batch: PairBatch) -> dict[str, torch.Tensor]:
    """Of the mean loss over all pairs of a step, in one process and float64."""
    model = MiniMindForCausalLM(config).double()
    for name, parameter in model.named_parameters():
        parameter.data.copy_(state[name])
    log_probs, _ = PairScorer(model.train())(batch)
    (targets,) = JOB.targets([batch])
    reference = ReferenceScores(sums=targets.reference.sums.double())
    JOB.outcome(batch, log_probs, PairTargets(reference=reference)).losses.mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def check(world: World, stage: int, dtype: str) -> None:
    """Two steps of one engine."""
    flags = ["--dtype", dtype, "--batch_size", "2", "--accumulation_steps", "2", "--grad_clip", str(CLIP)]
    resolved = resolve_policy(REPO / f"ds_configs/zero{stage}.json", parse_settings(flags), world.size, world.on_cpu)
    resolved.values["tensorboard"]["enabled"] = False
    rate = 500.0 if dtype == "float32" else 50.0
    resolved.values["optimizer"] = {"type": "SGD", "params": {"lr": rate}}
    resolved.values["zero_allow_untested_optimizer"] = True
    config = MiniMindConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=640)
    policy = Policy(RandomSource(config, seed=7), resolved, lambda step: 1.0, world)
    policy.train()
    stream = stream_of(world)
    before = policy.full_state()
    for step in (1, 2):
        batches = packs(stream, step, world.rank)
        assert len(batches) == {1: 2, 2: 4}[step], [len(batch.token_ids) for batch in batches]
        train_step(policy, JOB, batches, MetricSums(world, JOB), Watch())
        after = policy.full_state()
        if world.is_main:
            lines = [line for rank in range(world.size) for one in packs(stream, step, rank) for line in one.indices]
            assert len(lines) == len(set(lines)) == stream.global_batch_size
            expected = plain_gradient(config, before, pack([PAIRS[line] for line in lines]))
            norm = torch.nn.utils.get_total_norm(list(expected.values()))
            assert norm > 3 * CLIP, norm
            moved = {name: (before[name].double() - after[name].double()) / rate for name in before}
            # torch and DeepSpeed add 1e-6 to the norm that they clip by.
            clipped = {name: gradient * CLIP / (norm + 1e-6) for name, gradient in expected.items()}
            # Tensors that hardly move are weighed against a twentieth of the whole: their weights round more than that.
            off = max(float((moved[n] - one).norm() / one.norm().clamp_min(CLIP / 20)) for n, one in clipped.items())
            norm_off = abs(float(policy.grad_norm / norm) - 1)
            print(f"stage {stage} {dtype} step {step}: gradient off by {off:.1e}, norm by {norm_off:.1e}", flush=True)
            assert off < TOLERANCE[dtype][0]
            assert norm_off < TOLERANCE[dtype][1]
        before = after
    policy.engine.destroy()


if __name__ == "__main__":
    with process.user_errors():
        joined = start_rank().world
        native.prepare(heap=False)
        for stage in (0, 1, 2, 3):
            for dtype in ("float32", "bfloat16") if stage else ("float32",):
                check(joined, stage, dtype)
    process.end(0)
