"""The comparison of patches with DeepSpeed's own code in the first step, on a stand-in for DeepSpeed's optimizer.

tests/distributed/test_ds_configs.py has real training under changed DeepSpeeds.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minimind.engine.patches import first_step, optimizer
from minimind.engine.patches.first_step import patch_optimizer
from minimind.engine.patches.registry import PatchSelection
from minimind.ranks.world import World
from tests.unit.engine.patches.test_optimizer import REPLACED, StandIn

ONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
METHODS = set().union(*REPLACED.values())


class Optimizer(StandIn):
    """Takes steps as DeepSpeed's optimizer does, on one parameter group."""

    def __init__(self, **changes):
        super().__init__(**changes)
        self.parameters = [torch.nn.Parameter(torch.zeros(size, dtype=torch.bfloat16)) for size in (3, 5)]
        self.single_partition_of_fp32_groups = [torch.nn.Parameter(torch.zeros(8))]
        self.averaged_gradients, self.overflow = {}, False

    def get_gradient_for_reduction(self, parameter):
        return parameter.grad

    def reduce_independent_p_g_buckets_and_remove_grads(self, parameter, group):
        pass

    def scaled_global_norm(self):
        norms = [self.get_grad_norm_direct(one, self.parameters) for one in self.averaged_gradients.values()]
        norm = torch.stack(norms).square().sum().sqrt().float() if norms else torch.tensor(1.0)
        return norm if norm.isfinite() else torch.tensor(-1.0)

    def step(self):
        norm = self.scaled_global_norm()
        self.overflow = bool(norm < 0)
        if self.overflow:
            return
        for group, partition in enumerate(self.single_partition_of_fp32_groups):
            if group in self.averaged_gradients:
                partition.grad = torch.cat([one.flatten() for one in self.averaged_gradients[group]]).float()
                self.unscale_and_clip_grads([partition.grad], norm)

    def train(self, value: float = 0.1) -> None:
        """A backward pass and a step."""
        for number, parameter in enumerate(self.parameters):
            parameter.grad = torch.full_like(parameter, value + number)
            self.reduce_independent_p_g_buckets_and_remove_grads(parameter, 0)
        gradients = [parameter.grad for parameter in self.parameters]
        self.averaged_gradients[0] = self.get_flat_partition(gradients, param_group_idx=0)
        self.step()

    def get_flat_partition(self, gradients, param_group_idx=None):
        return list(gradients)


def patched(*off, world=ONE, **changes):
    """A patched stand-in and the printed lines."""
    lines: list[str] = []
    one = Optimizer(**changes)
    patch_optimizer(one, world, PatchSelection(disabled=frozenset(off), report=lines.append))
    return one, lines


def replaced(one) -> set[str]:
    return METHODS & set(vars(one))


def test_patches_that_agree_are_used_from_the_second_step_on():
    one, lines = patched()
    assert set(first_step._WATCHED) <= set(vars(one))
    one.train()
    assert one.contiguous_gradients is False
    assert replaced(one) == METHODS
    assert not {"step", "scaled_global_norm", "reduce_independent_p_g_buckets_and_remove_grads"} & set(vars(one))
    assert lines == []


def test_a_step_that_overflows_does_not_count():
    one, lines = patched()
    one.train(torch.inf)
    assert "step" in vars(one)
    one.train()
    assert replaced(one) == METHODS
    assert lines == []


def test_a_patch_that_fails_is_named_with_its_error_and_the_others_are_used(monkeypatch):
    def fail(*arguments):
        raise TypeError("an argument more")

    monkeypatch.setattr(optimizer, "_cast", fail)
    one, lines = patched()
    one.train()
    assert lines == [
        "  WARNING: patch 'cast_gradients_once' is off: it failed in the first step (TypeError: an argument more); "
        "DeepSpeed casts gradients to float64 for the norm, flattens them, then casts them to float32. "
        "--disable_patches cast_gradients_once turns it off from the start"
    ]
    assert replaced(one) == METHODS - REPLACED["cast_gradients_once"]


def test_another_rank_s_finding_counts(monkeypatch):
    monkeypatch.setattr(first_step, "all_reduce", lambda values, op: values.fill_(1) if op == "max" else values)
    two = World(rank=1, local_rank=1, size=2, device=torch.device("cpu"))
    one, lines = patched(world=two)
    one.train()
    assert replaced(one) == set()
    assert all("on another rank its numbers in the first step were not DeepSpeed's" in line for line in lines)
    assert len(lines) == 3  # buckets are skipped by a single rank only


def test_without_the_comparison_patches_are_used_at_once():
    one, (line,) = patched("compare_first_step")
    assert replaced(one) == METHODS
    assert "the patches of the optimizer are used without a comparison" in line


def test_patches_that_cannot_be_compared_are_not_used(monkeypatch):
    found = first_step.COMPARE_FIRST_STEP.__class__.missing
    monkeypatch.setattr(
        first_step.COMPARE_FIRST_STEP.__class__,
        "missing",
        lambda self, target=None: ["a:b"] if self is first_step.COMPARE_FIRST_STEP else found(self, target),
    )
    one, (line,) = patched()
    assert replaced(one) == set()
    assert line == "  patches of the optimizer are off: they cannot be compared with DeepSpeed without a:b"


def test_under_offload_nothing_is_listed_and_the_overflow_patch_is_used():
    one, lines = patched(cpu_offload=True)
    one.step()
    assert replaced(one) == REPLACED["detect_overflow_from_norm"]
    assert lines == []


def test_other_optimizers_are_left_alone():
    plain = SimpleNamespace()
    patch_optimizer(plain, ONE, PatchSelection(report=lambda line: pytest.fail(line)))
    assert vars(plain) == {}
