"""Patches of DeepSpeed's ZeRO-1/2 optimizer, each on a stand-in that counts DeepSpeed's own passes over gradients.

tests/distributed/test_ds_configs.py compares real training with and without each patch.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer, GradPartitionBufferGroup

from minimind.engine.patches.optimizer import fitting_patches, replace
from minimind.engine.patches.registry import PatchSelection

NAMES = ("detect_overflow_from_norm", "skip_reduction_buckets", "skip_unneeded_clipping", "cast_gradients_once")
# What each patch replaces on the optimizer.
REPLACED = {
    "detect_overflow_from_norm": {"check_overflow"},
    "skip_reduction_buckets": {"buffered_reduce_fallback"},
    "skip_unneeded_clipping": {"unscale_and_clip_grads"},
    "cast_gradients_once": {"get_flat_partition", "get_grad_norm_direct"},
}


class StandIn(DeepSpeedZeroOptimizer):
    """DeepSpeed's class with the attributes that patches read; its methods record their calls."""

    loss_scale = 1.0  # a property in DeepSpeed

    def __init__(self, **changes):
        values = {
            "dtype": torch.bfloat16,
            "gradient_accumulation_dtype": torch.bfloat16,
            "communication_data_type": torch.bfloat16,
            "gradient_predivide_factor": 1.0,
            "contiguous_gradients": True,
            "check_grad_overflow": True,
            "compute_grad_norm": True,
            "cpu_offload": False,
            "device": "cpu",
            "clip_grad": 1.0,
            "optimizer": SimpleNamespace(param_groups=[{}]),
        }
        self.__dict__.update({**values, **changes})
        self.calls, self.normed = [], []

    def unscale_and_clip_grads(self, gradients, norm):
        self.calls.append(norm)

    def get_flat_partition(self, gradients, param_group_idx=None):
        return gradients

    def get_grad_norm_direct(self, gradients, params):
        self.normed = list(gradients)
        kept = [g for g in gradients if not getattr(g, "_zero_padding", False)]
        return torch.stack([torch.linalg.vector_norm(g.double()) for g in kept]).square().sum().sqrt()


def patched(*off, single_rank=True, **changes):
    """A patched stand-in, and the names of its methods that were replaced."""
    optimizer = StandIn(**changes)
    before = set(vars(optimizer))
    selection = PatchSelection(disabled=frozenset(off), report=lambda line: None)
    for replacement in fitting_patches(optimizer, single_rank, selection).values():
        replace(optimizer, replacement)
    return optimizer, set(vars(optimizer)) - before


def test_all_patches_are_applied_to_bfloat16_gradients_of_a_single_cpu_rank():
    optimizer, replaced = patched()
    assert replaced == set().union(*REPLACED.values())
    assert optimizer.contiguous_gradients is False


@pytest.mark.parametrize("name", NAMES)
def test_each_patch_can_be_turned_off_by_itself(name):
    optimizer, replaced = patched(name)
    assert replaced == set().union(*REPLACED.values()) - REPLACED[name]
    assert optimizer.contiguous_gradients is (name == "skip_reduction_buckets")


@pytest.mark.parametrize(
    ("changes", "applied"),
    [
        ({"dtype": torch.float32, "gradient_accumulation_dtype": torch.float32}, ()),
        ({"gradient_accumulation_dtype": torch.float32}, ()),
        ({"cpu_offload": True}, NAMES[:1]),
        ({"device": "cuda"}, (NAMES[0], NAMES[3])),
        ({"single_rank": False}, (NAMES[0], NAMES[2], NAMES[3])),
        ({"communication_data_type": torch.float32}, (NAMES[0], NAMES[2], NAMES[3])),
        ({"gradient_predivide_factor": 2.0}, (NAMES[0], NAMES[2], NAMES[3])),
        ({"check_grad_overflow": False}, NAMES[1:]),
        ({"compute_grad_norm": False}, NAMES[1:]),
        ({"dtype": torch.float16, "gradient_accumulation_dtype": torch.float16}, (NAMES[2], NAMES[3])),
    ],
)
def test_patches_that_do_not_fit_are_left_out(changes, applied):
    _, replaced = patched(**changes)
    assert replaced == set().union(*(REPLACED[name] for name in applied))


def test_muon_is_left_alone():
    """It makes its updates while the partitions of gradients are collected."""
    _, replaced = patched(optimizer=SimpleNamespace(param_groups=[{"use_muon": False}, {"use_muon": True}]))
    assert replaced == set()


def test_other_optimizers_are_left_alone():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    for other in (optimizer, None):
        assert fitting_patches(other, True, PatchSelection(report=lambda line: pytest.fail(line))) == {}


@pytest.mark.parametrize(
    ("clip", "scale", "norm", "clipped"),
    [
        (1.0, 1.0, 0.5, False),
        (1.0, 1.0, 0.99998, False),
        (1.0, 1.0, 0.999995, True),  # within the margin: DeepSpeed decides
        (1.0, 1.0, 2.0, True),
        (1.0, 1.0, -1.0, True),  # DeepSpeed's mark of a norm that is not finite
        (1.0, 1.0, float("nan"), True),
        (1.0, 8.0, 0.5, True),  # gradients must be unscaled
        (0.0, 1.0, 0.5, True),  # DeepSpeed returns by itself
    ],
)
def test_gradients_are_clipped_only_if_the_factor_is_not_1(clip, scale, norm, clipped, monkeypatch):
    monkeypatch.setattr(StandIn, "loss_scale", scale)
    optimizer, _ = patched(clip_grad=clip)
    optimizer.unscale_and_clip_grads([], norm)
    assert len(optimizer.calls) == clipped


def test_gradients_are_cast_once_into_one_buffer_and_keep_their_norm():
    optimizer, _ = patched()
    plain, _ = patched(*NAMES)
    torch.manual_seed(0)
    gradients = [torch.randn(3, 5).bfloat16(), torch.tensor([3.0, 4.0]).bfloat16(), torch.zeros(4).bfloat16()]
    gradients[2]._zero_padding = True
    cast = optimizer.get_flat_partition(gradients, param_group_idx=0)
    assert isinstance(cast, GradPartitionBufferGroup)
    assert torch.equal(cast.flat_partition, torch.cat([g.flatten().float() for g in gradients]))
    for one, gradient in zip(cast, gradients, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, gradient.float())
        assert one.untyped_storage().data_ptr() == cast.flat_partition.untyped_storage().data_ptr()
    assert [getattr(one, "_zero_padding", False) for one in cast] == [False, False, True]
    norm = optimizer.get_grad_norm_direct(cast, [])
    assert norm.item() == pytest.approx(plain.get_grad_norm_direct(gradients, []).item(), rel=1e-12)
    # In the next step the same group gets the same buffer, and a call without a group a buffer of its own.
    again = optimizer.get_flat_partition([g * 2 for g in gradients], param_group_idx=0)
    assert again.flat_partition.data_ptr() == cast.flat_partition.data_ptr()
    assert optimizer.get_flat_partition(gradients).flat_partition.data_ptr() != cast.flat_partition.data_ptr()


def test_a_flat_tensor_is_returned_as_it_is():
    optimizer, _ = patched()
    flat = torch.ones(4, dtype=torch.bfloat16)
    assert optimizer.get_flat_partition(flat, param_group_idx=0) is flat
