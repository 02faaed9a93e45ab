"""Run by several ranks: bytes that running engines hold and send, and the plan's numbers for them.

One argument: a folder with cases.json, a list of cases; answers.json in it is then a list of one answer for each case
and rank. A case: {"file": ..., "dtype": ..., "micro_batches": ..., "zero": {overrides}, "asks": "held" or "sent"}, and
with adapters "rank" and perhaps "quantize": the reference is then the policy without them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from deepspeed.comm.comm import comms_logger

from minimind import native
from minimind.config import AdapterConfig, parse_settings
from minimind.data.packs import pack
from minimind.engine.adapted_reference import AdaptedReference
from minimind.engine.ds_config import resolve_policy, resolve_reference
from minimind.engine.patches import first_step
from minimind.engine.policy import Policy
from minimind.engine.reference import LiveReference
from minimind.engine.start import start_rank
from minimind.model.configuration import MiniMindConfig
from minimind.objective.losses import build_objective
from minimind.plan.choice import Machine, StepLoad, ZeroChoice
from minimind.plan.memory import rank_memory
from minimind.plan.sizes import ModelSizes
from minimind.plan.traffic import step_traffic
from minimind.ranks import collectives, process
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.jobs.dpo import DPOJob
from minimind.training.metrics import MetricSums
from minimind.training.step import train_step
from minimind.weights.adapters import FreshAdapter, adapter_shapes, fresh_spec
from minimind.weights.quantized import QuantizedSource
from minimind.weights.sources import RandomSource

sys.path.insert(0, str(Path(__file__).parent))
from engines import REPO, random_pair

# Held: 7 M parameters, none of its tensors a large part of them, as whole tensors that straddle two ranks count twice.
# Sent: whatever is quick.
MODEL = {"generation": 3, "hidden_size": 256, "vocab_size": 1024}
LAYERS = {"held": 8, "sent": 2}
LOGGER = {"enabled": True, "verbose": False, "prof_all": True, "debug": False}


def held() -> Counter[str]:
    """Bytes of all tensors alive in this process, by dtype; what shares memory counts once."""
    gc.collect()
    storages = {}
    for value in gc.get_objects():
        if issubclass(type(value), torch.Tensor):
            for tensor in (value, value.grad if value.is_leaf else None):
                if tensor is not None and tensor.device.type == "cpu":
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = (str(tensor.dtype), storage.nbytes())
    sizes: Counter[str] = Counter()
    for dtype, size in storages.values():
        sizes[dtype] += size
    return sizes


def sent(ranks: int) -> float:
    """Bytes that this rank sent since the last reset, as DeepSpeed's logger has seen its collectives.

    It notes a gather by its input, a shard, and everything else by the whole; an all-reduce is twice the whole.
    """
    whole = {"all_gather_into_tensor": ranks, "reduce_scatter_tensor": 1, "reduce": 1, "all_reduce": 2, "barrier": 0}
    # An operation that is not listed would go uncounted: a KeyError says so.
    calls = [(name, size, of[0]) for name, sizes in comms_logger.comms_dict.items() for size, of in sizes.items()]
    return sum(whole[name] * size * count for name, size, count in calls) * (ranks - 1) / ranks


def measure(case: dict, world: World) -> dict:
    """Build both engines, train, and report."""
    flags = ["--dtype", case["dtype"], "--batch_size", "1", "--accumulation_steps", str(case["micro_batches"])]
    settings = parse_settings([*flags, "--max_seq_len", "64"])
    source = RandomSource(MiniMindConfig(**MODEL, num_hidden_layers=LAYERS[case["asks"]]), seed=7)
    reference_config = resolve_reference(REPO / "ds_configs/reference.json", settings, world.size, world.on_cpu)
    policy_config = resolve_policy(REPO / f"ds_configs/{case['file']}.json", settings, world.size, world.on_cpu)
    policy_config.values["tensorboard"]["enabled"] = False
    policy_config.values["zero_optimization"].update(case["zero"])
    for values in (policy_config.values, reference_config.values):
        values["comms_logger"] = LOGGER
        values["zero_optimization"].update({k: v for k, v in case["zero"].items() if "persistence" in k})

    spec = shapes = None
    if "rank" in case:
        spec = fresh_spec(AdapterConfig(lora_rank=case["rank"]), source.config)
        shapes = adapter_shapes(source.config, spec)
    dtype = getattr(torch, case["dtype"])
    base = QuantizedSource(source, dtype) if case.get("quantize") else source
    adapters = FreshAdapter(spec, base, 3, dtype, "default") if spec else None

    moments = {"start": held()}
    live = None if adapters else LiveReference(source, reference_config, world)
    moments["reference"] = held()
    policy = Policy(base, policy_config, lambda step: 1.0, world, adapters=adapters)
    policy.train()
    reference = live or AdaptedReference(policy, settings.config)
    # Short ones: neither what is held between steps nor what is sent depends on their length.
    batches = [pack([random_pair(10 * world.rank + index, 8)]) for index in range(case["micro_batches"])]

    job = DPOJob(objective=build_objective("sigmoid"), reference=reference)

    def train() -> None:
        train_step(policy, job, batches, MetricSums(world, job), Watch())

    with watched_comparison(moments):
        train()
    train()  # the first step with the patches of DeepSpeed's optimizer, whose buffer stays
    if case["asks"] == "held":
        watch_step(policy, train, moments)
    else:
        # ZeRO-3 gathers as it always will only from its third forward on, when it has learned the order.
        train()
        train()
        comms_logger.reset_data()
        train()

    machine = Machine(ranks_per_node=world.size, device_memory=2**40)
    packed = [f"{name}.weight" for name in base.packed_layers]
    sizes = ModelSizes.of(source.config, source.shapes(), shapes, packed)
    choices = [ZeroChoice.of(config.values) for config in (policy_config, reference_config)]
    load = StepLoad.of(settings.config)
    return {
        "case": case,
        "parameters": sizes.parameters,
        "bucket": choices[0].bucket,
        "moments": moments,
        "sent": sent(world.size) if case["asks"] == "sent" else None,
        "trained": sizes.trained,
        "plan": dataclasses.asdict(rank_memory(sizes, *choices, load, machine)),
        "plan_sent": step_traffic(sizes, *choices, load, machine).total,
    }


@contextlib.contextmanager
def watched_comparison(moments: dict[str, dict[str, int]]) -> Iterator[None]:
    """Bytes held while DeepSpeed's and the patch's float32 gradients are compared: ZeRO-1 and 2 in 16 bits."""
    own = first_step.cast_gradients_once

    def cast_gradients_once(optimizer: Any) -> dict[str, Any]:
        patched = own(optimizer)

        def get_flat_partition(**options: Any) -> Any:
            flat = patched["get_flat_partition"](**options)
            moments["comparing"] = held()  # the last call is that of the comparison
            return flat

        return {**patched, "get_flat_partition": get_flat_partition}

    first_step.cast_gradients_once = cast_gradients_once
    yield
    first_step.cast_gradients_once = own


def watch_step(policy: Policy, train: Callable[[], None], moments: dict[str, dict[str, int]]) -> None:
    """One more step: bytes held after its first backward, before its optimizer step, and after it."""
    backward, step = policy.backward, policy.engine.step

    def watched_backward(*arguments: Any, **options: Any) -> None:
        backward(*arguments, **options)
        moments.setdefault("accumulated", held())

    def watched_step() -> None:
        moments["gradients"] = held()  # of the last micro-batch, in the end
        step()

    policy.backward, policy.engine.step = watched_backward, watched_step
    train()
    policy.backward, policy.engine.step = backward, step
    moments["after"] = held()


def main() -> None:
    world, folder = start_rank().world, Path(sys.argv[-1])
    native.prepare(heap=False)
    gc.freeze()  # a million objects of imported modules, none of them a tensor of ours: looking at them takes seconds
    cases = json.loads((folder / "cases.json").read_text())
    answers = [answer for case in cases for answer in collectives.gather(world, measure(case, world))]
    if world.is_main:
        (folder / "answers.json").write_text(json.dumps(answers))
    process.end(0)


if __name__ == "__main__":
    with process.user_errors():
        main()
