"""Messages before the first step: the model, every setting with its origin, the data, and rows that are left out."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from minimind.config import JobConfig
from minimind.data.narrowing import shared_prompts
from minimind.data.pair_tables import PairTables
from minimind.data.sampler import PairSampler
from minimind.data.streaming.rows import StreamSampler
from minimind.data.table import PairTable
from minimind.data.tokens import OTHER_MASK
from minimind.engine.ds_schema import value_at
from minimind.engine.ds_zero import swaps_to_nvme
from minimind.errors import WeightsError
from minimind.model.dropout import dropout_fields
from minimind.model.family import family_of
from minimind.model.router_loss import router_coefficient
from minimind.native import AUTO, processor
from minimind.native.processor import Products
from minimind.objective.interface import AnyObjective
from minimind.objective.losses import Need, Objective
from minimind.objective.losses.labelled import KTOLoss
from minimind.objective.schedule import make_schedule
from minimind.plan.check import memory_warning, this_machine
from minimind.plan.sizes import ModelSizes
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.row_report import row_messages
from minimind.training.setup.adapters import NO_QUANTIZATION
from minimind.training.setup.prepare import Prepared, policy_sizes
from minimind.training.setup.training_data import TrainingData
from minimind.weights.adapters import AdapterSource


def report_settings(prepared: Prepared, console: Console, world: World) -> None:
    """Print model, engines and every setting with its origin, and a warning if memory may not suffice."""
    config, model = prepared.settings.config, prepared.source.config
    if prepared.is_demo:
        console.say(
            "This is the demo: bundled pairs, tokenizer and small start weights. With your own:\n"
            "    --data_path pairs.jsonl --from_weight full_sft_512.pth --tokenizer_path folder\n"
        )
    console.say(
        f"{family_of(model).label(model)}, weights from {prepared.source.origin}; "
        f"ZeRO-{prepared.policy_config.stage} policy, "
        f"{_reference(prepared)}, "
        f"{world.size} rank{'s' if world.size > 1 else ''} on {world.device.type}, {config.optimisation.dtype}"
    )
    if swaps_to_nvme(prepared.policy_config.values):
        console.say(
            "  NO CHECKPOINTS: DeepSpeed does not restore all NVMe state, so only the weights are written, and an "
            "interrupted run must start anew"
        )
    if config.engine.use_compile and world.on_cpu and config.optimisation.dtype == "bfloat16":
        console.say("  --use_compile 1 has no benefit in bfloat16 on a CPU: compiled blocks do not use the CPU kernels")
    _report_products(console, world, prepared)
    if dropout := dropout_fields(model):
        listed = ", ".join(f"{name} {value:g}" for name, value in sorted(dropout.items()))
        kept = "is kept" if config.model.dropout else "is turned off (--dropout 1 keeps it)"
        console.say(f"  dropout of the model {kept}: {listed}")
    if coefficient := router_coefficient(model, config.model.router_aux_loss_coef):
        console.say(f"  auxiliary loss of the experts: coefficient {coefficient:g} (--router_aux_loss_coef)")
    if prepared.adapters is not None:
        console.say(f"  adapters: {_adapters(prepared.adapters)}")
    if config.adapters.quantize != NO_QUANTIZATION:
        console.say(f"  weights under the adapters: {_quantized(prepared)}")
    console.say(f"  loss: {prepared.objective.describe()}")
    _report_values(prepared, console)
    if world.is_main:
        _report_memory(prepared, console, world)


def _adapters(adapters: AdapterSource) -> str:
    spec = adapters.spec
    kind = "DoRA" if spec.dora else "LoRA"
    stacks = f" and {len(spec.stacks)} stacks of experts" if spec.stacks else ""
    scaling = f"scaling {spec.scaling:g}"
    return f"{kind} of rank {spec.rank}, {scaling}, in {len(spec.layers)} layers{stacks}; {adapters.origin}"


def _quantized(prepared: Prepared) -> str:
    sizes = policy_sizes(prepared)
    packed, all_weights = sum(sizes.packed), sizes.parameters - sum(sizes.adapters)
    return f"{packed:,} of {all_weights:,} elements in 4 bits (--quantize {prepared.settings.config.adapters.quantize})"


def _reference(prepared: Prepared) -> str:
    live = "ZeRO-3 reference" if prepared.adapters is None else "its weights without adapters as reference"
    if prepared.settings.config.adapters.lora_reference == "start":
        live = "its start adapter as reference"
    kinds = {"live": live, "cached": "cached reference"}
    none = f"no reference, because {prepared.objective.name} needs none"
    return kinds.get(prepared.settings.config.engine.reference, none)


def _report_products(console: Console, world: World, prepared: Prepared) -> None:
    """Print how a CPU multiplies bfloat16 matrices, and a warning if that is slow."""
    config, model = prepared.settings.config, prepared.source.config
    if not world.on_cpu or config.optimisation.dtype != "bfloat16":
        return
    # Experts of other models are stacked matrices, which torch multiplies.
    stacked = any(len(shape) > 2 for shape in prepared.source.shapes().values())
    if config.engine.kernels == AUTO and (family_of(model).has_own_linear_layers or not stacked):
        console.say(f"  bfloat16 matrices are multiplied by {processor.describe()}")
    elif processor.fastest_products() is Products.FLOAT32:
        console.say(
            "  WARNING: torch multiplies bfloat16 matrices slowly on this CPU, which has no instructions for them; "
            "--dtype float32 is several times as fast"
        )


def _report_values(prepared: Prepared, console: Console) -> None:
    """One line for each setting that is not a default or not the DeepSpeed file's, and one line with all defaults."""
    settings, policy = prepared.settings, prepared.policy_config
    width = max(len(name) for name in settings.origins)
    defaults = []
    for name, value in settings.values.items():
        if settings.origins[name] == "default":
            defaults.append(f"{name} {_shown(value)}")
        else:
            console.say(f"  {name:<{width}}  {_shown(value)}  ({settings.origins[name]})")
    for key, reason in policy.overridden.items():
        console.say(f"  {key:<{width}}  {_shown(value_at(policy.values, key))}  ({reason})")
    console.say(f"  by default: {', '.join(defaults)}")


