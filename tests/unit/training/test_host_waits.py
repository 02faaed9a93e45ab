"""A training step needs no value of the device: the host enqueues the whole of it without a wait for a GPU.

Everything is computed on tensors without contents (`host_waits.py`): batches, the reference, the policy's forward, the
loss, backward, metrics. DeepSpeed's engines are replaced by the modules that they wrap; their step is DeepSpeed's.
tests/gpu has the same on a GPU, with the engines.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from minimind.data.packs import pack, pad
from minimind.engine.policy import Policy
from minimind.engine.reference import LiveReference
from minimind.engine.reference_cache import CachedReference
from minimind.engine.scorer import PairScorer
from minimind.model import grouped_linear, varlen_attention
from minimind.model.configuration import MiniMindConfig
from minimind.model.packed_attention import SDPA, VARLEN
from minimind.objective.losses import SigmoidLoss, build_objective
from minimind.plan.work import ModelWork
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.expert_load import ExpertLayers, ExpertLoad
from minimind.training.jobs import global_batch
from minimind.training.jobs.dpo import DPOJob
from minimind.training.listeners.batch_statistics import BatchStatistics
from minimind.training.listeners.ledger import LedgerFiles, kept_values
from minimind.training.metrics import StepMetrics
from minimind.training.speed import Speed, Useful
from minimind.training.step import eval_step, train_step
from minimind.weights.construction import uninitialized_model
from tests.distributed.workers.engines import random_pair
from tests.parity.families import tiny_config
from tests.unit.training.host_waits import DEVICE, HostWaitError, host_waits_raise

WORLD = World(rank=0, local_rank=0, size=1, device=DEVICE)
PAIRS = [[random_pair(10 * batch + number, 24 + 5 * number) for number in range(2)] for batch in range(2)]

WORK = ModelWork(layers=2, to_attention=1, after=1, head=1, scores=1)


def minimind(generation: int, *, moe: bool) -> MiniMindConfig:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 640, "moe_intermediate_size": 64}
    return MiniMindConfig(generation=generation, use_moe=moe, num_experts_per_tok=2 if moe else 1, **sizes)


class Engine(nn.Module):
    """What the policy and the reference ask of a DeepSpeed engine."""

    skipped_steps = 0

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.last = module, False

    def forward(self, batch):
        return self.module(batch)

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        self.last = last

    def is_gradient_accumulation_boundary(self) -> bool:
        return self.last

    def backward(self, loss, scale_wrt_gas: bool) -> None:
        loss.backward()

    def step(self) -> None:
        pass

    def get_global_grad_norm(self):
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters()])


def scorer(config, attention: str, *, checkpointing: bool = False) -> PairScorer:
    with torch.device(DEVICE):
        model = uninitialized_model(config, torch.bfloat16)
    if checkpointing:
        old = model.gradient_checkpointing_enable
        getattr(model, "activation_checkpointing_enable", old)({"use_reentrant": False})
    return PairScorer(model.train(), attention)


def policy_of(module: PairScorer) -> Policy:
    policy = Policy.__new__(Policy)
    policy.engine, policy.stage, policy.world, policy.dtype = Engine(module), 2, WORLD, "bfloat16"
    return policy


def live(module: PairScorer) -> LiveReference:
    reference = LiveReference.__new__(LiveReference)
    reference.engine, reference.world, reference.batches_per_forward = Engine(module.requires_grad_(False)), WORLD, 2
    return reference


def cached() -> CachedReference:
    number = 1 + max(pair.index for batch in PAIRS for pair in batch)
    cache = SimpleNamespace(sums=np.zeros((number, 2), np.float32), known=np.ones(number, np.bool_), folder=None)
    return CachedReference([cache], DEVICE)


def take_step(policy: Policy, reference, layout=pack, spec="sigmoid,bco_pair:0.5") -> None:
    """A global step of two micro-batches as the training loop takes it, and a batch of an evaluation."""
    objective = build_objective(spec)
    statistics = BatchStatistics(weights_of_past=objective.statistics, world=WORLD)
    job = DPOJob(objective=objective, reference=reference, statistics=statistics, world=WORLD)
    metrics = StepMetrics(WORLD, job, {}, clip=1.0)
    ExpertLoad(ExpertLayers.of(policy.engine.module.model).counted, WORLD)
    useful = Useful(work=WORK, passes=4)
    speed = Speed(world=WORLD, watch=Watch(), job=job, useful=useful, dtype="bfloat16", say=print)
    batches = [layout(pairs) for pairs in PAIRS]
    ledger = LedgerFiles(
        folder=Path(),
        values=kept_values(job, has_reference=True),
        table=None,
        eval_table=None,
        eval_sets={},
        console=None,
        world=WORLD,
    )
    with host_waits_raise():
        speed.begin(batches)
        met = functools.partial(ledger.met, 1)
        train_step(policy, job, batches, metrics.sums, speed, distributions=True, met=met)
        metrics.add_norm(policy.grad_norm)
        speed.end()
        if not job.whole_batch:  # whose evaluation counts its pairs on the host, once
            eval_step(policy, job, batches[0], [1.0, 0.0], metrics.sums)
    assert all(p.grad is not None and p.grad.is_meta for p in policy.engine.parameters())
    assert metrics.sums.sums.is_meta


@pytest.fixture(autouse=True)
def gpu_with_grouped_products(monkeypatch):
    monkeypatch.setattr(grouped_linear, "grouped_product_works", lambda device: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # torch does not know it of "meta"


def combination(*choices: bool):
    """A case of the test below. Half of them are in the first tier: there any three choices meet in every way."""
    generation, moe, attention, checkpointing = choices
    name = "-".join(("3" if generation else "2", "moe" if moe else "dense", VARLEN if attention else SDPA))
    return pytest.param(
        3 if generation else 2, moe, VARLEN if attention else SDPA, checkpointing,
        marks=pytest.mark.long if sum(choices) % 2 else (), id=f"{name}-{'checkpointed' if checkpointing else 'kept'}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("generation", "moe", "attention", "checkpointing"),
    [combination(*choices) for choices in itertools.product((False, True), repeat=4)],
)
def test_a_step_needs_no_value_of_the_device(generation, moe, attention, checkpointing):
    if attention == VARLEN and varlen_attention.find_kernel() is None:
        pytest.skip("this torch has no variable-length attention")
    config = minimind(generation, moe=moe)
    policy = policy_of(scorer(config, attention, checkpointing=checkpointing))
    take_step(policy, live(scorer(config, attention)))


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "mixtral", "qwen3_moe"])
def test_a_step_of_a_hugging_face_model_needs_no_value_of_the_device(model_type):
    config = tiny_config(model_type)
    config.output_router_logits = True  # a mixture's auxiliary loss is computed only with it
    policy = policy_of(scorer(config, SDPA))
    assert (policy.engine.module._router_loss.coefficient > 0) == hasattr(config, "num_experts_per_tok")
    take_step(policy, live(scorer(config, SDPA)))


def test_a_step_with_cached_log_probs_needs_no_value_of_the_device():
    take_step(policy_of(scorer(minimind(3, moe=True), SDPA)), cached())


def test_a_loss_of_the_global_batch_needs_no_value_of_the_device(monkeypatch):
    monkeypatch.setattr(global_batch, "all_reduce", lambda table: table)
    policy = policy_of(scorer(minimind(3, moe=False), SDPA))
    take_step(policy, live(scorer(minimind(3, moe=False), SDPA)), spec="aot,aot_unpaired,beta_dpo")


def test_padded_rows_wait_in_transformers():
    """It asks on the host whether the mask has any padding; packs have no mask."""
    with pytest.raises(RuntimeError, match="item"):
        take_step(policy_of(scorer(minimind(3, moe=False), SDPA)), cached(), pad)


WAITS = {
    "item": lambda x: x.sum().item(),
    "truth": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "mask": lambda x: x[x > 0],
    "equal": lambda x: torch.equal(x, x),
    "cpu": lambda x: x.cpu(),
    "repeat": lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64)),
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "blocking copy": lambda x: torch.ones(3).to(x.device),
    "blocking copy into": lambda x: torch.empty_like(x).copy_(torch.ones(x.shape)),
    "list": lambda x: x[[0, 1]],
    "index of the host": lambda x: x[torch.tensor([0, 1])],
}


@pytest.mark.parametrize("place", ["policy", "reference", "loss"])
@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_is_found(wait, place, monkeypatch):
    config = minimind(3, moe=False)
    config.num_hidden_layers = 1
    policy = policy_of(scorer(config, SDPA))
    # One that computes takes as long as the policy.
    reference = live(scorer(config, SDPA)) if place == "reference" else cached()
    if place == "loss":
        compute = SigmoidLoss.__call__

        def waits(self, inputs):
            WAITS[wait](inputs.policy.sums[:, 0].detach())
            return compute(self, inputs)

        monkeypatch.setattr(SigmoidLoss, "__call__", waits)
    else:
        module = (policy if place == "policy" else reference).engine.module
        module.register_forward_hook(lambda module, args, out: WAITS[wait](out[0].detach()) and None)
    with pytest.raises((HostWaitError, RuntimeError)):
        take_step(policy, reference)


def test_a_wait_in_backward_is_found():
    config = minimind(3, moe=False)
    policy = policy_of(scorer(config, SDPA))
    weight = policy.engine.module.model.model.norm.weight
    weight.register_hook(lambda grad: grad * grad.norm().item())
    with pytest.raises(RuntimeError, match="item"):
        take_step(policy, live(scorer(config, SDPA)))


def test_experts_one_by_one_wait(monkeypatch):
    """As on GPUs for which torch has no grouped product; the run warns of it."""
    monkeypatch.setattr(grouped_linear, "grouped_product_works", lambda device: False)
    config = minimind(3, moe=True)
    with pytest.raises(NotImplementedError, match="meta"):
        take_step(policy_of(scorer(config, SDPA)), live(scorer(config, SDPA)))
