"""Run by one or two ranks: adapters under a ZeRO stage against plain peft in one process, without DeepSpeed.

Arguments: the stages, separated by commas, and the kind of adapters. Steps of SGD show the gradients themselves; the
reference is compared with the base's own log-probs before each, bit for bit.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import peft
import torch

from minimind.config import parse_settings
from minimind.data.packs import PackedPairs, pack
from minimind.engine.adapted_reference import AdaptedReference
from minimind.engine.ds_config import resolve_policy
from minimind.engine.policy import Policy
from minimind.engine.scorer import PairScorer
from minimind.engine.start import start_rank
from minimind.model.adapters import AdapterSpec, adapter_of, find_targets, peft_config
from minimind.model.configuration import MiniMindConfig
from minimind.model.modeling import MiniMindForCausalLM
from minimind.objective.losses import build_objective
from minimind.ranks import process
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.jobs.dpo import DPOJob
from minimind.training.metrics import MetricSums
from minimind.training.step import train_step
from minimind.weights.adapters import FreshAdapter
from minimind.weights.construction import empty_model
from minimind.weights.io import fill
from minimind.weights.sources import RandomSource

sys.path.insert(0, str(Path(__file__).parent))
from engines import REPO, random_pair

BETA, RATE = 1.0, 50.0
# kind -> targets, DoRA, experts
KINDS = {
    "linear": ("all-linear", False, False),
    "dora": ("all-linear", True, False),
    "experts": ("experts", False, True),
}
PAIRS = [random_pair(number, length) for number, length in enumerate((12, 30, 22, 16), start=1)]


def source_and_spec(kind: str) -> tuple[RandomSource, AdapterSpec]:
    targets, dora, experts = KINDS[kind]
    config = MiniMindConfig(
        generation=3, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=640, use_moe=experts
    )
    # The auxiliary loss depends on how rows are split; here the losses of pairs alone are compared.
    config.router_aux_loss_coef = 0.0
    layers, stacks = find_targets(empty_model(config), targets)
    return RandomSource(config, seed=7), AdapterSpec(rank=4, alpha=8, dora=dora, layers=layers, stacks=stacks)


def plain_model(source: RandomSource) -> MiniMindForCausalLM:
    model = MiniMindForCausalLM(copy.deepcopy(source.config))
    fill(model, source)
    return model


class Plain:
    """peft's own model in one process and float64: log-probs from the model's own logits, and the loss by hand."""

    def __init__(self, source: RandomSource, spec: AdapterSpec) -> None:
        base = plain_model(source).double()
        with torch.no_grad():
            self.reference = [self.sums(base, pair) for pair in PAIRS]
        self.model = peft.get_peft_model(base, peft_config(base, spec))
        self.trained = {n.removeprefix("base_model.model."): p for n, p in self.model.named_parameters()}
        self.trained = {name: p for name, p in self.trained.items() if adapter_of(name)}

    @staticmethod
    def sums(model, pair) -> torch.Tensor:
        rows = ((pair.chosen, pair.chosen_mask), (pair.rejected, pair.rejected_mask))
        sums = []
        for tokens, mask in rows:
            ids = torch.from_numpy(tokens).long()[None]
            log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            wanted = torch.from_numpy(mask[1:]).double()
            sums.append((log_probs.gather(1, ids[0, 1:, None])[:, 0] * wanted).sum() / wanted.sum())
        return torch.stack(sums)

    def step(self, values: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
        """The loss of all pairs with these adapters, and its gradients."""
        for name, parameter in self.trained.items():
            parameter.data.copy_(values[name])
        ratios = [self.sums(self.model, p) - r for p, r in zip(PAIRS, self.reference, strict=True)]
        margins = [chosen - rejected for chosen, rejected in ratios]
        loss = -torch.nn.functional.logsigmoid(BETA * torch.stack(margins)).mean()
        grads = dict(zip(self.trained, torch.autograd.grad(loss, list(self.trained.values())), strict=True))
        return loss.item(), grads


def batches(world: World) -> list[PackedPairs]:
    """Two micro-batches of this rank's share of the four pairs."""
    mine = PAIRS[world.rank :: world.size]
    return [pack(mine[: len(mine) // 2]), pack(mine[len(mine) // 2 :])]


def own_scores(source: RandomSource, packs: list[PackedPairs]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [PairScorer(plain_model(source)).eval()(one)[0] for one in packs]


def check(world: World, stage: int, kind: str) -> None:
    flags = ["--dtype", "float32", "--batch_size", str(2 // world.size), "--accumulation_steps", "2"]
    settings = parse_settings([*flags, "--grad_clip", "0"])
    resolved = resolve_policy(REPO / f"ds_configs/zero{stage}.json", settings, world.size, world.on_cpu)
    resolved.values["tensorboard"]["enabled"] = False
    resolved.values["optimizer"] = {"type": "SGD", "params": {"lr": RATE}}
    resolved.values["zero_allow_untested_optimizer"] = True
    source, spec = source_and_spec(kind)
    start = FreshAdapter(spec, source, 3, torch.float32, "default")
    policy = Policy(source, resolved, lambda step: 1.0, world, adapters=start)
    policy.train()
    reference = AdaptedReference(policy, settings.config)
    job = DPOJob(objective=build_objective("sigmoid", {"beta": BETA}), reference=reference)
    packs = batches(world)
    before = own_scores(source, packs)
    plain = Plain(source, spec)
    for _ in range(3):
        for one, expected in zip(packs, before, strict=True):
            assert torch.equal(reference.log_probs(one), expected), "the reference is not the base"
        old = policy.full_state()
        sums = MetricSums(world, job)
        train_step(policy, job, packs, sums, Watch())
        mean = sums.reduce(1.0)["loss"]
        new = policy.full_state()
        if world.is_main:
            loss, grads = plain.step(old)
            assert abs(mean - loss) < 1e-6, (mean, loss)
            assert set(new) == set(plain.trained)
            whole = torch.nn.utils.get_total_norm(list(grads.values()))
            for name, grad in grads.items():
                moved = (old[name].double() - new[name].double()) / RATE
                off = float((moved - grad).norm() / grad.norm().clamp_min(whole / 20))
                assert off < 1e-5, (name, off)
    if world.is_main:
        print(f"stage {stage}, {kind}: adapters agree with plain peft", flush=True)
    policy.engine.destroy()


if __name__ == "__main__":
    with process.user_errors():
        joined = start_rank().world
        for stage in map(int, sys.argv[-2].split(",")):
            check(joined, stage, sys.argv[-1])
    process.end(0)
