"""Experiment trackers of --use_wandb: SwanLab where it is installed, as in MiniMind, else Weights & Biases.

    --use_wandb -> tracker_name -> ds_config.py: DeepSpeed's monitor of wandb    (DeepSpeed has none of SwanLab)
    rank 0      -> start_tracker -> a part of RunMonitor, or None where DeepSpeed's monitor writes to the same run

The run of the tracker is started before DeepSpeed would do it, so that a missing login or network is one error of the
user, soon, and not an exception within a collective.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.config import DEEPSPEED_FILE, RunConfig, Settings
from minimind.errors import ConfigError

SWANLAB, WANDB = "swanlab", "wandb"
# Seconds that wandb may wait for a login and for its server. Its own limits are longer, or none.
_LOGIN_SECONDS, _START_SECONDS = 30.0, 60.0
_OFFLINE = {
    SWANLAB: "log in (`swanlab login`), or work offline: SWANLAB_MODE=offline",
    WANDB: "log in (`wandb login`), or work offline: WANDB_MODE=offline",
}


def tracker_name() -> str | None:
    """The package that --use_wandb uses; None if none is installed."""
    specs = ((name, importlib.util.find_spec(name)) for name in (SWANLAB, WANDB))
    # A folder of runs in the current directory looks like a package, but has no file of its own.
    return next((name for name, spec in specs if spec is not None and spec.origin is not None), None)


def run_name(run: RunConfig) -> str:
    """The name of a run: --run_name, else that of its folder."""
    return run.run_name or Path(run.save_dir).absolute().name or "run"


def bind_wandb(values: dict[str, Any], settings: Settings, problems: list[str]) -> Settings:
    """Turn on DeepSpeed's monitor of wandb for --use_wandb; returns settings with the file's project.

    Args:
        values: DeepSpeed's configuration, in which the section `wandb` is completed.
    """
    section = values.get("wandb", {})
    if not settings.config.run.use_wandb or tracker_name() != WANDB or not isinstance(section, dict):
        return settings
    ours, given = settings.config.run.wandb_project, section.get("project", "auto")
    if section.get("enabled") is False:
        problems.append("'wandb.enabled' is false, but --use_wandb is 1; drop one")
    if given != "auto" and given != ours and settings.explicit("wandb_project"):
        problems.append(f"'wandb.project' is {given!r}, but --wandb_project is {ours}; drop one")
    elif given != "auto":
        settings, ours = settings.with_values({"wandb_project": given}, DEEPSPEED_FILE), given
    values["wandb"] = {**section, "enabled": True, "project": ours}
    return settings


class SwanLab:
    """Writes events to SwanLab.

    Args:
        module: the package `swanlab`, with a run.
    """

    def __init__(self, module: Any) -> None:
        self._module = module

    def write_events(self, events: Sequence[tuple[str, Any, int]]) -> None:
        """Write events (tag, value, global step)."""
        for step in dict.fromkeys(step for *_, step in events):
            self._module.log({tag: float(value) for tag, value, of in events if of == step}, step=step)

    def close(self) -> None:
        """Wait for uploads."""
        self._module.finish()


def start_tracker(
    project: str, name: str, folder: Path, settings: Mapping[str, Any], section: Mapping[str, Any]
) -> SwanLab | None:
    """Start the tracker's run; only rank 0 calls it.

    Args:
        project: value of --wandb_project.
        name: of the tracker's run.
        folder: of the run.
        settings: every setting, for the tracker's table of runs.
        section: DeepSpeed's configuration of wandb.

    Returns:
        The part of the monitor that writes to SwanLab; None for wandb, whose run DeepSpeed's monitor takes up.

    Raises:
        ConfigError: the run cannot be started.
    """
    package = tracker_name()
    assert package is not None  # setup/checks.py
    module = importlib.import_module(package)
    shown = {key: value for key, value in settings.items() if value not in (None, ())}
    try:
        if package == SWANLAB:
            # Without a login it would ask for one where there is a terminal, while all ranks wait.
            os.environ.setdefault("SWANLAB_INTERACTIVE", "false")
            module.init(project=project, name=name, config=shown)
            return SwanLab(module)
        module.init(
            project=project,
            name=name,
            config=shown,
            dir=str(folder),
            group=section.get("group"),
            entity=section.get("team"),
            settings=module.Settings(login_timeout=_LOGIN_SECONDS, init_timeout=_START_SECONDS),
        )
    except Exception as error:
        # Each package has exceptions of its own.
        raise ConfigError(f"--use_wandb 1: {package} cannot start a run: {error}; {_OFFLINE[package]}") from error
    return None
