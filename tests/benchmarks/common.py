"""Input and output of every benchmarked trainer.

The driver (`bench.py`) writes a folder with `task.json`, `pairs.jsonl` (rows that every trainer can train on, in
order), `start.pth`, `model/` and `tokenizer/`. An environment variable has its path. Rank 0 of a trainer writes
`result.json` there.

Memory has one definition for all trainers: a rank's peak up to its last timed step, resident on a CPU, allocated by
torch on a GPU. Two parts are the same for every trainer: the memory before the first model (Python, torch, libraries),
and the states (weights of policy and reference, the optimizer's float32 weights if it has them, its moments). The rest
is `above`: gradients, activations, logits, buffers, copies. Storage that several tensors share counts once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The variable with the folder's path. Arguments are not used, because the DeepSpeed launcher adds its own before them.
FOLDER = "MINIMIND_BENCH_FOLDER"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One measurement.

    Attributes:
        batch_size: pairs per rank and micro-batch.
        warmup_steps, steps: global steps not timed, global steps timed, in this order.
        max_seq_len: tokens kept of a row.
        options: settings that distinguish the configurations of one trainer.
    """

    folder: str
    batch_size: int
    warmup_steps: int
    steps: int
    max_seq_len: int
    options: dict[str, object]

    @property
    def path(self) -> Path:
        return Path(self.folder)


def read_task() -> Task:
    """The task that the driver has written."""
    return Task(**json.loads((Path(os.environ[FOLDER]) / "task.json").read_text()))


def write_result(task: Task, seconds: list[float], memory: dict[str, float], **more: object) -> None:
    """Write the seconds of each timed step, the memory from `memory_of`, and other values that the driver prints."""
    (task.path / "result.json").write_text(json.dumps({"seconds": seconds, **memory, **more}))


def now() -> float:
    """The clock, read after the device has finished its queued work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def used_gib(peak: bool = False) -> float:
    """This process's memory or its peak, in GiB: allocated by torch on a GPU, resident on a CPU.

    `getrusage` is not used, because a process inherits its parent's peak there.
    """
    if DEVICE.type == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**30
    field = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 2**20


def memory_of(
    peak_gib: float, before_gib: float, models: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None
) -> dict[str, float]:
    """The peak, and its part above the memory at the start and the states (see the module's docstring)."""
    states_gib = states_bytes(models, optimizer) / 2**30
    return {
        "peak_memory_gib": peak_gib,
        "start_memory_gib": before_gib,
        "states_memory_gib": states_gib,
        "above_memory_gib": peak_gib - before_gib - states_gib,
    }


def states_bytes(models: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None) -> int:
    """Bytes of weights (ZeRO-3 shards included) and of the optimizer's states on the measured device; shared storage
    counts once."""
    tensors: list[Tensor] = []
    for model in models:
        for parameter in model.parameters():
            tensors += [parameter, getattr(parameter, "ds_tensor", parameter)]
    if optimizer is not None:
        tensors += [parameter for group in optimizer.param_groups for parameter in group["params"]]
        tensors += [
            value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
        ]
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.device.type == DEVICE.type)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def processor_name() -> str:
    """The CPU's name as the system has it, or its architecture."""
    try:
        listed = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        listed = ""
    model = re.search(r"^model name\s*:\s*(.+)$", listed, re.MULTILINE)
    return model[1] if model else platform.machine()
