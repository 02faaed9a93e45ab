"""The planning script from its command line to its answer.

argv -> machine flags, training flags -> sizes -> options -> report

It takes every flag of the training script, so that a command can be planned by changing its script, and the machine.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from transformers import PretrainedConfig

import minimind.model.modeling  # noqa: F401 - registers MiniMind with the Auto classes
from minimind.config import DPOConfig, Settings, fields_of, parse_settings
from minimind.errors import ConfigError, MiniMindError, WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.plan.choice import Machine
from minimind.plan.options import options
from minimind.plan.report import report
from minimind.plan.sizes import ModelSizes
from minimind.weights.construction import empty_model, tensor_shapes
from minimind.weights.sources import open_weights

_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
# What a MiniMind .pth cannot tell, and flags can.
_UNTOLD = ("num_attention_heads", "num_experts_per_tok", "rope_theta", "inference_rope_scaling")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan; a user's error is printed once, and the status is then 1."""
    try:
        print(plan(sys.argv[1:] if argv is None else argv))
    except MiniMindError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def plan(argv: Sequence[str]) -> str:
    """The plan for a command line.

    Raises:
        ConfigError: flags that are unknown, missing, out of range or contradict each other.
        WeightsError: start weights that cannot be read.
    """
    own, rest = _parser().parse_known_args(list(argv))
    _refuse_misspelt(rest)
    settings = parse_settings(rest)
    if not own.gpu_memory:
        raise ConfigError("--gpu_memory is missing: the memory of a GPU (or of a CPU rank), e.g. --gpu_memory 80GiB")
    for name in ("nodes", "gpus_per_node"):
        if getattr(own, name) < 1:
            raise ConfigError(f"--{name} {getattr(own, name)} is below 1")
    machine = Machine(
        nodes=own.nodes,
        ranks_per_node=own.gpus_per_node,
        device_memory=_bytes("gpu_memory", own.gpu_memory),
        host_memory=_bytes("host_memory", own.host_memory) if own.host_memory else 0,
    )
    name, config, shapes = _model(settings, own.vocab_size)
    sizes = ModelSizes.of(config, shapes)
    # Flags as they are, but sizes as the model has them, for the names in the answer.
    settings = settings.with_defaults({"hidden_size": sizes.hidden}, "weights")
    return report(name, sizes, settings, machine, options(sizes, settings.config, machine))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python launch/plan.py",
        description="Memory and communication of a training run, per DeepSpeed file, and the cheapest that fits.",
        epilog="All flags of launch/train_dpo.py are taken as well: sizes, --from_weight, --batch_size, "
        "--accumulation_steps, --max_seq_len, --micro_batch_tokens, --dtype, --reference, --gradient_checkpointing 1 "
        "(then always), --deepspeed (then only this file), ...",
        allow_abbrev=False,
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    parser.add_argument("--gpus_per_node", type=int, default=1, help="ranks on each (default: 1)")
    parser.add_argument("--gpu_memory", default="", help="of one GPU, e.g. 80GiB")
    parser.add_argument("--host_memory", default="", help="main memory of a node, e.g. 512GiB; not checked without it")
    parser.add_argument("--vocab_size", type=int, default=0, help="V, without weights (default: 6400)")
    return parser


def _refuse_misspelt(arguments: Sequence[str]) -> None:
    """Unknown flags near one of this script's own; those of training are `parse_settings`' to judge."""
    own = ["nodes", "gpus_per_node", "gpu_memory", "host_memory", "vocab_size"]
    names = own + [flag.name for flag in fields_of(DPOConfig)]
    for argument in arguments:
        name = argument.split("=")[0].removeprefix("--")
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) if argument.startswith("--") else []
        if near and name not in names and near[0] in own:
            raise ConfigError(f"unrecognized argument: --{name}; did you mean --{near[0]}?")


def _bytes(flag: str, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", text)
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"--{flag} {text}: a size with its unit is expected, e.g. 80GiB or 80GB")
    return int(float(match[1]) * _UNITS[match[2]])


def _model(settings: Settings, vocab_size: int) -> tuple[str, PretrainedConfig, dict[str, tuple[int, ...]]]:
    """Name, configuration and shapes: off the weights if they are given, by the sizes otherwise."""
    given, values = settings.config, settings.values
    untold = {name: values[name] for name in _UNTOLD if values[name]}
    if settings.explicit("from_weight") and given.model.from_weight != "none":
        path = Path(given.model.from_weight)
        if not path.exists():
            raise WeightsError(f"--from_weight {path}: no such .pth or folder; leave it out to plan by the sizes")
        if vocab_size:
            raise ConfigError(f"--vocab_size {vocab_size}: {path} has its own; drop the flag")
        source = open_weights(path, untold)
        told = source.config.get_text_config()
        for flag in ("hidden_size", "num_hidden_layers"):
            if settings.explicit(flag) and values[flag] != getattr(told, flag):
                raise ConfigError(f"--{flag} is {values[flag]}, but {path} has {getattr(told, flag)}; drop the flag")
        return source.origin, source.config, dict(source.shapes())
    if vocab_size and given.model.from_weight == "none":
        raise ConfigError(f"--vocab_size {vocab_size}: fresh weights (--from_weight none) have 6400; drop one of both")
    try:
        config = MiniMindConfig(
            generation=given.model.generation or 2,
            hidden_size=given.model.hidden_size,
            num_hidden_layers=given.model.num_hidden_layers,
            use_moe=given.model.use_moe,
            vocab_size=vocab_size or 6400,
            **untold,
        )
    except ValueError as error:
        raise ConfigError(f"no MiniMind model has these sizes: {error}") from error
    return f"MiniMind generation {config.generation}", config, tensor_shapes(empty_model(config))
