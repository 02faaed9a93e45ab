"""Flags of the scripts that read trained weights: the model flags that they share, and the command line of each.

    a script's own sections of flags + model flags -> script_parser -> read_flags -> source, sections, model flags

Model flags are those of training, with its names, types and bounds: they say what a `.pth` does not tell, and what they
say of weights that do tell is compared with them.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from minimind.config import DPOConfig, Flag, fields_of, flag
from minimind.config.command_line import Parser, add_flag, read_values
from minimind.config.fields import replace_values
from minimind.conversion.architectures import LLAMA, QWEN3
from minimind.conversion.rounding import DTYPES
from minimind.conversion.trained import PTH
from minimind.weights.inferred_config import NOT_IN_PTH
from minimind.weights.shards import MAX_SHARD_SIZE

Script = TypeVar("Script")
_SOURCE = "source"
# Sizes that every form of weights tells.
SIZES = ("generation", "hidden_size", "num_hidden_layers", "use_moe")


SOURCE_HELP = "a run's folder, a checkpoint, a MiniMind .pth, a Hugging Face folder or an adapter"
# A value of --dtype and --device.
AUTO = "auto"
# A value of --to.
MINIMIND = "minimind"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeFlags:
    """Flags of scripts that compute with a model."""

    tokenizer_path: str | None = flag(None, "folder of the tokenizer, if the source has none")
    dtype: str = flag(
        AUTO, "dtype that the model computes in; auto: float32 on a CPU, bfloat16 on a GPU", choices=(AUTO, *DTYPES)
    )
    device: str = flag(AUTO, "where the model computes: cpu, cuda, cuda:1; auto: a GPU if there is one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Flags of the exporting script."""

    to: str | None = flag(
        None,
        "qwen3: a folder of Qwen3 or Qwen3-MoE, for generation 3; llama: a folder of Llama, for generation 2; both "
        "load without this project; minimind: a Hugging Face folder of MiniMind; pth: MiniMind's own file",
        choices=(QWEN3, LLAMA, MINIMIND, PTH),
    )
    out: str | None = flag(None, "the folder to write; with --to pth also a path that ends in .pth")
    dtype: str | None = flag(
        None,
        "dtype of the files; without this flag that of the source, so that nothing is rounded",
        choices=tuple(DTYPES),
    )
    tokenizer_path: str | None = flag(None, "folder of the tokenizer, if the source has none")
    base: str | None = flag(
        None,
        "start weights to compare with, and the base of an adapter, in any form that SOURCE can have; without this "
        "flag those that the run names",
    )
    max_shard_size: str = flag(MAX_SHARD_SIZE, "size of one safetensors file; larger models become several")
    auto_map: bool = flag(
        False, "1: with --to minimind, also write code by which trust_remote_code=True finds MiniMind's classes"
    )
    check: bool = flag(
        True, "1: read the files back and compare the logits; it takes the memory of the model in float32"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScriptFlags(Generic[Script]):
    """A parsed command line.

    Attributes:
        source: the weights that the script is about.
        config: the script's own flags.
        model: name -> value of the model flags that were given.
    """

    source: Path
    config: Script
    model: Mapping[str, Any]


def model_flags() -> tuple[Flag, ...]:
    """The flags of training that describe a model, without defaults: the weights have these values."""
    named = {one.name: one for one in fields_of(DPOConfig)}
    return tuple(dataclasses.replace(named[name], default=None) for name in (*SIZES, *NOT_IN_PTH))


def script_parser(job: type[Any]) -> Parser:
    """The parser of a script.

    Args:
        job: a dataclass of sections of flags, with `script` and `description`, as the configuration of a job.
    """
    # SUPPRESS: flags that were not given have no entry in the result.
    parser = Parser(
        prog=f"python {job.script}",
        description=job.description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(_SOURCE, help=SOURCE_HELP, metavar=_SOURCE.upper())
    for one in fields_of(job):
        add_flag(parser, one)
    group = parser.add_argument_group("model", "what a .pth does not tell; compared with weights that do")
    for one in model_flags():
        add_flag(group, one)
    return parser


def read_flags(job: type[Script], argv: Sequence[str]) -> ScriptFlags[Script]:
    """Parse a command line.

    Args:
        job: as of `script_parser`; it can be made without arguments.

    Raises:
        ConfigError: see `parse_settings`.
    """
    own, model = ({one.name: one for one in found} for found in (fields_of(job), model_flags()))
    values = read_values(script_parser(job), {**own, **model}, argv)
    return ScriptFlags(
        source=Path(values[_SOURCE]),
        config=replace_values(job(), {name: values[name] for name in own if name in values}),
        model={name: values[name] for name in model if name in values},
    )
