"""The inputs of a plan that come from flags and DeepSpeed files."""

from __future__ import annotations

import json

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from minimind.config import DPOConfig, replace_values
from minimind.plan.choice import StepLoad, ZeroChoice
from minimind.plan.options import _FILES, DS_CONFIGS

DEFAULTS = {
    "bucket": "reduce_bucket_size",
    "prefetch": "prefetch_bucket_size",
    "keep_below": "param_persistence_threshold",
    "reuse_distance": "max_reuse_distance",
    "max_live": "max_live_parameters",
    "sub_group": "sub_group_size",
    "secondary_ranks": "zero_hpz_partition_size",
    "int8_weights": "zero_quantized_weights",
    "int4_gradients": "zero_quantized_gradients",
}


def load_of(**flags: object) -> StepLoad:
    return StepLoad.of(replace_values(DPOConfig(), flags))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_missing_keys_have_the_defaults_of_deepspeed(stage):
    theirs = DeepSpeedZeroConfig(stage=stage)
    ours = ZeroChoice.of({"zero_optimization": {"stage": stage, "overlap_comm": "auto"}})
    for name, key in DEFAULTS.items():
        assert getattr(ours, name) == getattr(theirs, key), name
    assert ours.reduces_to_owner != theirs.use_multi_rank_bucket_allreduce
    assert (ours.optimizer_on, ours.parameters_on, ours.offload_level) == ("device", "device", 0)


def test_every_shipped_file_is_planned_and_has_its_offload_level():
    shipped = {path.stem for path in DS_CONFIGS.glob("*.json")} - {"reference", "reference_offload"}
    assert shipped == set(_FILES)
    levels = {
        name: ZeroChoice.of(json.loads((DS_CONFIGS / f"{name}.json").read_text())).offload_level for name in _FILES
    }
    assert [levels[name] for name in ("zero2", "zero2_offload", "zero3_offload", "zero3_nvme")] == [0, 1, 2, 3]


def test_step_is_planned_with_full_rows():
    load = load_of(batch_size=4, accumulation_steps=3, max_seq_len=512)
    assert (load.tokens, load.micro_batches, load.width) == (4 * 2 * 512, 3, 2)
    assert (load.reference, load.checkpointing, load.reference_batches) == (True, False, 3)
    assert not load_of(reference="cached").reference


def test_number_of_micro_batches_under_a_token_limit():
    # 12 pairs of at most 1024 tokens are 12288 tokens: five micro-batches of 3000.
    load = load_of(batch_size=4, accumulation_steps=3, max_seq_len=512, micro_batch_tokens=3000)
    assert (load.tokens, load.micro_batches) == (3000, 5)
    # A micro-batch holds at least one pair, and never more than the pairs of a step.
    assert load_of(max_seq_len=512, micro_batch_tokens=10).tokens == 1024
    assert load_of(batch_size=1, max_seq_len=512, micro_batch_tokens=9000).tokens == 1024


@pytest.mark.parametrize(
    ("optimizer", "parameters", "text", "level"),
    [
        ("device", "device", "-", 0),
        ("cpu", "device", "optimizer to CPU", 1),
        ("device", "cpu", "parameters to CPU", 1),
        ("cpu", "cpu", "all to CPU", 2),
        ("nvme", "device", "optimizer to NVMe", 3),
        ("nvme", "nvme", "all to NVMe", 3),
    ],
)
def test_offload_is_described(optimizer, parameters, text, level):
    choice = ZeroChoice(stage=3, optimizer_on=optimizer, parameters_on=parameters)
    assert (choice.offload, choice.offload_level) == (text, level)


def test_offload_section_is_read():
    section = {"device": "nvme", "buffer_count": 7, "buffer_size": 8, "max_in_cpu": 9}
    choice = ZeroChoice.of(
        {"zero_optimization": {"stage": 3, "offload_param": section, "offload_optimizer": {"device": "none"}}}
    )
    assert (choice.parameters_on, choice.optimizer_on) == ("nvme", "device")
    assert (choice.swap_buffers, choice.swap_buffer, choice.max_in_cpu, choice.optimizer_buffers) == (7, 8, 9, 4)
