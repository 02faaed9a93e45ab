"""The options of a plan: each shipped DeepSpeed file, with and without checkpointing; and the best that fits.

DeepSpeed files, ModelSizes, flags, Machine -> options -> list of Option -> cheapest -> Option
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
# In the order of the table, by increasing offload.
_FILES = "zero0 zero1 zero2 zero3 zeropp zero2_offload zero3_offload zero3_nvme".split()

# Share of a device's memory that a plan may use. The rest is for the driver, the communication library and
# fragmentation.
USABLE = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One way to run the job.

    Attributes:
        file, reference_file: DeepSpeed files of policy and reference.
        choice: contents of `file`.
        checkpointing: with --gradient_checkpointing 1.
        memory, traffic: of one rank.
        obstacle: why this option is never chosen, whatever its memory; None if there is no such reason.
    """

    file: Path
    reference_file: Path
    choice: ZeroChoice
    checkpointing: bool
    memory: RankMemory
    traffic: StepTraffic
    obstacle: str | None

    def fits(self, machine: Machine) -> bool:
        """Whether the memory of the device suffices, and main memory where its size is known."""
        in_host = not machine.host_memory or self.memory.host * machine.ranks_per_node <= USABLE * machine.host_memory
        return self.obstacle is None and self.memory.peak <= USABLE * machine.device_memory and in_host

    @property
    def cost(self) -> tuple[int, bool, int, bool, int, int]:
        """Sort key, lowest first: offload, then recomputation, then traffic, then memory."""
        # With equal traffic, stage 3 waits more often, because it gathers layer by layer. With equal memory, stage 2 is
        # better than stage 1, because its memory does not grow with more micro-batches.
        stage = self.choice.stage
        return (
            self.choice.offload_level,
            self.checkpointing,
            self.traffic.total,
            stage == 3,
            self.memory.peak,
            -stage,
        )


def options(sizes: ModelSizes, config: JobConfig, machine: Machine, other: ModelSizes | None = None) -> list[Option]:
    """All options that the flags allow.

    These are every shipped file, or that of --deepspeed alone; each without and with checkpointing, or with it alone
    under --gradient_checkpointing 1.

    Args:
        other: sizes of a reference that is another model; None: it is the policy's.

    Raises:
        ConfigError: a DeepSpeed file cannot be read.
    """
    files = [DS_CONFIGS / f"{name}.json" for name in _FILES]
    if config.engine.deepspeed is not None:
        files = [Path(config.engine.deepspeed)]
    found = []
    for file in files:
        choice = ZeroChoice.of(read_zero(file))
        # If the policy's parameters do not fit on the device, neither do the reference's.
        name = "reference_offload" if choice.parameters_on != "device" else "reference"
        reference_file = Path(config.engine.reference_config or DS_CONFIGS / f"{name}.json")
        reference = ZeroChoice.of(read_zero(reference_file))
        for checkpointing in sorted({config.engine.gradient_checkpointing, True}):
            load = dataclasses.replace(StepLoad.of(config), checkpointing=checkpointing)
            found.append(
                Option(
                    file=file,
                    reference_file=reference_file,
                    choice=choice,
                    checkpointing=checkpointing,
                    memory=rank_memory(sizes, choice, reference, load, machine, other),
                    traffic=step_traffic(sizes, choice, reference, load, machine, other),
                    obstacle=_obstacle(choice, config.optimisation.dtype, machine.on_cpu),
                )
            )
    return found


def cheapest(found: Sequence[Option], machine: Machine) -> Option | None:
    """The option of lowest cost that fits; None if none fits."""
    return min((option for option in found if option.fits(machine)), key=lambda option: option.cost, default=None)


def read_zero(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed file and check what a plan needs; training checks the rest.

    Raises:
        ConfigError: the file is missing or no JSON object, or the stage is unknown.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        stage = values["zero_optimization"]["stage"]
    except OSError as error:
        raise ConfigError(f"{path}: no such DeepSpeed configuration ({error.strerror}); see ds_configs/") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a JSON object with zero_optimization.stage; see ds_configs/ for examples"
        ) from error
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: 'zero_optimization.stage' is {stage!r}; use 0, 1, 2 or 3")
    return values


def _obstacle(choice: ZeroChoice, dtype: str, on_cpu: bool) -> str | None:
    """The reason never to choose an option, short enough for a cell of the table."""
    # engine/ds_config.py rejects 16 bits at stage 0, and NVMe without a GPU.
    if choice.stage == 0 and dtype != "float32":
        return f"not in {dtype}"
    if on_cpu and (choice.offload_level == 3 or choice.secondary_ranks > 1):
        return "needs GPUs"
    if choice.changes_numbers:
        return "changes numbers"
    return None
