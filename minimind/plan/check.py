"""Compares a run's planned memory with the machine's before anything is allocated.

resolved configurations, ModelSizes, Machine -> None, or a warning
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

# Files of a Linux control group, by the controller's name in /proc/self/cgroup ("" for version 2): limit, usage, and
# the line of memory.stat with the page cache, which is part of the usage but is freed when programs need memory.
_CGROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def this_machine(device: torch.device, ranks: int, ranks_per_node: int) -> Machine:
    """The machine that the run is on.

    With GPUs, a rank has its GPU's memory, and the free main memory is for offload. On a CPU, the ranks of a node share
    the free main memory.
    """
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
    """Bytes of main memory that this process can still allocate; 2**60 if the system does not say.

    The limit of a container or of a Slurm job is that of its control group or of a parent group, and may be lower than
    the machine's free memory.

    Args:
        root: of the file system; tests give another one.
    """
    meminfo = _lines(root / "proc/meminfo")
    free = [int(line.split()[1]) * 2**10 for line in meminfo if line.startswith("MemAvailable:")]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in set(controllers.split(",")) & set(_CGROUP_FILES):
            top = root / "sys/fs/cgroup" / controller
            group = top / path.strip("/")
            groups = (folder for folder in (group, *group.parents) if folder.is_relative_to(top))
            free += [remaining for folder in groups for remaining in _remaining(folder, controller)]
    return min(free, default=2**60)


def _remaining(group: Path, controller: str) -> list[int]:
    """Bytes left in a control group, as one value; empty if the group has no limit."""
    limit_file, used_file, reclaimable = _CGROUP_FILES[controller]
    limit, used = (_lines(group / name) for name in (limit_file, used_file))
    if not limit or not used or limit[0] == "max":
        return []
    page_cache = [int(line.split()[1]) for line in _lines(group / "memory.stat") if line.startswith(f"{reclaimable} ")]
    return [max(0, int(limit[0]) - int(used[0]) + sum(page_cache))]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def memory_warning(
    sizes: ModelSizes,
    config: JobConfig,
    machine: Machine,
    policy: Mapping[str, Any],
    reference: Mapping[str, Any],
    other: ModelSizes | None = None,
) -> str | None:
    """A warning with a remedy if the plan does not fit into memory, else None.

    Args:
        policy, reference: the resolved DeepSpeed configurations.
        other: sizes of a reference that is another model; None: it is the policy's.
    """
    memory = rank_memory(sizes, ZeroChoice.of(policy), ZeroChoice.of(reference), StepLoad.of(config), machine, other)
    if memory.peak <= USABLE * machine.device_memory:
        return None
    items = ("parameters", "gradients", "optimizer", "reference", "activations")
    parts = ", ".join(f"{item} {gib(getattr(memory, item))}" for item in items)
    where = "free main memory" if machine.on_cpu else "the GPU"
    # The remedy may use any shipped file, so the user's choice of files is dropped.
    free = replace_values(config, {"deepspeed": None, "reference_config": None})
    best = cheapest(options(sizes, free, machine, other), machine)
    remedy = "use fewer tokens per micro-batch (--micro_batch_tokens, --max_seq_len, --batch_size) or more ranks"
    if best is not None:
        checkpointing = (
            " --gradient_checkpointing 1" if best.checkpointing and not config.engine.gradient_checkpointing else ""
        )
        given = Path(config.engine.reference_config or "reference.json").name
        changes = config.engine.reference == "live" and best.reference_file.name != given
        reference_flag = f" --reference_config ds_configs/{best.reference_file.name}" if changes else ""
        remedy = (
            f"--deepspeed ds_configs/{best.file.name}{reference_flag}{checkpointing} fits, with "
            f"{gib(best.memory.peak)} GiB"
        )
    return (
        f"the run may run out of memory: a rank needs up to {gib(memory.peak)} GiB ({parts}), and {where} has "
        f"{gib(machine.device_memory)} GiB; {remedy}. `python launch/plan.py` shows all options"
    )
