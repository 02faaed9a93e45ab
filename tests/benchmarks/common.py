"""What every benchmarked trainer is given, and what it must give back.

The driver (`bench.py`) writes a folder with `task.json`, `pairs.jsonl` (rows that every trainer can train on, in
order), `start.pth`, `model/` and `tokenizer/`, and names it in the environment; a trainer's rank 0 writes
`result.json`.

Memory has one definition for all. Of a rank's peak memory up to its last timed step (resident; on a GPU what torch has
allocated there) two parts are nobody's choice: what the process held before it made its first model (Python, torch,
libraries), and the bare states: weights of policy and reference, the optimizer's own float32 copy of the weights where
it keeps one, its moments. What is left is `above`: gradients, activations, logits, buffers, copies. A state that
several tensors share counts once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The driver's word to the scripts: deepspeed's launcher puts arguments of its own before theirs.
FOLDER = "MINIMIND_BENCH_FOLDER"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One measurement.

    Attributes:
        batch_size: pairs per rank and micro-batch.
        warmup_steps, steps: global steps not timed, global steps timed, in this order.
        max_seq_len: tokens kept of a row.
        options: what tells one configuration of a trainer from another.
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
    """The task that the driver left."""
    return Task(**json.loads((Path(os.environ[FOLDER]) / "task.json").read_text()))


def write_result(task: Task, seconds: list[float], memory: dict[str, float], **more: object) -> None:
    """Seconds of each timed step, what `memory_of` says, and whatever else the driver shows."""
    (task.path / "result.json").write_text(json.dumps({"seconds": seconds, **memory, **more}))


def now() -> float:
    """The clock, read when the device has done what it was told."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def used_gib(peak: bool = False) -> float:
    """This process's memory, or the most it ever was: on a GPU what torch has allocated there, else what is resident.

    Not `getrusage`, whose peak a process inherits from the one that started it.
    """
    if DEVICE.type == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**30
    field = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 2**20


def memory_of(
    peak_gib: float, before_gib: float, models: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None
) -> dict[str, float]:
    """Peak, and how much of it is above the process's start and the bare states (see the module's text)."""
    states_gib = states_bytes(models, optimizer) / 2**30
    return {
        "peak_memory_gib": peak_gib,
        "start_memory_gib": before_gib,
        "states_memory_gib": states_gib,
        "above_memory_gib": peak_gib - before_gib - states_gib,
    }


def states_bytes(models: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None) -> int:
    """Bytes of weights, ZeRO-3 shards among them, and of all that an optimizer keeps, on the device that is measured;
    shared storage counts once."""
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
