"""The planning script.

    argv -> flags of the machine, flags of training -> ModelSizes, Machine -> options -> report

It accepts every flag of the training script, so a training command becomes a plan by changing the script's name and
adding the machine.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, cast

from transformers import PretrainedConfig

import minimind.model.modeling  # noqa: F401 - registers MiniMind with the Auto classes
from minimind.config import (
    FLAG,
    DPOConfig,
    JobConfig,
    Settings,
    model_defaults,
    parse_settings,
)
from minimind.config.command_line import check_misspelt
from minimind.config.jobs import JOBS
from minimind.errors import ConfigError, WeightsError, one_line_errors
from minimind.model.configuration import MiniMindConfig
from minimind.model.family import family_of
from minimind.model.quantized_layers import NF4
from minimind.objective.choice import choose_objective
from minimind.objective.schedule import choose_schedule
from minimind.plan.choice import Machine
from minimind.plan.options import options
from minimind.plan.proposal import propose
from minimind.plan.report import report
from minimind.plan.sizes import ModelSizes
from minimind.weights.adapters import adapter_shapes, fresh_spec
from minimind.weights.construction import empty_model, tensor_shapes
from minimind.weights.inferred_config import NOT_IN_PTH
from minimind.weights.quantized import packed_weights
from minimind.weights.sources import open_weights

_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan. An error of the user is printed in one line, and the exit status is 1."""
    with one_line_errors():
        print(plan(sys.argv[1:] if argv is None else argv))


def plan(argv: Sequence[str]) -> str:
    """The text of the plan for a command line.

    Raises:
        ConfigError: flags are unknown, missing, out of range or contradict each other.
        WeightsError: the start weights cannot be read.
    """
    own, rest = _parser().parse_known_args(list(argv))
    check_misspelt(rest, own=vars(own))
    settings = choose_schedule(parse_settings(rest, JOBS[own.job]))
    for name in ("nodes", "gpus_per_node", "vocab_size"):
        value = getattr(own, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value} is below 1")
    if own.gpu_memory is None:
        missing = "give the memory of one GPU (or of one CPU rank), e.g. --gpu_memory 80GiB"
        if own.params is None:
            raise ConfigError(f"--gpu_memory is missing; {missing}")
        return f"{_proposed(settings, own)[1]}\nFor a plan of its memory {missing}"
    machine = Machine(
        nodes=own.nodes,
        ranks_per_node=own.gpus_per_node,
        device_memory=parse_size("gpu_memory", own.gpu_memory),
        host_memory=0 if own.host_memory is None else parse_size("host_memory", own.host_memory),
    )
    settings, proposed = _proposed(settings, own)
    name, config, shapes = _model(settings, own.vocab_size)
    defaults = model_defaults(family_of(config).generation(config))
    if isinstance(settings.config, DPOConfig):
        settings, _ = choose_objective(cast(Settings[DPOConfig], settings), defaults)
    flags = settings.config.adapters
    if flags.from_adapter:
        raise ConfigError("--from_adapter: a plan needs the adapter's --lora_rank and --lora_targets instead")
    adapters = adapter_shapes(config, fresh_spec(flags, config)) if flags.lora_rank else None
    packed = packed_weights(config) if flags.lora_rank and flags.quantize == NF4 else ()
    sizes = ModelSizes.of(config, shapes, adapters, packed)
    other = _other_reference(settings)
    # The printed command names the weights by their hidden size, so it must be that of the model.
    settings = settings.with_defaults({"hidden_size": sizes.hidden}, "weights")
    found = options(sizes, settings.config, machine, other)
    return proposed + report(name, sizes, settings, machine, found, other)


