"""Run by several ranks: what live engines hold and send, beside what the plan says.

One argument: a folder with cases.json, [{"file": ..., "dtype": ..., "micro_batches": ..., "zero": {overrides}}, ...];
answers.json in it is then a list of one answer for each case and rank.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from collections import Counter
from pathlib import Path

import torch
from deepspeed.comm.comm import comms_logger

from minimind.config import parse_settings
from minimind.data.pack import pack
from minimind.engine import process
from minimind.engine.ds_config import resolve_policy, resolve_reference
from minimind.engine.policy import Policy
from minimind.engine.reference import Reference
from minimind.model.configuration import MiniMindConfig
from minimind.plan.choice import Machine, StepLoad, ZeroChoice
from minimind.plan.memory import rank_memory
from minimind.plan.sizes import ModelSizes
from minimind.plan.traffic import step_traffic
from minimind.training.metrics import MetricSums
from minimind.training.step import Objective, train_step
from minimind.weights.sources import RandomSource

sys.path.insert(0, str(Path(__file__).parent))
from engines import REPO, random_pair

# 7 M parameters, none of its tensors a large part of them; whole tensors that straddle two ranks count twice.
MODEL = {"generation": 3, "hidden_size": 256, "num_hidden_layers": 8, "vocab_size": 1024}
LOGGER = {"enabled": True, "verbose": False, "prof_all": True, "debug": False}


def held() -> Counter[str]:
    """Bytes of all tensors alive in this process, by dtype; what shares memory counts once."""
    gc.collect()
    storages = {}
    for value in gc.get_objects():
        if isinstance(value, torch.Tensor):
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
    volumes = [
        whole[name] * size * calls[0] for name, of in comms_logger.comms_dict.items() for size, calls in of.items()
    ]
    return sum(volumes) * (ranks - 1) / ranks


def measure(case: dict, world: process.World) -> dict:
    """Build both engines, take two steps, and report on the second."""
    flags = ["--dtype", case["dtype"], "--batch_size", "1", "--accumulation_steps", str(case["micro_batches"])]
    settings = parse_settings([*flags, "--max_seq_len", "64"])
    source = RandomSource(MiniMindConfig(**MODEL), seed=7)
    reference_config = resolve_reference(REPO / "ds_configs/reference.json", settings, world.size, world.on_cpu)
    policy_config = resolve_policy(REPO / f"ds_configs/{case['file']}.json", settings, world.size, world.on_cpu)
    policy_config.values["tensorboard"]["enabled"] = False
    policy_config.values["zero_optimization"].update(case["zero"])
    for values in (policy_config.values, reference_config.values):
        values["comms_logger"] = LOGGER
        values["zero_optimization"].update({k: v for k, v in case["zero"].items() if "persistence" in k})

    moments = {"start": held()}
    reference = Reference(source, reference_config, world)
    moments["reference"] = held()
    policy = Policy(source, policy_config, lambda step: 1.0, world)
    policy.train()
    batches = [pack([random_pair(10 * world.rank + index, 60)]) for index in range(case["micro_batches"])]
    # Of the last micro-batch: whatever the step itself frees or makes is not there yet.
    backward, step = policy.backward, policy.engine.step

    def before_step() -> None:
        moments["gradients"] = held()
        step()

    def note_first(*arguments: object, **options: object) -> None:
        backward(*arguments, **options)
        moments.setdefault("accumulated", held())

    objective = Objective(beta=0.1, average_log_prob=True)
    train_step(policy, reference, objective, batches, MetricSums(world))
    policy.backward, policy.engine.step = note_first, before_step
    train_step(policy, reference, objective, batches, MetricSums(world))
    policy.backward, policy.engine.step = backward, step
    moments["after"] = held()
    for _ in range(2):  # ZeRO-3 gathers as it will only from the third micro-batch on, when it has learned the order
        comms_logger.reset_data()
        train_step(policy, reference, objective, batches, MetricSums(world))

    machine = Machine(ranks_per_node=world.size, device_memory=2**40)
    sizes = ModelSizes.of(source.config, source.shapes())
    choices = [ZeroChoice.of(config.values) for config in (policy_config, reference_config)]
    load = StepLoad.of(settings.config)
    return {
        "case": case,
        "rank": world.rank,
        "parameters": sizes.parameters,
        "bucket": choices[0].bucket,
        "moments": {name: dict(moment) for name, moment in moments.items()},
        "sent": sent(world.size),
        "plan": dataclasses.asdict(rank_memory(sizes, *choices, load, machine)),
        "plan_sent": step_traffic(sizes, *choices, load, machine).total,
    }


def main() -> None:
    world, folder = process.start(), Path(sys.argv[-1])
    cases = json.loads((folder / "cases.json").read_text())
    answers = [answer for case in cases for answer in process.gather(world, measure(case, world))]
    if world.is_main:
        (folder / "answers.json").write_text(json.dumps(answers))
    process.end(0)


if __name__ == "__main__":
    with process.user_errors():
        main()