def _report_memory(prepared: Prepared, console: Console, world: World) -> None:
    """Warn if the plan's memory exceeds the free memory. A model that cannot be planned is trained all the same."""
    other = None
    try:
        sizes = policy_sizes(prepared)
        if prepared.other_reference is not None:
            other = ModelSizes.of(prepared.other_reference.config, prepared.other_reference.shapes())
    except WeightsError as error:
        console.say(f"  whether memory is enough is not checked: {error}")
        return
    # Ranks of one machine share its memory.
    machine = this_machine(world.device, world.size, world.hosts.count(world.hosts[world.rank]))
    configs = (prepared.policy_config.values, prepared.reference_config.values)
    if warning := memory_warning(sizes, prepared.settings.config, machine, *configs, other):
        console.say(f"  WARNING: {warning}")


def report_data(console: Console, data: TrainingData, config: JobConfig, objective: AnyObjective) -> None:
    """Print the number of pairs and steps, and every row and pair that is not trained on."""
    if isinstance(data.stream, StreamSampler):
        lines, tables = _streamed(data, data.stream), [*_of_each_source(data.table), *data.tables[1:]]
    else:
        lines, tables = _tables(data, data.stream, config, objective), data.tables
    for line in lines:
        console.say(line)
    for table in itertools.chain.from_iterable(one.tables for one in tables):
        for message in row_messages(table, config.data):
            console.say(f"  {table.source.name}: {message}")
        if number := table.counts.get(OTHER_MASK):
            console.say(
                f"  {table.source.name}: in {number} of {table.total_rows} rows MiniMind's rule would lose a turn or "
                "count a user's words, and the turns count here instead (--mask minimind: the rule)"
            )
    schedule = make_schedule(config.optimisation, data.total_steps)
    if schedule.name != "minimind" or schedule.warmup_steps:
        console.say(f"  learning rate: {schedule.describe()}")
    # With --max_steps the end of the stream is not reached, so nothing is left over.
    if isinstance(data.stream, PairSampler) and data.stream.left_over and data.total_steps == data.stream.total_steps:
        left = f"{data.stream.left_over} {data.table.items}"
        console.say(f"  the last {left} do not fill a global batch and are not trained on")


def _tables(data: TrainingData, stream: PairSampler, config: JobConfig, objective: AnyObjective) -> Iterator[str]:
    """Pairs and steps of data that are tokenised as a whole."""
    items, total_steps, max_steps = data.table.items, data.total_steps, config.optimisation.max_steps
    epochs = f"{stream.epochs} epoch{'s' if stream.epochs > 1 else ''}"
    each_epoch = _number(stream.mix.pairs_per_epoch)
    yield f"{each_epoch} {items} x {epochs} = {stream.total_steps} steps of {stream.global_batch_size} {items}"
    for line in (*_shares(data.table), *_narrowed(data, config.data.limit), *_labels(data.table, objective)):
        yield f"  {line}"
    if total_steps < stream.total_steps:
        yield f"  ends after {total_steps} of them (--max_steps)"
    if max_steps is not None and max_steps > stream.total_steps:
        yield f"  --max_steps {max_steps} will not be reached: the {items} make {stream.total_steps} steps"


