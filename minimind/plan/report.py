"""The text of a plan: the model, the table, its legend, and the command to run.

list of Option -> text
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from minimind.config import DPOConfig, Settings
from minimind.plan.choice import Machine, StepLoad
from minimind.plan.options import USABLE, Option, cheapest
from minimind.plan.sizes import ModelSizes

_COLUMNS = (
    "file offload weights gradients optimizer reference gathered buckets peak checkpointed host/node sent/step fits"
).split()
_LEGEND = """\
Values are GiB per rank. weights, gradients, optimizer: of the policy (optimizer: float32 master weights, two moments).
reference: its shard. gathered: parameters that ZeRO-3 has gathered at a time. buckets: gradients in communication.
peak: the largest sum in a step, with activations and output head. checkpointed: peak with --gradient_checkpointing 1.
host/node: main memory of a node. sent/step: sent by a rank in a global step."""
# Flags whose values training reads from the start weights.
_READ_FROM_WEIGHTS = ("hidden_size", "num_hidden_layers", "use_moe", "generation")


def report(
    name: str,
    sizes: ModelSizes,
    settings: Settings,
    machine: Machine,
    found: Sequence[Option],
    other: ModelSizes | None = None,
) -> str:
    """The text of a plan.

    Args:
        name: of the model, for the heading.
        found: all options.
        other: sizes of a reference that is another model; None: it is the policy's.
    """
    best = cheapest(found, machine)
    if best is None:
        ending = _nothing_fits(found, machine, settings)
    else:
        mode = "checkpointed, " if best.checkpointing else ""
        costs = f"{mode}{gib(best.memory.peak)} GiB per rank, {gib(best.traffic.total)} GiB sent per step"
        ending = f"The cheapest option that fits ({costs}):\n\n{command(best, settings, machine)}"
    heading = _heading(name, sizes, settings, machine, found, other)
    return "\n\n".join([heading, _table(found, machine), _LEGEND, ending])


def gib(size: float) -> str:
    """Bytes in GiB, with three significant digits or one decimal place."""
    value = size / 2**30
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def command(option: Option, settings: Settings, machine: Machine) -> str:
    """The shell command that runs an option, with the flags that the user gave to the plan."""
    given = settings.config
    flags = {
        name: value
        for name, value in explicit_flags(settings).items()
        if name not in _READ_FROM_WEIGHTS or given.model.from_weight == "none"
    }
    moe = "_moe" if given.model.use_moe else ""
    start = given.model.from_weight
    flags.setdefault("from_weight", start if start == "none" else f"{start}_{given.model.hidden_size}{moe}.pth")
    flags.setdefault("data_path", f"{given.items}.jsonl")
    flags["deepspeed"] = shlex.quote(_short(option.file))
    flags["gradient_checkpointing"] = str(int(option.checkpointing))
    if option.reference_file.name != "reference.json" and given.engine.reference == "live":
        flags["reference_config"] = shlex.quote(_short(option.reference_file))
    return launch_command(flags, machine.nodes, machine.ranks_per_node, given.script)


def explicit_flags(settings: Settings) -> dict[str, str]:
    """The flags that the user gave, by name, with their values as a shell takes them."""
    given = {name: value for name, value in settings.values.items() if settings.explicit(name)}
    return {name: _flag_value(value) for name, value in given.items() if value not in (None, ())}


def launch_command(flags: Mapping[str, str], nodes: int, ranks_per_node: int, script: str = DPOConfig.script) -> str:
    """The shell command that trains, with these flags; their values are quoted already."""
    where = "--hostfile launch/hostfile" if nodes > 1 else f"--num_gpus {ranks_per_node}"
    parts = [f"--{flag} {value}" for flag, value in flags.items()]
    return " \\\n        ".join([f"    deepspeed {where} {script}", *parts])


def _heading(
    name: str,
    sizes: ModelSizes,
    settings: Settings,
    machine: Machine,
    found: Sequence[Option],
    other: ModelSizes | None,
) -> str:
    config, load = settings.config, StepLoad.of(settings.config)
    kept = {option.checkpointing: option.memory.activations for option in found}
    plain = f"{gib(kept[False])}, checkpointed " if False in kept else "checkpointed "
    loss = settings.values.get("loss")
    reference = f"\nNo reference: --loss {loss} needs none" if loss and config.engine.reference == "none" else ""
    if other is not None:
        reference = f"\nReference: {config.model.reference_weight}, {other.parameters / 1e9:.3g} B parameters"
    samples = f", samples {gib(found[0].memory.sampling)} GiB" if load.sample_rows else ""
    prompts = config.samples.sample_prompts or ""
    if samples and config.samples.number is None and not Path(prompts).is_file():
        samples += f" ({prompts} is not here: with prompts of --max_seq_len tokens)"
    batches = f"{load.micro_batches} micro-batch{'es' if load.micro_batches > 1 else ''}"
    return (
        f"{name}: {sizes.parameters / 1e9:.3g} B parameters, hidden {sizes.hidden}, {sizes.layers} layers, vocabulary "
        f"{sizes.vocab}\n"
        f"{machine.ranks} rank{'s' if machine.ranks > 1 else ''} ({machine.nodes} x {machine.ranks_per_node}) with "
        f"{gib(machine.device_memory)} GiB each, of which the plan uses {USABLE:.0%}; {config.optimisation.dtype}\n"
        f"Global step of a rank: {batches} of at most {load.tokens} tokens. Activations {plain}{gib(kept[True])}, head "
        f"{gib(found[0].memory.head)} GiB{samples}{reference}"
    )


def _table(found: Sequence[Option], machine: Machine) -> str:
    """One line per file, with the peaks without and with checkpointing."""
    rows = [list(_COLUMNS)]
    for file in dict.fromkeys(option.file for option in found):
        same = [option for option in found if option.file == file]
        memory, by_checkpointing = same[0].memory, {option.checkpointing: option for option in same}
        rows.append(
            [
                file.name,
                same[0].choice.offload,
                *(gib(getattr(memory, name)) for name in ("parameters", "gradients", "optimizer", "reference")),
                gib(max(memory.gathered, memory.scoring_gathered)),
                gib(memory.buckets),
                *(gib(by_checkpointing[key].memory.peak) if key in by_checkpointing else "-" for key in (False, True)),
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
    """Last cell of a file's line: yes, no, with checkpointing only, or the obstacle."""
    fitting = [option for option in same if option.fits(machine)]
    if same[0].obstacle is not None:
        return same[0].obstacle
    if not fitting:
        return "no"
    return "yes" if not fitting[0].checkpointing or len(same) == 1 else "checkpointed"


