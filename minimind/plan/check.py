"""The check that a run makes of itself before it allocates anything: does the plan say that its memory is enough?

resolved configurations, ModelSizes, Machine -> nothing, or what to tell the user
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from minimind.config import JobConfig, replace_values
from minimind.plan.choice import Machine, StepLoad, ZeroChoice
from minimind.plan.memory import rank_memory
from minimind.plan.options import USABLE, cheapest, options
from minimind.plan.report import gib
from minimind.plan.sizes import ModelSizes

# Files of a control group of Linux by its version: limit, used, and the line of memory.stat with the part of that which
# is only a copy of files, dropped when programs want the room.
_CGROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def this_machine(device: torch.device, ranks: int, ranks_per_node: int) -> Machine:
    """What a rank has here: its GPU's memory and the free main memory for offload, or its part of that on a CPU."""
    on_cpu, free = device.type == "cpu", free_memory()
    if on_cpu:
        memory = free // ranks_per_node
    else:
        memory = torch.get_device_module(device).get_device_properties(device).total_memory
    return Machine(
        nodes=max(1, ranks // ranks_per_node),
        ranks_per_node=ranks_per_node,
        device_memory=memory,
        host_memory=0 if on_cpu else free,
        on_cpu=on_cpu,
    )


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory that this process can still take; boundless where the system does not say.

    A container or a Slurm job may have less than the machine: the limit of its control group, or of one above it.
    """
    meminfo = _lines(root / "proc/meminfo")
    free = [int(line.split()[1]) * 2**10 for line in meminfo if line.startswith("MemAvailable:")]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in set(controllers.split(",")) & set(_CGROUP_FILES):
            top = root / "sys/fs/cgroup" / controller
            group = top / path.strip("/")
            above = (folder for folder in (group, *group.parents) if folder.is_relative_to(top))
            free += [left for folder in above for left in _left(folder, controller)]
    return min(free, default=2**60)


def _left(group: Path, controller: str) -> list[int]:
    """Bytes that a control group leaves; none where it has no limit."""
    limit_file, used_file, reclaimable = _CGROUP_FILES[controller]
    limit, used = (_lines(group / name) for name in (limit_file, used_file))
    if not limit or not used or limit[0] == "max":
        return []
    dropped = [int(line.split()[1]) for line in _lines(group / "memory.stat") if line.startswith(f"{reclaimable} ")]
    return [max(0, int(limit[0]) - int(used[0]) + sum(dropped))]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def shortage(
    sizes: ModelSizes,
    config: JobConfig,
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
    free = replace_values(config, {"deepspeed": None, "reference_config": None})
    best = cheapest(options(sizes, free, machine), machine)
    remedy = "fewer tokens a micro-batch (--micro_batch_tokens, --max_seq_len, --batch_size) or more ranks need less"
    if best is not None:
        checkpointing = (
            " --gradient_checkpointing 1" if best.checkpointing and not config.engine.gradient_checkpointing else ""
        )
        given = Path(config.engine.reference_config or "reference.json").name
        other = config.engine.reference == "live" and best.reference_file.name != given
        resting = f" --reference_config ds_configs/{best.reference_file.name}" if other else ""
        remedy = (
            f"--deepspeed ds_configs/{best.file.name}{resting}{checkpointing} would fit, with "
            f"{gib(best.memory.peak)} GiB"
        )
    return (
        f"by the plan a rank needs up to {gib(memory.peak)} GiB ({told}), and has {gib(machine.device_memory)} GiB "
        f"{what}: it may run out; {remedy}. `python launch/plan.py` shows every choice"
    )