def _streamed(data: TrainingData, stream: StreamSampler) -> Iterator[str]:
    """Steps of streamed data, and their first window."""
    items, size = data.table.items, stream.global_batch_size
    yield f"{data.total_steps} steps of {size} {items}, streamed"
    lines = (*_shares(data.table), *_narrowed(data, None))
    yield (
        f"  window to begin with: {len(data.table):,} {items} of {int(data.table.packed_tokens.sum()):,} tokens in "
        f"{len(data.table.tables)} shards{'; of its rows:' if lines else ''}"
    )
    for line in lines:
        yield f"  {line}"


def _of_each_source(tables: PairTables) -> Iterator[PairTables]:
    """The first shard of each source: the others would repeat its messages."""
    first = {table.source: table for table in reversed(tables.tables)}
    yield PairTables(tables=tuple(first.values()))


def _narrowed(data: TrainingData, limit: int | None) -> Iterator[str]:
    """Pairs that are left out although they are right, and training pairs with prompts of held-out pairs."""
    items = data.table.items
    for tables, kind in zip(data.tables, (items, f"held-out {items}"), strict=False):
        if tables.duplicates:
            yield f"{tables.duplicates} {kind} that repeat others are left out (--dedup 1)"
    if data.table.beyond_limit:
        total = len(data.table) + data.table.beyond_limit
        yield f"only the first {len(data.table)} of {total} {items} are taken (--limit {limit})"
    if data.eval_table is not None:
        shared = shared_prompts(data.table, data.eval_table)
        what = "are held out too" if items == "texts" else f"have a prompt that held-out {items} have too"
        yield f"{shared} of {len(data.table)} {items} {what}"


def _labels(tables: PairTables, objective: AnyObjective) -> Iterator[str]:
    """How many answers are desirable, and weights that would balance them."""
    if not isinstance(objective, Objective) or Need.LABELS not in objective.needs:
        return
    labels = np.concatenate([table.labels[table.selected] for table in tables.tables])
    good, bad = int((labels == 1).sum()), int((labels == 0).sum())
    yield f"{good} of {len(labels)} answers are desirable"
    loss = next((part.loss for part in objective.parts if isinstance(part.loss, KTOLoss)), None)
    if loss is None or not (good and bad):
        return
    # Section 4.2 of the paper: between 1 and 4/3.
    ratio = loss.desirable_weight * good / max(loss.undesirable_weight * bad, 1e-9)
    if not 0.99 <= ratio <= 1.34:
        low, high = (loss.undesirable_weight * bad / good * bound for bound in (1, 4 / 3))
        yield (
            f"desirable answers count {ratio:.2f} times as much as undesirable ones, where KTO's authors advise 1 to "
            f"1.33 times: a desirable_weight from {low:.2f} to {high:.2f} (--loss_options)"
        )


def _shares(tables: PairTables) -> Iterator[str]:
    """The share of each word of --data_path in an epoch; nothing if there is one word without a weight."""
    words: dict[str, list[PairTable]] = {}
    for table in tables.tables:
        words.setdefault(table.source.word, []).append(table)
    if len(words) == 1 and all(table.source.weight == 1 for table in tables.tables):
        return
    sizes = {word: sum((len(one) * one.source.weight for one in of), Fraction()) for word, of in words.items()}
    tokens = {
        word: sum((int(one.packed_tokens.sum()) * one.source.weight for one in of), Fraction())
        for word, of in words.items()
    }
    for word, of in words.items():
        files = f" ({len(of)} files)" if len(of) > 1 else ""
        shares = [
            f"{_number(taken[word])} {what} ({float(100 * taken[word] / sum(taken.values())):.1f} %)"
            for what, taken in ((tables.items, sizes), ("tokens", tokens))
        ]
        yield f"{word}{files}: {' and '.join(shares)} of an epoch"


def _number(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.1f}"


def _shown(value: object) -> str:
    if value is None or value in ("", ()):
        return "-"
    if isinstance(value, tuple):
        return " ".join(map(shlex.quote, value))
    return str(int(value)) if isinstance(value, bool) else str(value)
