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

from minimind.conversion.export import Export, write_folder, write_pth
from minimind.conversion.flags import MINIMIND, ExportFlags, read_flags
from minimind.conversion.record import is_export, summary
from minimind.conversion.trained import PTH
from minimind.errors import ConfigError, WeightsError, one_line_errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The section of the exporting script."""

    script: ClassVar[str] = "launch/export.py"
    description: ClassVar[str] = "Export trained weights in the form that other programs load."

    export: ExportFlags = dataclasses.field(default_factory=ExportFlags)


def main(argv: Sequence[str] | None = None) -> None:
    """Export. An error of the user is printed in one line, and the exit status is 1."""
    transformers_logging.disable_progress_bar()
    with one_line_errors():
        export(sys.argv[1:] if argv is None else argv)


def export(argv: Sequence[str]) -> dict[str, Any]:
    """Export, print what a person must know, and return the values of `export.json`.

    Raises:
        ConfigError: flags are wrong or contradict each other or the weights.
        WeightsError, CheckpointError: the source cannot be used, has no equal in the form, or cannot be written.
    """
    flags = read_flags(ExportConfig, argv)
    out = _check_out(flags.config.export)
    job = Export.open(flags.source, flags.config.export, flags.model)
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


def _check_out(own: ExportFlags) -> Path:
    """The path to write.

    Raises:
        ConfigError: --to or --out is missing, or --out is there and no earlier export.
    """
    missing = [f"--{name} is missing; see --help" for name in ("to", "out") if getattr(own, name) is None]
    if own.out is None or missing:
        raise ConfigError.from_problems(missing)
    if own.auto_map and own.to != MINIMIND:
        raise ConfigError(f"--auto_map 1 is for --to {MINIMIND}; a {own.to} export needs no code of this project")
    if not re.fullmatch(r"\d*[1-9]\d*[KMGT]B", own.max_shard_size):
        raise ConfigError(f"--max_shard_size {own.max_shard_size}: expected a whole number and a unit, such as 5GB")
    out = Path(own.out)
    if own.to == PTH and out.suffix != ".pth":
        return out
    used = out.is_file() or (out.is_dir() and any(out.iterdir()))
    if used and not is_export(out):
        raise ConfigError(f"--out {out}: is there, and no earlier export; give another path, or remove it")
    return out
