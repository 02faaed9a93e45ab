"""A plan as a newcomer reads it: the model, the table, what its columns mean, and the command to type.

list of Option -> text
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from minimind.config import Settings
from minimind.plan.choice import Machine, StepLoad
from minimind.plan.options import USABLE, Option, cheapest
from minimind.plan.sizes import ModelSizes

_COLUMNS = (
    "file offload weights gradients optimizer reference gathered buckets most checkpointed host/node sent/step fits"
).split()
_LEGEND = """\
GiB a rank. weights, gradients, optimizer: the policy's (float32 masters and two moments are the optimizer's).
reference: the frozen shard. gathered: parameters that ZeRO-3 holds whole at a time. buckets: gradients on their way.
most: the highest moment of a step, activations and head included; checkpointed: with --gradient_checkpointing 1.
host/node: main memory of a node. sent/step: what a rank sends in a global step."""
# Flags that the start weights answer.
_READ_OFF = ("hidden_size", "num_hidden_layers", "use_moe", "generation")


def report(name: str, sizes: ModelSizes, settings: Settings, machine: Machine, found: Sequence[Option]) -> str:
    """The whole answer; `name` is what the model is called."""
    best = cheapest(found, machine)
    if best is None:
        ending = _nothing_fits(found, machine)
    else:
        why = "checkpointed, " if best.checkpointing else ""
        least = f"{why}{gib(best.memory.peak)} GiB a rank, {gib(best.traffic.total)} GiB sent a step"
        ending = f"The cheapest that fits ({least}):\n\n{command(best, settings, machine)}"
    return "\n\n".join([_heading(name, sizes, settings, machine, found), _table(found, machine), _LEGEND, ending])


def gib(size: float) -> str:
    """Bytes as GiB, with as many places as tell something."""
    value = size / 2**30
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def command(option: Option, settings: Settings, machine: Machine) -> str:
    """What to type for an option."""
    given = settings.config
    flags = {
        name: _written(value)
        for name, value in settings.values.items()
        if settings.explicit(name)
        and value is not None
        and (name not in _READ_OFF or given.model.from_weight == "none")
    }
    moe = "_moe" if given.model.use_moe else ""
    flags.setdefault("from_weight", f"full_sft_{given.model.hidden_size}{moe}.pth")
    flags.setdefault("data_path", "pairs.jsonl")
    flags["deepspeed"] = _short(option.file)
    flags["gradient_checkpointing"] = str(int(option.checkpointing))
    if option.reference_file.name != "reference.json" and given.engine.reference == "live":
        flags["reference_config"] = _short(option.reference_file)
    where = "--hostfile launch/hostfile" if machine.nodes > 1 else f"--num_gpus {machine.ranks_per_node}"
    parts = [f"--{flag} {shlex.quote(value)}" for flag, value in flags.items()]
    return " \\\n        ".join([f"    deepspeed {where} launch/train_dpo.py", *parts])


def _heading(name: str, sizes: ModelSizes, settings: Settings, machine: Machine, found: Sequence[Option]) -> str:
    config, load = settings.config, StepLoad.of(settings.config)
    kept = {option.checkpointing: option.memory.activations for option in found}
    plain = f"{gib(kept[False])}, checkpointed " if False in kept else "checkpointed "
    batches = f"{load.micro_batches} micro-batch{'es' if load.micro_batches > 1 else ''}"
    return (
        f"{name}: {sizes.parameters / 1e9:.3g} B parameters, hidden {sizes.hidden}, {sizes.layers} layers, vocabulary "
        f"{sizes.vocab}\n"
        f"{machine.ranks} rank{'s' if machine.ranks > 1 else ''} ({machine.nodes} x {machine.ranks_per_node}) with "
        f"{gib(machine.device_memory)} GiB, of which {USABLE:.0%} are planned with; {config.optimisation.dtype}\n"
        f"A rank's global step: {batches} of at most {load.tokens} tokens. Activations {plain}{gib(kept[True])}, head "
        f"{gib(found[0].memory.head)} GiB"
    )


def _table(found: Sequence[Option], machine: Machine) -> str:
    """One line a file; its options with and without checkpointing side by side."""
    rows = [list(_COLUMNS)]
    for file in dict.fromkeys(option.file for option in found):
        same = [option for option in found if option.file == file]
        memory, most = same[0].memory, {option.checkpointing: option for option in same}
        rows.append(
            [
                file.name,
                same[0].choice.offload,
                *(gib(getattr(memory, name)) for name in ("parameters", "gradients", "optimizer", "reference")),
                gib(max(memory.gathered, memory.scoring_gathered)),
                gib(memory.buckets),
                *(gib(most[key].memory.peak) if key in most else "-" for key in (False, True)),
                gib(memory.host * machine.ranks_per_node),
                gib(same[0].traffic.total),
                _fits(same, machine),
            ]
        )
    widths = [max(len(row[index]) for row in rows) for index in range(len(_COLUMNS))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index in (0, 1, len(row) - 1) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _fits(same: Sequence[Option], machine: Machine) -> str:
    fitting = [option for option in same if option.fits(machine)]
    if same[0].obstacle:
        return same[0].obstacle
    if not fitting:
        return "no"
    return "yes" if not fitting[0].checkpointing or len(same) == 1 else "checkpointed"


def _nothing_fits(found: Sequence[Option], machine: Machine) -> str:
    open_ones = [option for option in found if not option.obstacle]
    if not open_ones:
        return f"Nothing here can be taken: {found[0].file.name} is {found[0].obstacle!r}."
    least = min(open_ones, key=lambda option: option.memory.peak)
    host = f" and {gib(least.memory.host * machine.ranks_per_node)} GiB of each node's main memory"
    return (
        f"Nothing fits. The least is {least.file.name}, checkpointed: {gib(least.memory.peak)} GiB of "
        f"{gib(USABLE * machine.device_memory)} GiB a rank{host if least.memory.host else ''}.\n"
        "Fewer tokens a micro-batch (--micro_batch_tokens, --max_seq_len, --batch_size), --reference cached, or more "
        "ranks (--nodes, --gpus_per_node) need less."
    )


def _short(path: Path) -> str:
    """Relative to the working folder where the file lies in it, as a user would type it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(path)


def _written(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
