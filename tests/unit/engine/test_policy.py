"""Parts of the policy that need no engine: a rank reads only its own share of the start weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minimind.engine import policy
from minimind.ranks.world import World

# 10 elements on 3 ranks: shares of 4, the last one padded by 2. 1 element on 3 ranks: two shares are only padding.
VALUES = {"weight": torch.arange(10.0).view(2, 5).bfloat16(), "bias": torch.tensor([7.0])}
SHARES = {
    0: {"weight": [0, 1, 2, 3], "bias": [7]},
    1: {"weight": [4, 5, 6, 7], "bias": [0]},
    2: {"weight": [8, 9, 0, 0], "bias": [0]},
}


class Parameter(str):
    """The name of a parameter, in place of the parameter."""

    requires_grad = True


class Frozen(Parameter):
    requires_grad = False


class LargestMade(TorchDispatchMode):
    """Number of elements of the largest new tensor; views of the given tensors do not count."""

    def __init__(self, given) -> None:
        super().__init__()
        self.largest = 0
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if t.untyped_storage().data_ptr() not in self.given]
        self.largest = max([self.largest, *(tensor.numel() for tensor in made)])
        return out


@pytest.mark.parametrize("rank", SHARES)
def test_a_shard_is_made_from_the_share_of_its_rank(rank, monkeypatch):
    got = {}
    monkeypatch.setattr(policy, "safe_set_local_fp32_param", lambda name, value: got.update({name: value.tolist()}))
    one = policy.Policy.__new__(policy.Policy)
    one._on_progress = lambda: None
    one.stage, one.world = 3, World(rank=rank, local_rank=rank, size=3, device=torch.device("cpu"))
    named = [*((name, Parameter(name)) for name in VALUES), ("tower", Frozen("tower"))]
    model = SimpleNamespace(named_parameters=lambda: named)
    one.engine = SimpleNamespace(module=SimpleNamespace(model=model))
    one._source, one._adapters = SimpleNamespace(read=VALUES.__getitem__), None
    with LargestMade(VALUES.values()) as mode:
        one._set_master_weights()
    assert got == SHARES[rank]
    assert mode.largest <= 4


def probing(stage: int, fails: bool) -> tuple[policy.Policy, list]:
    """A policy of an engine that remembers its calls."""
    calls: list = []

    class Engine:
        def train(self, mode: bool = True) -> None:
            calls.append(mode)

        def empty_partition_cache(self) -> None:
            calls.append("partition")

        def __call__(self, batch):
            calls.append("forward")
            if fails:
                raise ValueError("no")
            return torch.ones(2), torch.zeros(())

    one = policy.Policy.__new__(policy.Policy)
    one.engine, one.stage = Engine(), stage
    one.world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    return one, calls


def test_frozen_weights_are_written_as_they_were_read(monkeypatch):
    """At ZeRO-3 the parameter is empty on every rank."""
    monkeypatch.setattr(policy, "safe_get_full_fp32_param", lambda parameter: parameter + 1)
    trained, frozen = (nn.Parameter(torch.zeros(size), requires_grad=size > 0) for size in (2, 0))
    model = SimpleNamespace(
        named_parameters=lambda: [("trained", trained), ("frozen", frozen)],
        named_buffers=lambda: [("buffer", torch.tensor([7.0]))],
    )
    one = policy.Policy.__new__(policy.Policy)
    one._on_progress = lambda: None
    one.world = World(rank=0, local_rank=0, size=2, device=torch.device("cpu"))
    one.engine = SimpleNamespace(module=SimpleNamespace(model=model))
    one._adapters = None
    one._source = SimpleNamespace(
        shapes=lambda: dict.fromkeys(("trained", "buffer", "frozen")), read={"frozen": torch.tensor([3.5])}.__getitem__
    )
    state = {name: tensor.tolist() for name, tensor in one.full_state().items()}
    assert state == {"trained": [1.0, 1.0], "buffer": [7.0], "frozen": [3.5]}
    one.world = World(rank=1, local_rank=1, size=2, device=torch.device("cpu"))
    assert one.full_state() == {}


@pytest.mark.parametrize("training", [False, True])
def test_a_probe_leaves_the_engine_in_train_mode(training):
    one, calls = probing(stage=3, fails=False)
    assert one.probe(SimpleNamespace(to_device=lambda device: None), training).tolist() == [1, 1]
    assert calls == [training, "forward", True]


@pytest.mark.parametrize(("stage", "restored"), [(2, []), (3, ["partition"])])
def test_weights_that_a_failed_forward_gathered_are_partitioned_again(stage, restored):
    one, calls = probing(stage, fails=True)
    with pytest.raises(ValueError, match="no"):
        one.probe(SimpleNamespace(to_device=lambda device: None))
    assert calls == [False, "forward", *restored, True]