def _nothing_fits(found: Sequence[Option], machine: Machine, settings: Settings) -> str:
    """The end of a plan without a fitting option: the closest one, and ways to need less memory."""
    possible = [option for option in found if option.obstacle is None]
    if not possible:
        return f"No option is possible: {found[0].file.name}: {found[0].obstacle}."
    least = min(possible, key=lambda option: option.memory.peak)
    cached = "--reference cached, " if settings.config.engine.reference == "live" else ""
    host = f" and {gib(least.memory.host * machine.ranks_per_node)} GiB of each node's main memory"
    return (
        f"No option fits. The smallest is {least.file.name}, checkpointed: {gib(least.memory.peak)} GiB per rank, of "
        f"{gib(USABLE * machine.device_memory)} GiB{host if least.memory.host else ''}.\n"
        "To need less memory, use fewer tokens per micro-batch (--micro_batch_tokens, --max_seq_len, --batch_size), "
        f"{cached}or more ranks (--nodes, --gpus_per_node)."
    )


def _short(path: Path) -> str:
    """The path, relative to the working folder if the file is inside it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(path)


def _flag_value(value: object) -> str:
    """A value as a shell takes it."""
    if isinstance(value, tuple):
        return " ".join(map(shlex.quote, value))
    return str(int(value)) if isinstance(value, bool) else shlex.quote(str(value))
