"""The check that a run makes of itself before it allocates anything: does the plan say that its memory is enough?

resolved configurations, ModelSizes, Machine -> nothing, or what to tell the user
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from minimind.config import TrainConfig
from minimind.plan.choice import Machine, StepLoad, ZeroChoice
from minimind.plan.memory import rank_memory
from minimind.plan.options import USABLE, cheapest, options
from minimind.plan.report import gib
from minimind.plan.sizes import ModelSizes


def this_machine(device: torch.device, ranks: int, ranks_per_node: int) -> Machine:
    """What a rank has here: its GPU's memory, or its part of the main memory that is free."""
    on_cpu = device.type == "cpu"
    if on_cpu:
        memory = free_memory() // ranks_per_node
    else:
        memory = torch.get_device_module(device).get_device_properties(device).total_memory
    return Machine(
        nodes=max(1, ranks // ranks_per_node), ranks_per_node=ranks_per_node, device_memory=memory, on_cpu=on_cpu
    )


def free_memory(path: Path = Path("/proc/meminfo")) -> int:
    """Bytes of main memory that programs can still take; boundless where the system does not say."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    available = (int(line.split()[1]) * 2**10 for line in lines if line.startswith("MemAvailable:"))
    return next(available, 2**60)


def shortage(
    sizes: ModelSizes,
    config: TrainConfig,
    machine: Machine,
    policy: Mapping[str, Any],
    reference: Mapping[str, Any],
) -> str:
    """What to tell the user when the plan does not fit; "" when it does.

    Args:
        policy, reference: the resolved DeepSpeed configurations.
    """
    memory = rank_memory(sizes, ZeroChoice.of(policy), ZeroChoice.of(reference), StepLoad.of(config), machine)
    if memory.peak <= USABLE * machine.device_memory:
        return ""
    items = ("parameters", "gradients", "optimizer", "reference", "activations")
    told = ", ".join(f"{item} {gib(getattr(memory, item))}" for item in items)
    what = "of free memory" if machine.on_cpu else "of the GPU"
    free = dataclasses.replace(config, deepspeed="", reference_config="")
    best = cheapest(options(sizes, free, machine), machine)
    remedy = "fewer tokens a micro-batch (--micro_batch_tokens, --max_seq_len, --batch_size) or more ranks need less"
    if best is not None:
        checkpointing = (
            " --gradient_checkpointing 1" if best.checkpointing and not config.gradient_checkpointing else ""
        )
        remedy = f"--deepspeed ds_configs/{best.file.name}{checkpointing} would fit, with {gib(best.memory.peak)} GiB"
    return (
        f"by the plan a rank needs up to {gib(memory.peak)} GiB ({told}), and has {gib(machine.device_memory)} GiB "
        f"{what}: it may run out; {remedy}. `python launch/plan.py` shows every choice"
    )
