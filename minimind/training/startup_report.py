"""What a run says before its first step: what it is, where each setting came from, and which rows it left out."""

from __future__ import annotations

from minimind.data.sampler import PairSampler
from minimind.data.table import PairTable
from minimind.engine.ds_zero import swaps_to_nvme
from minimind.errors import WeightsError
from minimind.model.family import family_of
from minimind.plan.check import shortage, this_machine
from minimind.plan.sizes import ModelSizes
from minimind.ranks.process import World
from minimind.training.console import Console
from minimind.training.setup.prepare import Prepared


def announce_run(prepared: Prepared, console: Console, world: World) -> None:
    """Model, engines and every setting with its origin."""
    settings, model = prepared.settings, prepared.source.config
    if prepared.is_demo:
        console.say(
            "This is the demo: bundled pairs, tokenizer and small start weights. With your own:\n"
            "    --data_path pairs.jsonl --from_weight full_sft_512.pth --tokenizer_path folder\n"
        )
    console.say(
        f"{family_of(model).label(model)}, weights from {prepared.source.origin}; "
        f"ZeRO-{prepared.policy_config.stage} policy, "
        f"{'ZeRO-3' if settings.config.engine.reference == 'live' else 'cached'} reference, "
        f"{world.size} rank{'s' if world.size > 1 else ''} on {world.device.type}, {settings.config.optimisation.dtype}"
    )
    if swaps_to_nvme(prepared.policy_config.values):
        console.say(
            "  NO CHECKPOINTS: DeepSpeed does not bring back all that was swapped to NVMe, so only the weights are "
            "written, and a run that ends early starts anew"
        )
    dtype = settings.config.optimisation.dtype
    if settings.config.engine.use_compile and world.device.type == "cpu" and dtype == "bfloat16":
        console.say(
            "  --use_compile 1 gains nothing in bfloat16 on a CPU: compiled blocks do without the kernels for it"
        )
    width = max(len(name) for name in settings.origins)
    for name, value in settings.values.items():
        origin = settings.origins[name]
        if origin != "default":
            console.say(f"  {name:<{width}}  {_shown(value)}  ({origin})")
    defaults = [f"{k} {_shown(v)}" for k, v in settings.values.items() if settings.origins[k] == "default"]
    console.say(f"  by default: {', '.join(defaults)}")
    if world.is_main:
        _announce_memory(prepared, console, world)


def _announce_memory(prepared: Prepared, console: Console, world: World) -> None:
    """What the plan says of the run's memory; a model that it does not know is trained all the same."""
    shapes = prepared.source.shapes()
    try:
        sizes = ModelSizes.of(prepared.source.config, shapes)
    except WeightsError as error:
        console.say(f"  whether memory is enough is not checked: {error}")
        return
    machine = this_machine(world.device, world.size, world.hosts.count(world.hosts[world.rank]))
    configs = (prepared.policy_config.values, prepared.reference_config.values)
    if told := shortage(sizes, prepared.settings.config, machine, *configs):
        console.say(f"  WARNING: {told}")


def _shown(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else "-" if value is None else str(value)


def announce_data(
    console: Console,
    table: PairTable,
    eval_table: PairTable | None,
    stream: PairSampler,
    total_steps: int,
    max_steps: int | None,
) -> None:
    """How many pairs and steps, and every row and pair that is not trained on."""
    epochs = f"{stream.epochs} epoch{'s' if stream.epochs > 1 else ''}"
    console.say(f"{len(table)} pairs x {epochs} = {stream.total_steps} steps of {stream.global_batch_size} pairs")
    if total_steps < stream.total_steps:
        console.say(f"  ends after {total_steps} of them (--max_steps)")
    if max_steps is not None and max_steps > stream.total_steps:
        console.say(f"  --max_steps {max_steps} are not reached: the pairs make {stream.total_steps} steps")
    for one in (table, eval_table):
        if one is not None and one.bad:
            lines = ", ".join(str(row.line) for row in one.bad[:8]) + (", ..." if len(one.bad) > 8 else "")
            used = one.total_rows - len(one)
            console.say(f"  {one.path}: {len(one.bad)} bad rows (lines {lines}), {used} left out of {one.total_rows}")
    if stream.left_over and total_steps == stream.total_steps:
        console.say(
            f"  the last {stream.left_over} pairs of the stream do not fill a global batch and are not trained on"
        )
