"""Every way of running that there is a DeepSpeed file for, what it costs, and the cheapest that fits.

files, ModelSizes, flags, Machine -> list of Option -> cheapest
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minimind.config import JobConfig
from minimind.errors import ConfigError
from minimind.plan.choice import Machine, StepLoad, ZeroChoice
from minimind.plan.memory import RankMemory, rank_memory
from minimind.plan.sizes import ModelSizes
from minimind.plan.traffic import StepTraffic, step_traffic

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
# In the order of the table: the less leaves the device, the earlier.
_FILES = "zero0 zero1 zero2 zero3 zeropp zero2_offload zero3_offload zero3_nvme".split()

# Share of a device's memory that a plan may fill: the rest is the driver's, the communication library's, and what
# the allocator cannot use because it is in pieces.
USABLE = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One way of running.

    Attributes:
        file, reference_file: the DeepSpeed files of policy and reference.
        checkpointing: with --gradient_checkpointing 1.
        obstacle: why it cannot or should not be taken whatever the memory, or "".
    """

    file: Path
    reference_file: Path
    choice: ZeroChoice
    checkpointing: bool
    memory: RankMemory
    traffic: StepTraffic
    obstacle: str

    def fits(self, machine: Machine) -> bool:
        """Whether device and, where it is known, main memory hold it."""
        in_host = not machine.host_memory or self.memory.host * machine.ranks_per_node <= USABLE * machine.host_memory
        return not self.obstacle and self.memory.peak <= USABLE * machine.device_memory and in_host

    @property
    def cost(self) -> tuple[int, bool, int, bool, int, int]:
        """What to keep low: first what leaves the device, then recomputing, then traffic, then memory.

        Of the same traffic, gathering layer by layer waits more often; and of the same memory, stage 2 needs no more
        of it with more micro-batches.
        """
        stage = self.choice.stage
        return (
            self.choice.offload_level,
            self.checkpointing,
            self.traffic.total,
            stage == 3,
            self.memory.peak,
            -stage,
        )


def options(sizes: ModelSizes, config: JobConfig, machine: Machine) -> list[Option]:
    """Every option that flags leave open: files unless --deepspeed names one, checkpointed or not unless it is on.

    Raises:
        ConfigError: a DeepSpeed file that cannot be read.
    """
    files = [DS_CONFIGS / f"{name}.json" for name in _FILES]
    if config.engine.deepspeed is not None:
        files = [Path(config.engine.deepspeed)]
    found = []
    for file in files:
        choice = ZeroChoice.of(read_zero(file))
        resting = "reference_offload" if choice.parameters_on != "device" else "reference"
        reference_file = Path(config.engine.reference_config or DS_CONFIGS / f"{resting}.json")
        reference = ZeroChoice.of(read_zero(reference_file))
        for checkpointing in sorted({config.engine.gradient_checkpointing, True}):
            load = dataclasses.replace(StepLoad.of(config), checkpointing=checkpointing)
            found.append(
                Option(
                    file=file,
                    reference_file=reference_file,
                    choice=choice,
                    checkpointing=checkpointing,
                    memory=rank_memory(sizes, choice, reference, load, machine),
                    traffic=step_traffic(sizes, choice, reference, load, machine),
                    obstacle=_obstacle(choice, config.optimisation.dtype, machine.on_cpu),
                )
            )
    return found


def cheapest(found: Sequence[Option], machine: Machine) -> Option | None:
    """The option that fits and costs least; None if none fits."""
    return min((option for option in found if option.fits(machine)), key=lambda option: option.cost, default=None)


def read_zero(path: Path) -> dict[str, Any]:
    """A DeepSpeed file, far enough to plan with; training checks all of it.

    Raises:
        ConfigError: missing, no JSON object, or a stage that there is not.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        stage = values["zero_optimization"]["stage"]
    except OSError as error:
        raise ConfigError(f"{path}: no such DeepSpeed configuration ({error.strerror}); see ds_configs/") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no JSON object with zero_optimization.stage; ds_configs/ has examples") from error
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: 'zero_optimization.stage' is {stage!r}; it is 0, 1, 2 or 3")
    return values


def _obstacle(choice: ZeroChoice, dtype: str, on_cpu: bool) -> str:
    if choice.stage == 0 and dtype == "bfloat16":
        return "not in bfloat16"
    if on_cpu and (choice.offload_level == 3 or choice.secondary_ranks > 1):
        return "needs GPUs"
    if choice.changes_numbers:
        return "changes numbers"
    return ""
