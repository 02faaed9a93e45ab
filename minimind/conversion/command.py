"""The exporting script.

argv -> SOURCE -> Trained -> weights with MiniMind's names -> configuration of --to -> files -> read back -> export.json
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from minimind.config.fields import flag
from minimind.conversion.architectures import LLAMA, QWEN3
from minimind.conversion.export import Export, write_folder, write_pth
from minimind.conversion.flags import ScriptFlags, read_flags, script_parser
from minimind.conversion.record import is_export, summary
from minimind.conversion.rounding import DTYPES
from minimind.conversion.trained import PTH
from minimind.errors import ConfigError, MiniMindError, WeightsError
from minimind.weights.shards import MAX_SHARD_SIZE

MINIMIND = "minimind"
SOURCE_HELP = "a run's folder, a checkpoint, a MiniMind .pth, a Hugging Face folder or an adapter"


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
class ExportConfig:
    """The section of the exporting script."""

    script: ClassVar[str] = "launch/export.py"
    description: ClassVar[str] = "Export trained weights in the form that other programs load."

    export: ExportFlags = dataclasses.field(default_factory=ExportFlags)


def build_parser() -> Any:
    """The parser of the script."""
    return script_parser(ExportConfig, {"source": SOURCE_HELP})


def main(argv: Sequence[str] | None = None) -> None:
    """Export. An error of the user is printed in one line, and the exit status is 1."""
    transformers_logging.disable_progress_bar()
    try:
        export(sys.argv[1:] if argv is None else argv)
    except MiniMindError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def export(argv: Sequence[str]) -> dict[str, Any]:
    """Export, print what a person must know, and return the values of `export.json`.

    Raises:
        ConfigError: flags are wrong or contradict each other or the weights.
        WeightsError, CheckpointError: the source cannot be used, has no equal in the form, or cannot be written.
    """
    flags = read_flags(build_parser(), ExportConfig, ["source"], argv)
    source, out = Path(flags.positional["source"]), _check_out(flags)
    job = Export.open(source, flags)
    try:
        values = write_pth(job, out) if job.to == PTH else write_folder(job, out)
    # torch's zip writer and safetensors raise types of their own when the disk is full.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{out}: cannot be written ({error})") from error
    print(f"wrote  {out} ({job.to}, {values['dtype']})")
    print("\n".join(summary(values)))
    if job.pth_flags:
        print(f"note   a .pth does not tell everything; read it with {job.pth_flags}")
    return values


def _check_out(flags: ScriptFlags) -> Path:
    """The path to write.

    Raises:
        ConfigError: --to or --out is missing, or --out is there and no earlier export.
    """
    own = flags.own
    missing = [f"--{name} is missing" for name in ("to", "out") if own[name] is None]
    if missing:
        raise ConfigError.from_problems([f"{one}; see --help" for one in missing])
    if own["auto_map"] and own["to"] != MINIMIND:
        raise ConfigError(f"--auto_map 1 is for --to {MINIMIND}; a {own['to']} export needs no code of this project")
    if not re.fullmatch(r"\d*[1-9]\d*[KMGT]B", own["max_shard_size"]):
        raise ConfigError(f"--max_shard_size {own['max_shard_size']}: expected a whole number and a unit, such as 5GB")
    out = Path(own["out"])
    if own["to"] == PTH and out.suffix != ".pth":
        return out
    used = out.is_file() or (out.is_dir() and any(out.iterdir()))
    if used and not is_export(out):
        raise ConfigError(f"--out {out}: is there, and no earlier export; give another path, or remove it")
    return out