def _proposed(settings: Settings[JobConfig], own: argparse.Namespace) -> tuple[Settings[JobConfig], str]:
    """Settings with the sizes that --params stands for, and what is said about them; nothing without the flag.

    Raises:
        ConfigError: sizes are given too.
    """
    if own.params is None:
        return settings, ""
    given = [name for name in ("hidden_size", "num_hidden_layers", "num_attention_heads") if settings.explicit(name)]
    if settings.explicit("from_weight") and settings.config.model.from_weight != "none":
        given.append("from_weight")
    if given:
        raise ConfigError(f"--params proposes sizes, and --{given[0]} gives them; omit one of the two")
    model = settings.config.model
    found = propose(own.params, model.generation or 3, model.use_moe, own.vocab_size or 6400)
    base = settings.config.optimisation.learning_rate
    flags = {name: value for name, value in found.flags(base).items() if not settings.explicit(name)}
    generation = {"generation": found.config.generation}
    return settings.with_values({**generation, **flags}, FLAG), f"{found.describe(base)}\n"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python launch/plan.py",
        description="Plan the memory and communication of a training run for each DeepSpeed file.",
        epilog="All flags of the job's script are accepted too: sizes, --from_weight, --batch_size, "
        "--accumulation_steps, --max_seq_len, --micro_batch_tokens, --dtype, --reference, --gradient_checkpointing 1 "
        "(plans with checkpointing only), --deepspeed (plans this file only), ...",
        allow_abbrev=False,
    )
    parser.add_argument("--job", choices=tuple(JOBS), default=DPOConfig.name, help="job that is planned (default: dpo)")
    parser.add_argument(
        "--params", type=float, default=None, help="number of parameters, e.g. 1e9: proposes sizes, tokens and a rate"
    )
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes (default: 1)")
    parser.add_argument("--gpus_per_node", type=int, default=1, help="ranks on each node (default: 1)")
    parser.add_argument("--gpu_memory", default=None, help="memory of one GPU, e.g. 80GiB")
    parser.add_argument(
        "--host_memory", default=None, help="main memory of a node, e.g. 512GiB; without this flag it is not checked"
    )
    parser.add_argument(
        "--vocab_size", type=int, default=None, help="vocabulary size V, if no weights are given (default: 6400)"
    )
    return parser


def parse_size(flag: str, text: str) -> int:
    """Bytes of a size such as 80GiB.

    Raises:
        ConfigError: names the flag; the text is no size with a unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", text)
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"--{flag} {text}: expected a size with a unit, e.g. 80GiB or 80GB")
    return int(float(match[1]) * _UNITS[match[2]])


def _other_reference(settings: Settings) -> ModelSizes | None:
    """Sizes of a reference that is another model; None if the policy's start weights are the reference."""
    given, values = settings.config.model.reference_weight, settings.values
    if given is None:
        return None
    if not Path(given).exists():
        raise WeightsError(f"--reference_weight {given}: no such .pth file or folder")
    source = open_weights(Path(given), {name: values[name] for name in NOT_IN_PTH if values[name]})
    return ModelSizes.of(source.config, source.shapes())


def _model(settings: Settings, vocab_size: int | None) -> tuple[str, PretrainedConfig, dict[str, tuple[int, ...]]]:
    """Name, configuration and tensor shapes of the model: from the weights if given, otherwise from the size flags."""
    given, values = settings.config, settings.values
    sizes = {name: values[name] for name in NOT_IN_PTH if values[name]}
    if settings.explicit("from_weight") and given.model.from_weight != "none":
        path = Path(given.model.from_weight)
        if not path.exists():
            raise WeightsError(
                f"--from_weight {path}: no such .pth file or folder; omit the flag to plan from the size flags"
            )
        if vocab_size is not None:
            raise ConfigError(f"--vocab_size {vocab_size}: {path} has a vocabulary size; omit the flag")
        source = open_weights(path, sizes)
        text = source.config.get_text_config()
        for flag in ("hidden_size", "num_hidden_layers"):
            if settings.explicit(flag) and values[flag] != getattr(text, flag):
                raise ConfigError(f"--{flag} is {values[flag]}, but {path} has {getattr(text, flag)}; omit the flag")
        return source.origin, source.config, dict(source.shapes())
    if vocab_size is not None and given.model.from_weight == "none":
        raise ConfigError(
            f"--vocab_size {vocab_size}: new weights (--from_weight none) have 6400; omit one of the two flags"
        )
    try:
        config = MiniMindConfig(
            generation=given.model.generation or 2,
            hidden_size=given.model.hidden_size,
            num_hidden_layers=given.model.num_hidden_layers,
            use_moe=given.model.use_moe,
            vocab_size=vocab_size or 6400,
            **sizes,
        )
    except ValueError as error:
        raise ConfigError(f"no MiniMind model has these sizes: {error}") from error
    return f"MiniMind generation {config.generation}", config, tensor_shapes(empty_model(config))
