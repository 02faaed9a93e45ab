"""The run's folder: files written before training, records of an earlier run, metrics of steps that are repeated."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from minimind.diagnosis.ledger import FOLDER, drop_after
from minimind.diagnosis.run_files import FINDINGS_FILE, METRICS_FILE, RUN_FILE, SAMPLES_FILE
from minimind.durable import keep_steps
from minimind.errors import ConfigError
from minimind.ranks.world import World
from minimind.training.setup.prepare import Prepared
from minimind.training.setup.start_weights import weights_name
from minimind.version import __version__

# Files and folders of a run's records. Those of an earlier run are moved aside, never mixed or overwritten.
_RECORDS = (
    METRICS_FILE,
    FINDINGS_FILE,
    SAMPLES_FILE,
    RUN_FILE,
    "ds_config.json",
    "ds_reference_config.json",
    "tensorboard",
    "csv",
    "checkpoints",
    "best",
    "ledger",
    "report.html",
)
# Record of an export: beside a .pth, or in the folder that was written.
_EXPORT = "export.json"


def open_run_folder(prepared: Prepared, identity: Mapping[str, object], resuming: bool, world: World) -> None:
    """Make the run's folder, move an earlier run's records aside, and write the settings of this run.

    Raises:
        ConfigError: the folder, or that of a monitor, cannot be written.
    """
    folder = Path(prepared.settings.config.run.save_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resuming:
            _move_aside(folder, weights_name(prepared.settings.config))
        _write_json(folder / RUN_FILE, _describe(prepared, identity, world))
        _write_json(folder / "ds_config.json", prepared.policy_config.values)
        _write_json(folder / "ds_reference_config.json", prepared.reference_config.values)
    except OSError as error:
        raise ConfigError(f"--save_dir {folder}: cannot be written ({error})") from error
    for section in ("tensorboard", "csv_monitor"):
        _try_monitor(section, prepared.policy_config.values.get(section, {}))


def _try_monitor(section: str, settings: Mapping[str, Any]) -> None:
    """Write a byte where a monitor will write: DeepSpeed opens its files on one rank in the middle of a collective."""
    if not settings.get("enabled"):
        return
    folder = Path(settings["output_path"], settings["job_name"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" ")
    except OSError as error:
        raise ConfigError(
            f"'{section}' writes into {folder}, which cannot be written ({error}); change its output_path, or turn it "
            "off in the DeepSpeed file"
        ) from error


def _move_aside(folder: Path, weights: str) -> None:
    """Move the records and weights of an earlier run into a new folder earlier/N."""
    names = (*_RECORDS, weights, f"{weights}.pth", *(path.name for path in folder.glob("nonfinite_*.jsonl")))
    # Exported weights, of which the report would say that they are those of the new run.
    exported = (path.parent.name for path in folder.glob(f"*/{_EXPORT}"))
    present = [folder / name for name in dict.fromkeys((*names, _EXPORT, *exported)) if (folder / name).exists()]
    if present:
        # earlier/1 is the oldest; numbers are never reused.
        number = 1
        while (folder / "earlier" / str(number)).exists():
            number += 1
        (folder / "earlier" / str(number)).mkdir(parents=True)
        for path in present:
            os.replace(path, folder / "earlier" / str(number) / path.name)


def _describe(prepared: Prepared, identity: Mapping[str, object], world: World) -> dict[str, object]:
    settings = prepared.settings
    return {
        "settings": {
            name: {"value": value, "origin": settings.origins[name]} for name, value in settings.values.items()
        },
        "overridden": prepared.policy_config.overridden,
        "identity": identity,
        "weights": prepared.source.origin,
        "versions": {
            "minimind": __version__,
            **{package: importlib.metadata.version(package) for package in ("torch", "deepspeed", "transformers")},
            "python": platform.python_version(),
        },
        "hardware": {"ranks": world.size, "machines": len(set(world.hosts)) or 1, "device": _device_name(world)},
    }


def _device_name(world: World) -> str:
    if not world.on_cpu:
        return str(torch.get_device_module(world.device).get_device_name(world.device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def drop_metrics_after(folder: Path, step: int) -> list[str]:
    """Remove the metrics and samples of steps after a checkpoint: the resumed run takes and logs these steps again.

    Returns:
        Messages for the user about damaged lines.

    Raises:
        ConfigError: a file cannot be written; it is unchanged.
    """
    messages: list[str] = []
    for path in (folder / METRICS_FILE, folder / SAMPLES_FILE):
        try:
            with contextlib.suppress(FileNotFoundError):
                messages += keep_steps(path, step)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read or written ({error})") from error
    return messages


def drop_ledger_after(folder: Path, step: int) -> None:
    """Remove the rows of the ledger after a checkpoint; the resumed run writes them again.

    Raises:
        ConfigError: a file cannot be written.
        DataError: a file is damaged.
    """
    try:
        drop_after(folder, step)
    except OSError as error:
        raise ConfigError(f"{folder / FOLDER}: cannot be written ({error})") from error
