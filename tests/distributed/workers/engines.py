"""Run by two ranks: checks the engines' shards, gradients and norm. One argument: the policy's ZeRO stage.

The policy is a mixture of experts whose rank 1 has an expert that none of its tokens reach.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from deepspeed.utils import safe_get_full_grad

from minimind.config import parse_settings
from minimind.data.packs import pack
from minimind.data.table import PreferencePair
from minimind.engine.ds_config import resolve_policy, resolve_reference
from minimind.engine.policy import Policy
from minimind.engine.reference import LiveReference
from minimind.engine.scorer import PairScorer
from minimind.engine.start import start_rank
from minimind.model.configuration import MiniMindConfig
from minimind.model.modeling import MiniMindForCausalLM
from minimind.objective.losses import LossInputs, PairScores, SigmoidLoss
from minimind.objective.rows import row_sums
from minimind.ranks import process
from minimind.weights.io import fill
from minimind.weights.sources import RandomSource

REPO = Path(__file__).resolve().parents[3]


def random_pair(seed: int, length: int) -> PreferencePair:
    """A pair of random tokens with a shared prefix of half its length."""
    draw = np.random.default_rng(seed)
    chosen, rejected = (draw.integers(3, 640, length).astype(np.int32) for _ in range(2))
    rejected[: length // 2] = chosen[: length // 2]
    mask = (np.arange(length) >= length // 2).astype(np.uint8)
    return PreferencePair(
        chosen=chosen, rejected=rejected, chosen_mask=mask, rejected_mask=mask, prefix=length // 2, index=seed
    )


def loss(scorer, batch, reference_log_probs):
    """DPO loss of a batch, auxiliary loss included, as a training step has it."""
    log_probs, aux_loss = scorer(batch)
    counts = batch.target_counts
    policy, reference = (
        PairScores(sums=row_sums(part, counts), target_counts=counts) for part in (log_probs, reference_log_probs)
    )
    return SigmoidLoss(beta=0.1)(LossInputs(policy=policy, reference=reference)).losses.mean() + aux_loss


def experts_used(scorer: PairScorer, batch) -> torch.Tensor:
    """How many tokens each expert of the first layer gets."""
    ends = []
    hook = scorer.model.model.layers[0].mlp.experts.register_forward_pre_hook(lambda _, args: ends.append(args[1]))
    scorer(batch)
    hook.remove()
    return ends[0].diff(prepend=torch.zeros(1, dtype=torch.int32))


def main() -> None:
    stage = int(sys.argv[-1])
    world = start_rank().world
    settings = parse_settings(["--dtype", "float32", "--batch_size", "1", "--grad_clip", "0"])
    config = MiniMindConfig(
        generation=3, hidden_size=64, num_hidden_layers=2, vocab_size=640, use_moe=True, num_experts_per_tok=1
    )
    source = RandomSource(config, seed=7)
    plain_model = MiniMindForCausalLM(config)
    fill(plain_model, source)
    plain = PairScorer(plain_model).train()
    # Rank 0 has a long pair, rank 1 one of so few tokens that some expert gets none of them.
    batches = [pack([random_pair(1, 60)]), pack([random_pair(2, 4)])]
    used = [experts_used(plain, batch) for batch in batches]
    assert (used[0] > 0).all(), used
    assert (used[1] == 0).any(), used

    reference_config = resolve_reference(REPO / "ds_configs/reference.json", settings, world.size, world.on_cpu)
    reference = LiveReference(source, reference_config, world)
    check_reference(reference, plain_model)
    policy_config = resolve_policy(REPO / f"ds_configs/zero{stage}.json", settings, world.size, world.on_cpu)
    policy_config.values["tensorboard"]["enabled"] = False
    policy = Policy(source, policy_config, lambda step: 1.0, world)
    policy.train()
    # The file's bucket is 100 million elements; no more are taken than there are gradients.
    elements = sum(parameter.numel() for parameter in plain.parameters())
    assert policy.engine.zero_reduce_bucket_size() == elements, (policy.engine.zero_reduce_bucket_size(), elements)

    # A reference other than the policy, so that the gradient has no symmetry to hide behind.
    shifts = [torch.linspace(-1, 1, len(batch.target_ids)) for batch in batches]
    with torch.no_grad():
        expected_reference = [plain(batch)[0] for batch in batches]
    mine = reference.log_probs(batches[world.rank])
    torch.testing.assert_close(mine, expected_reference[world.rank], rtol=0, atol=1e-5)
    policy.backward(loss(policy.engine, batches[world.rank], mine + shifts[world.rank]), last=True)

    total = sum(loss(plain, b, r + s) for b, r, s in zip(batches, expected_reference, shifts, strict=True))
    (total / 2).backward()
    engine_parameters = dict(policy.engine.module.named_parameters())
    for name, parameter in plain.named_parameters():
        gradient = safe_get_full_grad(engine_parameters[name])
        difference = (gradient - parameter.grad).norm() / parameter.grad.norm().clamp_min(1e-4)
        assert difference < 1e-4, f"{name}: gradient off by {difference:.2e}"
    policy.step()
    exact = torch.nn.utils.get_total_norm([p.grad.double() for p in plain.parameters()])
    assert abs(policy.grad_norm / exact - 1) < 1e-5, (policy.grad_norm, exact)
    print(f"rank {world.rank}: engines agree with one plain process")
    process.end(0)


def check_reference(reference: LiveReference, whole: MiniMindForCausalLM) -> None:
    """Frozen, in eval mode, without an optimizer, and on each rank about its size over the number of ranks."""
    parameters = list(reference.engine.module.parameters())
    assert not reference.engine.module.training
    assert not any(parameter.requires_grad for parameter in parameters)
    assert getattr(reference.engine.optimizer, "optimizer", None) is None
    assert reference.engine.zero_optimization_stage() == 3
    held = sum(parameter.ds_tensor.numel() for parameter in parameters)
    elements = sum(parameter.numel() for parameter in whole.parameters())
    share = held / elements
    assert abs(share - 1 / reference.world.size) < 0.01, share
    resident = sum(parameter.data.numel() for parameter in parameters)
    # What stays whole on each rank are the small vectors that ZeRO-3 does not bother to gather (norms).
    assert resident < 0.2 * elements, resident / elements


if __name__ == "__main__":
    with process.user_errors():
        main()
