"""Run by one or two ranks: adapters under a ZeRO stage against plain peft in one process, without DeepSpeed.

Argument: cases, separated by commas, each a stage and a kind of adapters: 2:linear,3:nf4. Steps of SGD have the
gradients as the optimizer's state; before each, the reference is compared with the base's own log-probs, bit for bit.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import peft
import torch
from deepspeed.utils import safe_get_full_optimizer_state
from transformers import PreTrainedModel

from minimind.config import Settings, parse_settings
from minimind.data.packs import PackedPairs, pack
from minimind.engine.adapted_reference import AdaptedReference
from minimind.engine.ds_config import resolve_policy
from minimind.engine.policy import Policy
from minimind.engine.scorer import PairScorer
from minimind.engine.start import start_rank
from minimind.model.adapters import AdapterSpec, adapter_of, find_targets, peft_config
from minimind.model.configuration import MiniMindConfig
from minimind.objective.losses import build_objective
from minimind.ranks import process
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.jobs.dpo import DPOJob
from minimind.training.metrics import MetricSums
from minimind.training.step import train_step
from minimind.weights.adapters import FreshAdapter
from minimind.weights.construction import empty_model, model_from_tensors
from minimind.weights.quantized import QuantizedSource
from minimind.weights.sources import RandomSource, WeightSource

sys.path.insert(0, str(Path(__file__).parent))
from engines import REPO, random_pair

BETA, RATE = 1.0, 2.0
# So little of it that the optimizer's state is the gradient.
MOMENTUM = 1e-12
# Steps of a case, and of those whose reference is compared after many; steps that are compared with peft's.
STEPS, MANY_STEPS, COMPARED = 3, 20, 3
# Ranks, stage, kind.
LONG_CASES = {(1, 2, "linear"), (2, 3, "linear")}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What differs between cases."""

    targets: str = "all-linear"
    dora: bool = False
    experts: bool = False
    nf4: bool = False
    ending: str = ""
    flags: tuple[str, ...] = ()


KINDS = {
    "linear": Kind(),
    "dora": Kind(dora=True),
    "experts": Kind(targets="experts", experts=True),
    "nf4": Kind(nf4=True),
    "offload": Kind(ending="_offload"),
    "nf4_offload": Kind(nf4=True, ending="_offload"),
    "recomputed": Kind(flags=("--gradient_checkpointing", "1")),
}
PAIRS = [random_pair(number, length) for number, length in enumerate((12, 30, 22, 16), start=1)]


def source_and_spec(kind: Kind) -> tuple[WeightSource, AdapterSpec]:
    config = MiniMindConfig(
        generation=3, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=640, use_moe=kind.experts
    )
    # The auxiliary loss depends on how rows are split; here the losses of pairs alone are compared.
    config.router_aux_loss_coef = 0.0
    layers, stacks = find_targets(empty_model(config), kind.targets)
    source = RandomSource(config, seed=7)
    spec = AdapterSpec(rank=4, alpha=8, dora=kind.dora, layers=layers, stacks=stacks)
    return QuantizedSource(source, torch.float32) if kind.nf4 else source, spec


def own_model(source: WeightSource) -> PreTrainedModel:
    """The base alone; packed layers stay packed."""
    state = {name: source.read(name).clone() for name in source.shapes()}
    return model_from_tensors(source.config, state, source.packed_layers)


def plain_model(source: WeightSource) -> PreTrainedModel:
    """The base with plain layers, of a packed base's values."""
    model = own_model(source)
    state = {name: source.read(name).clone() for name in source.shapes()}
    for name in source.packed_layers:
        state[f"{name}.weight"] = model.get_submodule(name).unpacked(torch.float32)
    return model_from_tensors(source.config, state)


class Plain:
    """peft's own model in one process and float64: log-probs from the model's own logits, and the loss by hand."""

    def __init__(self, source: WeightSource, spec: AdapterSpec) -> None:
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


def own_scores(source: WeightSource, packs: list[PackedPairs]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [PairScorer(own_model(source)).eval()(one)[0] for one in packs]


def build(world: World, stage: int, kind: Kind) -> tuple[Policy, Settings, WeightSource, AdapterSpec]:
    flags = ["--dtype", "float32", "--batch_size", str(2 // world.size), "--accumulation_steps", "2"]
    settings = parse_settings([*flags, "--grad_clip", "0", *kind.flags])
    resolved = resolve_policy(REPO / f"ds_configs/zero{stage}{kind.ending}.json", settings, world.size, world.on_cpu)
    resolved.values["tensorboard"]["enabled"] = False
    resolved.values["optimizer"] = {"type": "SGD", "params": {"lr": RATE, "momentum": MOMENTUM}}
    resolved.values["zero_allow_untested_optimizer"] = True
    resolved.values["zero_force_ds_cpu_optimizer"] = False
    source, spec = source_and_spec(kind)
    start = FreshAdapter(spec, source, 3, torch.float32, "default")
    policy = Policy(source, resolved, lambda step: 1.0, world, adapters=start)
    policy.train()
    return policy, settings, source, spec


def check(world: World, stage: int, name: str) -> None:
    policy, settings, source, spec = build(world, stage, KINDS[name])
    reference = AdaptedReference(policy, settings.config)
    job = DPOJob(objective=build_objective("sigmoid", {"beta": BETA}), reference=reference)
    packs = batches(world)
    before = own_scores(source, packs)
    plain = Plain(source, spec)
    steps = MANY_STEPS if (world.size, stage, name) in LONG_CASES else STEPS
    for number in range(steps):
        if number < COMPARED:
            compare_reference(reference, packs, before, number)
        old = policy.full_state() if number < COMPARED else {}
        sums = MetricSums(world, job)
        train_step(policy, job, packs, sums, Watch())
        mean = sums.reduce(1.0)["loss"]
        if number < COMPARED:
            compare(plain, mean, old, gradients(policy), world)
    compare_reference(reference, packs, before, steps)
    assert any(not torch.equal(policy.probe(one), expected) for one, expected in zip(packs, before, strict=True))
    if world.is_main:
        print(f"stage {stage}, {name}: adapters agree with plain peft", flush=True)
    policy.engine.destroy()


def compare_reference(
    reference: AdaptedReference, packs: list[PackedPairs], base: list[torch.Tensor], done: int
) -> None:
    """The reference's log-probs are the base's, bit for bit."""
    for one, expected in zip(packs, base, strict=True):
        assert torch.equal(reference.log_probs(one), expected), f"after {done} steps the reference is not the base"


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    """Those of the last step, by name; all ranks must call."""
    named = [(name, p) for name, p in policy.engine.module.model.named_parameters() if p.requires_grad]
    return {name: safe_get_full_optimizer_state(p, "momentum_buffer") for name, p in named}


def compare(
    plain: Plain, mean: float, old: dict[str, torch.Tensor], found: dict[str, torch.Tensor], world: World
) -> None:
    """Loss and gradients of one step, on rank 0."""
    if not world.is_main:
        return
    loss, expected = plain.step(old)
    assert abs(mean - loss) < 1e-6, (mean, loss)
    assert set(found) == set(expected)
    whole = torch.nn.utils.get_total_norm(list(expected.values()))
    for name, grad in expected.items():
        off = float((found[name].double() - grad).norm() / grad.norm().clamp_min(whole / 20))
        assert off < 1e-5, (name, off)


if __name__ == "__main__":
    with process.user_errors():
        joined = start_rank().world
        for case in sys.argv[-1].split(","):
            stage, kind = case.split(":")
            check(joined, int(stage), kind)
    process.end(0)
