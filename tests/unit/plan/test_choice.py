"""What a plan reads off flags and DeepSpeed files."""

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
def test_missing_keys_are_deepspeed_s_defaults(stage):
    theirs = DeepSpeedZeroConfig(stage=stage)
    ours = ZeroChoice.of({"zero_optimization": {"stage": stage, "overlap_comm": "auto"}})
    for name, key in DEFAULTS.items():
        assert getattr(ours, name) == getattr(theirs, key), name
    assert ours.reduces_to_owner != theirs.use_multi_rank_bucket_allreduce
    assert (ours.optimizer_on, ours.parameters_on, ours.offload_level) == ("device", "device", 0)


def test_every_shipped_file_is_planned_and_leaves_less_on_the_device_from_level_to_level():
    shipped = {path.stem for path in DS_CONFIGS.glob("*.json")} - {"reference", "reference_offload"}
    assert shipped == set(_FILES)
    levels = {
        name: ZeroChoice.of(json.loads((DS_CONFIGS / f"{name}.json").read_text())).offload_level for name in _FILES
    }
    assert [levels[name] for name in ("zero2", "zero2_offload", "zero3_offload", "zero3_nvme")] == [0, 1, 2, 3]


def test_a_step_is_planned_with_full_rows():
    load = load_of(batch_size=4, accumulation_steps=3, max_seq_len=512)
    assert (load.tokens, load.micro_batches, load.width) == (4 * 2 * 512, 3, 2)
    assert (load.reference, load.checkpointing, load.reference_batches) == (True, False, 3)
    assert not load_of(reference="cached").reference


def test_micro_batches_by_tokens():
    # 12 pairs of at most 1024 tokens, 3000 at a time.
    load = load_of(batch_size=4, accumulation_steps=3, max_seq_len=512, micro_batch_tokens=3000)
    assert (load.tokens, load.micro_batches) == (3000, 5)
    # One pair must fit, whatever the limit; and a step is never more than its pairs.
    assert load_of(max_seq_len=512, micro_batch_tokens=10).tokens == 1024
    assert load_of(batch_size=1, max_seq_len=512, micro_batch_tokens=9000).tokens == 1024
