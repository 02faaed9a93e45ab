"""The experiment tracker of a run with --use_wandb, on rank 0.

Prepared -> open_tracker -> a part for the policy's monitor, or None
"""

from __future__ import annotations

from pathlib import Path

from minimind.engine.trackers import SwanLab, run_name, start_tracker
from minimind.ranks.collectives import from_main
from minimind.ranks.world import World
from minimind.training.setup.prepare import Prepared


def open_tracker(prepared: Prepared, world: World) -> SwanLab | None:
    """Start the tracker's run, which needs the run's folder; all ranks call it.

    Returns:
        What `RunMonitor.add` takes; None on other ranks, and where nothing is to be added.

    Raises:
        ConfigError: on all ranks, if it cannot be started.
    """
    settings, started = prepared.settings, []
    if not settings.config.run.use_wandb:
        return None

    def start() -> None:
        run = settings.config.run
        section = prepared.policy_config.values.get("wandb", {})
        started.append(start_tracker(run.wandb_project, run_name(run), Path(run.save_dir), settings.values, section))

    from_main(world, start)
    return started[0] if started else None
