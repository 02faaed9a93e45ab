"""Run by two ranks: generation in the engine against the plain model, and training with it against training without.

Argument: cases, separated by commas, each a stage and a kind of policy: 2:plain,3:experts. The ranks have prompts of
different lengths and answers that end at different tokens, so that under ZeRO-3 one rank goes on while the other has
finished.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from minimind.config import parse_settings
from minimind.data.packs import pack
from minimind.engine.ds_config import resolve_policy
from minimind.engine.patches.registry import PatchSelection
from minimind.engine.policy import Policy
from minimind.engine.start import start_rank
from minimind.engine.whole_model import needs_all_ranks, with_model
from minimind.generation.batch import Answer, generate
from minimind.generation.decoding import Decoding
from minimind.model.adapters import find_targets
from minimind.model.configuration import MiniMindConfig
from minimind.ranks import process
from minimind.ranks.world import World
from minimind.weights.adapters import AdapterSpec, FreshAdapter
from minimind.weights.construction import empty_model, model_from_tensors
from minimind.weights.sources import RandomSource

sys.path.insert(0, str(Path(__file__).parent))
from engines import REPO, random_pair

STEPS = 2
PROMPTS = [[5, 6, 7, 8, 9], [10] * 3, [11, 12] * 4, [13, 14]]
DECODINGS = (Decoding(max_new_tokens=6), Decoding(max_new_tokens=6, temperature=1.0, top_p=0.9))
# Stage -> kinds of policies.
CASES = {2: ("plain", "experts"), 3: ("plain", "experts", "adapters", "recomputed")}


class Tokenizer:
    """As much of a tokenizer as generating needs. A third of all tokens end an answer."""

    eos_token_id, pad_token_id = None, 0

    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids))


def source_of(kind: str) -> RandomSource:
    config = MiniMindConfig(
        generation=3, hidden_size=64, num_hidden_layers=2, vocab_size=640, use_moe=kind == "experts"
    )
    config.eos_token_id = list(range(0, 640, 6))
    return RandomSource(config, seed=7)


def build(world: World, stage: int, kind: str) -> Policy:
    flags = ["--dtype", "float32", "--batch_size", "1", "--learning_rate", "1e-2"]
    settings = parse_settings([*flags, "--gradient_checkpointing", str(int(kind == "recomputed"))])
    resolved = resolve_policy(REPO / f"ds_configs/zero{stage}.json", settings, world.size, world.on_cpu)
    resolved.values["tensorboard"]["enabled"] = False
    source, adapters = source_of(kind), None
    if kind == "adapters":
        layers, _ = find_targets(empty_model(source.config), "all-linear")
        adapters = FreshAdapter(AdapterSpec(rank=4, alpha=8, layers=layers), source, 3, torch.float32, "default")
    policy = Policy(source, resolved, lambda step: 1.0, world, adapters=adapters)
    policy.train()
    return policy


def sampled(policy: Policy, decoding: Decoding, keeps: PatchSelection | None) -> list[Answer]:
    """Answers to this rank's prompts."""
    rank, size = policy.world.rank, policy.world.size
    return with_model(
        policy,
        lambda model: generate(
            model,
            Tokenizer(),
            PROMPTS[rank::size],
            decoding,
            seeds=range(rank, len(PROMPTS), size),
            synced=needs_all_ranks(policy),
        ),
        keeps_weights=keeps,
    )


def trained(world: World, stage: int, kind: str, samples: bool) -> tuple[list[list[Answer]], dict[str, torch.Tensor]]:
    """Answers before the first step, in each way; the weights after a few steps, with samples between or without."""
    policy = build(world, stage, kind)
    ways = (None, PatchSelection()) if stage == 3 else (None,)
    found = [sampled(policy, decoding, way) for way in ways for decoding in DECODINGS] if samples else []
    for step in range(STEPS):
        torch.manual_seed(step)
        log_probs, aux_loss = policy.score(pack([random_pair(10 * step + world.rank, 20)]))
        policy.backward(-log_probs.mean() + aux_loss, last=True)
        drawn = torch.random.get_rng_state()
        if samples:
            sampled(policy, DECODINGS[step % 2], ways[-1 if step else 0])
        assert torch.equal(drawn, torch.random.get_rng_state())
        assert policy.engine.training
        policy.step()
    state = policy.full_state()
    policy.engine.destroy()
    return found, state


def check(world: World, stage: int, kind: str) -> None:
    found, weights = trained(world, stage, kind, samples=True)
    _, expected = trained(world, stage, kind, samples=False)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())

    source = source_of(kind)
    model = model_from_tensors(source.config, {name: source.read(name).float() for name in source.shapes()})
    alone = [
        [generate(model, Tokenizer(), [prompt], decoding, seeds=[seed])[0] for seed, prompt in enumerate(PROMPTS)]
        for decoding in DECODINGS
    ]
    for number, answers in enumerate(found):
        assert answers == alone[number % 2][world.rank :: world.size], (number, answers, alone)
    if kind == "plain":
        lengths = [[len(answer.ids) for answer in answers] for answers in alone]
        assert any(max(of[::2]) != max(of[1::2]) for of in lengths), f"one rank must finish first: {lengths}"
    if world.is_main:
        print(f"stage {stage}, {kind}: the same answers and the same training", flush=True)


if __name__ == "__main__":
    with process.user_errors():
        joined = start_rank().world
        for case in sys.argv[-1].split(","):
            zero_stage, one = case.split(":")
            check(joined, int(zero_stage), one)
    process.end(0)
