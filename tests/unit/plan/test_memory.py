"""Planned memory compared with bytes derived by hand, with DeepSpeed's estimators, and with what autograd saves."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from minimind.data.packs import pack
from minimind.engine.reference import _FORWARD_TOKENS
from minimind.engine.scorer import PairScorer
from minimind.model.configuration import MiniMindConfig
from minimind.model.modeling import MiniMindForCausalLM
from minimind.objective.reference_update import ReferenceUpdate
from minimind.plan.activations import activation_bytes
from minimind.plan.choice import REFERENCE_TOKENS, Machine, StepLoad, ZeroChoice
from minimind.plan.memory import rank_memory
from minimind.plan.sizes import ModelSizes
from minimind.weights.construction import empty_model, tensor_shapes
from tests.distributed.workers.engines import random_pair

REFERENCE = ZeroChoice(stage=3)


def sizes_of(**fields) -> ModelSizes:
    config = MiniMindConfig(**fields)
    return ModelSizes.of(config, tensor_shapes(empty_model(config)))


# 8 M elements in eight tensors of a million, so that values by hand are round.
ROUND = ModelSizes(
    tensors=(1_000_000,) * 8,
    vocab=1000,
    hidden=1000,
    layers=2,
    query=1000,
    key=1000,
    inner=3000,
    routed=0,
    normed_heads=False,
    float32_norms=False,
)
LOAD = StepLoad(dtype="bfloat16", tokens=100, micro_batches=1)
FOUR = Machine(ranks_per_node=4, device_memory=2**40)


def states(choice: ZeroChoice, load: StepLoad = LOAD) -> list[int]:
    """Parameters, gradients, optimizer and reference, in bytes a parameter of the model."""
    memory = rank_memory(ROUND, choice, REFERENCE, load, FOUR)
    return [value / 8e6 for value in (memory.parameters, memory.gradients, memory.optimizer, memory.reference)]


def test_states_of_other_optimizers():
    """By hand: 6 of 8 M elements are hidden matrices. Masters 4 bytes; Adam's moments 8; Muon's momentum in bfloat16 2,
    twice at stages 1 and 2, and 4 in main memory; 8-bit moments 2, and 8 bytes of scales for every 256 elements."""

    def optimizer(choice, name):
        load, sizes = dataclasses.replace(LOAD, optimizer=name), dataclasses.replace(ROUND, matrices=6_000_000)
        memory = rank_memory(sizes, choice, REFERENCE, load, FOUR)
        return memory.optimizer, memory.host

    assert optimizer(ZeroChoice(stage=2), "adamw")[0] == (4 + 8) * 2e6
    assert optimizer(ZeroChoice(stage=2), "muon")[0] == 4 * 2e6 + (8 * 2e6 + 4 * 6e6) / 4
    assert optimizer(ZeroChoice(stage=3), "muon")[0] == 4 * 2e6 + (8 * 2e6 + 2 * 6e6) / 4
    assert optimizer(ZeroChoice(stage=2), "adamw_8bit")[0] == 4 * 2e6 + (2 * 8e6 + 8 * 8e6 / 256) / 4
    offloaded = [optimizer(ZeroChoice(stage=2, optimizer_on="cpu"), name)[1] for name in ("adamw", "muon")]
    assert offloaded[0] - offloaded[1] == (8 - 4) * 6e6 / 4


def test_states_per_stage():
    float32 = dataclasses.replace(LOAD, dtype="float32")
    assert states(ZeroChoice(stage=0), float32) == [4, 4, 8, 1]
    assert states(ZeroChoice(stage=0), dataclasses.replace(LOAD, dtype="float16")) == [2, 2, 12, 0.5]
    assert states(ZeroChoice(stage=1)) == [2, 2 / 4, 12 / 4, 2 / 4]
    assert states(ZeroChoice(stage=1), dataclasses.replace(LOAD, micro_batches=2)) == [2, 2, 12 / 4, 2 / 4]
    assert states(ZeroChoice(stage=2)) == [2, 2 / 4, 12 / 4, 2 / 4]
    assert states(ZeroChoice(stage=3)) == [2 / 4, 2 / 4, 12 / 4, 2 / 4]
    assert states(ZeroChoice(stage=3), float32) == [4 / 4, 4 / 4, 12 / 4, 4 / 4]
    assert states(ZeroChoice(stage=3), dataclasses.replace(LOAD, reference=False)) == [2 / 4, 2 / 4, 12 / 4, 0]


def test_offload_moves_states_to_the_host():
    two = rank_memory(ROUND, ZeroChoice(stage=2, optimizer_on="cpu"), REFERENCE, LOAD, FOUR)
    assert (two.parameters, two.gradients, two.optimizer) == (16e6, 0, 0)
    # Master weights, moments, float32 gradients, 16-bit copy of the updated weights; and the gradient of one tensor.
    assert two.host == (4 + 8 + 4 + 2) * 8e6 / 4 + 2e6
    three = ZeroChoice(stage=3, optimizer_on="cpu", parameters_on="cpu")
    resting = rank_memory(ROUND, three, three, LOAD, FOUR)
    assert (resting.parameters, resting.gradients, resting.optimizer, resting.reference) == (0, 0, 0, 0)
    # Also gradients, weights and the reference.
    assert resting.host == (2 + 12 + 4 + 2 + 2) * 8e6 / 4
    swapped = ZeroChoice(stage=3, optimizer_on="nvme", parameters_on="nvme")
    assert rank_memory(ROUND, swapped, REFERENCE, LOAD, FOUR).disk == (12 + 4 + 2) * 8e6 / 4


def test_peak_is_the_largest_phase():
    memory = rank_memory(ROUND, ZeroChoice(stage=2, bucket=1_000_000, overlaps=True), REFERENCE, LOAD, FOUR)
    assert memory.buckets == 2 * 2e6
    assert memory.update == 4 * 8e6 / 4
    assert memory.peak == memory.states + max(
        memory.buckets + memory.activations + memory.head, memory.update, memory.scoring + memory.scoring_gathered
    )
    # With many tokens the peak is at the end of the forward, with one token in the update.
    many = rank_memory(ROUND, ZeroChoice(stage=2), REFERENCE, dataclasses.replace(LOAD, tokens=50_000), FOUR)
    assert many.peak == many.states + many.buckets + many.activations + many.head
    few = rank_memory(ROUND, ZeroChoice(stage=2, bucket=1), REFERENCE, dataclasses.replace(LOAD, tokens=1), FOUR)
    assert few.peak == few.states + max(few.update + few.buckets, few.scoring + few.scoring_gathered)
    # In the first step the float32 gradients exist twice.
    one = rank_memory(ROUND, ZeroChoice(stage=2, bucket=1), REFERENCE, dataclasses.replace(LOAD, tokens=1), FOUR)
    assert one.first_step == one.update
    assert dataclasses.replace(one, scoring_gathered=0).peak == one.states + 2 * one.update
    # The buckets are still allocated while gradients are cast to float32; large buckets and few tokens show it.
    wide = rank_memory(ROUND, ZeroChoice(stage=2), REFERENCE, dataclasses.replace(LOAD, tokens=1), FOUR)
    assert wide.update > wide.activations + wide.head
    assert wide.peak == wide.states + wide.update + wide.buckets


@pytest.mark.parametrize(("ranks", "optimizer_on", "buckets"), [(4, "device", 2), (1, "device", 1), (1, "cpu", 2)])
def test_a_single_rank_has_a_second_bucket_only_with_offload(ranks, optimizer_on, buckets):
    choice = ZeroChoice(stage=2, bucket=1_000_000, overlaps=True, optimizer_on=optimizer_on)
    memory = rank_memory(ROUND, choice, REFERENCE, LOAD, dataclasses.replace(FOUR, ranks_per_node=ranks))
    # Offload copies gradients through a buffer of the largest tensor.
    assert memory.buckets == buckets * 2e6 + (2e6 if optimizer_on == "cpu" else 0)


def test_a_block_of_logits_is_larger_on_a_gpu_and_never_larger_than_all_logits():
    wide = dataclasses.replace(ROUND, vocab=150_000)
    cpu = dataclasses.replace(FOUR, on_cpu=True)
    choice = ZeroChoice(stage=2)
    # 8 bytes a logit: 8 M logits on a CPU, 64 M on a GPU, 15 M are all logits of 100 tokens.
    for load, machine, logits in (
        (LOAD, cpu, 8 * 2**23),
        (LOAD, FOUR, 8 * 100 * 150_000),
        (dataclasses.replace(LOAD, tokens=1000), FOUR, 8 * 2**26),
    ):
        memory = rank_memory(wide, choice, REFERENCE, load, machine)
        assert memory.head == load.tokens * 1000 * (2 + 4) + logits + 2 * 150_000 * 1000
        alone = rank_memory(wide, choice, REFERENCE, dataclasses.replace(load, tokens=1), machine)
        working = 2 * (3 * 1000 + 3 * 3000 + 2 * 1000)
        assert memory.scoring == working * load.tokens + logits
        assert alone.scoring == working + 8 * 150_000


def test_on_a_cpu_offload_saves_nothing_and_unused_bucket_space_is_free():
    cpu = dataclasses.replace(FOUR, on_cpu=True)
    plain, offloaded = (
        rank_memory(ROUND, ZeroChoice(stage=2, optimizer_on=place), REFERENCE, LOAD, cpu) for place in ("device", "cpu")
    )
    assert plain.buckets == 2 * 8e6
    # The float32 gradients keep their buffer.
    assert (plain.gradients, plain.update) == ((2 + 4) * 8e6 / 4, 0)
    assert offloaded.host == 0
    assert offloaded.states >= plain.states


def test_mixture_of_experts_stores_all_experts_and_computes_with_some():
    dense, moe = (sizes_of(generation=3, use_moe=use_moe) for use_moe in (False, True))
    assert moe.parameters > 2.5 * dense.parameters
    assert (moe.routed, moe.inner) == (1, dense.inner)
    two = sizes_of(generation=2, use_moe=True)
    assert two.inner == (2 + 1) * sizes_of(generation=2).inner


def test_zero_2_agrees_with_the_estimate_of_deepspeed():
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    sizes = sizes_of(hidden_size=1024, num_hidden_layers=16)
    memory = rank_memory(sizes, ZeroChoice(stage=2), REFERENCE, LOAD, FOUR)
    _, estimate = estimate_zero2_model_states_mem_needs(sizes.parameters, num_gpus_per_node=4, cpu_offload=False)
    # DeepSpeed: 2 + 18/N, with the float32 gradients of the update, without reference, buckets and activations.
    # Plan: 2 + 14/N, and 4/N during the optimizer step.
    ours = memory.states - memory.reference + memory.update
    assert ours == pytest.approx(estimate, rel=1e-6)
    offloaded = rank_memory(sizes, ZeroChoice(stage=2, optimizer_on="cpu"), REFERENCE, LOAD, FOUR)
    host, device = estimate_zero2_model_states_mem_needs(
        sizes.parameters, num_gpus_per_node=4, cpu_offload=True, additional_buffer_factor=1.0
    )
    assert offloaded.states - offloaded.reference == device
    # DeepSpeed: 16 per parameter, times a factor of 1.5 for buffers. The plan counts the buffers: the 16-bit copy of
    # the updated weights (2), and the gradient of one tensor per rank.
    assert 4 * (offloaded.host - 2 * sizes.largest) == pytest.approx(host * 18 / 16, rel=1e-6)


def test_zero_3_agrees_with_the_estimate_of_deepspeed():
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    sizes = sizes_of(hidden_size=1024, num_hidden_layers=16)
    memory = rank_memory(sizes, ZeroChoice(stage=3, keep_below=0), REFERENCE, LOAD, FOUR)
    _, estimate, live = estimate_zero3_model_states_mem_needs(
        sizes.parameters, sizes.largest, num_gpus_per_node=4, cpu_offload=False, cpu_offload_params=False
    )
    # DeepSpeed: 18/N, and one gathered layer with its gradient. Plan: 16/N, and 6/N during the optimizer step.
    # DeepSpeed omits the flat 16-bit copy from which float32 gradients are cast, and a copy of shard and gradients. The
    # plan takes the size of gathered parameters from the limits in the DeepSpeed file.
    ours = memory.states - memory.reference + memory.update
    assert ours - (2 + 2) * sizes.parameters / 4 == pytest.approx(estimate - live, rel=1e-3)
    three = ZeroChoice(stage=3, keep_below=0, optimizer_on="cpu", parameters_on="cpu")
    offloaded = rank_memory(sizes, three, REFERENCE, LOAD, FOUR)
    host, *_ = estimate_zero3_model_states_mem_needs(
        sizes.parameters, sizes.largest, num_gpus_per_node=4, additional_buffer_factor=1.0
    )
    # DeepSpeed: 18 per parameter, times 1.5. Plan: 20 without a factor, because 16-bit and float32 gradients are kept.
    assert 4 * offloaded.host == pytest.approx(host * 20 / 18, rel=1e-3)


@pytest.mark.parametrize("fields", [{"generation": 2}, {"generation": 3}, {"generation": 3, "use_moe": True}])
def test_activations_are_those_that_autograd_saves(fields, cpu_kernels):
    """In float32 a CPU runs the same attention and norms as a GPU; its fused 16-bit operations save less."""
    batch = pack([random_pair(seed, 200) for seed in range(2)])
    tokens = len(batch.token_ids)
    for dtype, low in (("float32", 0.9), ("bfloat16", 0.5)):
        kept = {layers: saved_bytes(fields, layers, dtype, batch) for layers in (2, 4)}
        planned = {
            layers: activation_bytes(
                sizes_of(hidden_size=256, num_hidden_layers=layers, vocab_size=640, **fields),
                StepLoad(dtype=dtype, tokens=tokens, micro_batches=1),
            )
            for layers in (2, 4)
        }
        # The difference is that of two blocks: embeddings and head, which are planned separately, cancel out.
        ratio = (kept[4] - kept[2]) / (planned[4] - planned[2])
        assert low < ratio < 1.05, (dtype, ratio)


def saved_bytes(fields, layers: int, dtype: str, batch) -> int:
    config = MiniMindConfig(hidden_size=256, num_hidden_layers=layers, vocab_size=640, **fields)
    scorer = PairScorer(MiniMindForCausalLM(config).to(getattr(torch, dtype))).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in scorer.parameters()}
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # kept alive: no other tensor gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scorer(batch)
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)


def test_checkpointing_saves_one_state_per_block_and_one_block():
    plain, checkpointed = (
        activation_bytes(ROUND, dataclasses.replace(LOAD, checkpointing=checkpointing)) for checkpointing in (0, 1)
    )
    block = plain // ROUND.layers
    assert checkpointed == block + ROUND.layers * 2 * 100 * 1000


def test_reference_tokens_equal_those_of_the_engine():
    assert REFERENCE_TOKENS == _FORWARD_TOKENS


def test_a_reference_that_is_another_model_has_its_own_memory():
    """Four ranks, bfloat16: a reference of half the tensors is half the shard, and scores in less."""
    small = dataclasses.replace(ROUND, tensors=ROUND.tensors[:4], hidden=500, inner=1500, query=500, vocab=500)
    same, other = (rank_memory(ROUND, ZeroChoice(stage=2), REFERENCE, LOAD, FOUR, one) for one in (None, small))
    assert (same.reference, other.reference) == (2 * 8e6 / 4, 2 * 4e6 / 4)
    alone = rank_memory(small, ZeroChoice(stage=2), REFERENCE, LOAD, FOUR)
    assert (other.scoring, other.scoring_gathered) == (alone.scoring, alone.scoring_gathered)
    kept = {"reference", "scoring", "scoring_gathered"}
    fields = {field.name for field in dataclasses.fields(same)} - kept
    assert all(getattr(same, name) == getattr(other, name) for name in fields)


def test_a_reference_that_follows_the_policy_has_a_float32_average():
    """Beside a 16-bit shard, unless each update replaces the whole; while it moves, a gathered tensor is in float32."""

    def planned(update, dtype="bfloat16", stage=2):
        load = dataclasses.replace(LOAD, dtype=dtype, update=update)
        return rank_memory(ROUND, ZeroChoice(stage=stage), REFERENCE, load, FOUR)

    soft, hard = ReferenceUpdate(share=0.5, every=8), ReferenceUpdate(share=1.0, every=8)
    assert planned(soft).reference == (2 + 4) * 8e6 / 4
    assert planned(hard).reference == planned(None).reference == 2 * 8e6 / 4
    assert planned(soft, "float32").reference == planned(None, "float32").reference
    assert (planned(soft).moving, planned(soft, stage=3).moving, planned(None).moving) == (4e6, 0, 0)
    free = dataclasses.replace(planned(soft), moving=10**12)
    assert free.peak == free.states + 10**12


# A million elements of adapters beside seven million of a base, of which four million are in 4 bits.
ADAPTED = dataclasses.replace(ROUND, adapters=(1_000_000,))
PACKED = dataclasses.replace(ADAPTED, packed=(1_000_000,) * 4)


@pytest.mark.parametrize(("stage", "parts"), [(2, 1), (3, 4)])
def test_adapters_alone_have_gradients_and_states_and_the_reference_is_in_the_policy(stage, parts):
    memory = rank_memory(ADAPTED, ZeroChoice(stage=stage), REFERENCE, LOAD, FOUR)
    assert memory.parameters == 2 * 8_000_000 // parts
    assert memory.gradients == 2 * 1_000_000 // 4
    assert memory.optimizer == 12 * 1_000_000 // 4
    assert memory.reference == 0
    assert memory.update <= 6 * 1_000_000 // 4
    packed = rank_memory(PACKED, ZeroChoice(stage=stage), REFERENCE, LOAD, FOUR)
    # 4.5 bits instead of 16.
    assert memory.parameters - packed.parameters == 4_000_000 * (16 - 4.5) / 8 / parts
    # One layer is unpacked while it is in use.
    assert packed.activations - memory.activations == 2 * 1_000_000


def test_another_reference_of_adapters_is_an_engine():
    memory = rank_memory(ADAPTED, ZeroChoice(stage=2), REFERENCE, LOAD, FOUR, other=ROUND)
    assert memory.reference == 2 * 8_000_000 // 4
