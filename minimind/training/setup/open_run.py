"""Opens a run: its identity, the checkpoint that it resumes, its checkpoints and its folder.

Prepared + TrainingData -> open_run -> OpenedRun; all refusals happen here, before an engine is built
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from minimind.checkpoints.find import Checkpoint, find_checkpoint
from minimind.checkpoints.store import Checkpoints
from minimind.config import JobConfig
from minimind.engine.ds_zero import swaps_to_nvme
from minimind.engine.patches.registry import select_patches
from minimind.ranks.collectives import from_main
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.folder import open_run_folder
from minimind.training.setup.prepare import Prepared
from minimind.training.setup.resume import check_same_run, describe, reference_identity
from minimind.training.setup.space import check_space
from minimind.training.setup.training_data import TrainingData


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """A run that may start.

    Attributes:
        reference: what the reference is, see `reference_identity`.
        reference_fingerprint: hash of the reference's weights.
        described: what manifests say about the run.
        start: global step after which it begins; 0 for a fresh run.
        checkpoints: writes and loads checkpoints; None where states swap to NVMe.
    """

    reference: str
    reference_fingerprint: str
    described: dict[str, Any]
    start: int
    checkpoints: Checkpoints | None


def find_resumed(config: JobConfig, world: World, watch: Watch) -> Checkpoint | None:
    """The checkpoint that the run resumes; None without --from_resume, or if there is none yet.

    Raises:
        CheckpointError: on all ranks, if the newest is damaged and --on_bad_checkpoint says to stop.
    """
    if not config.run.from_resume:
        return None
    return find_checkpoint(_checkpoint_folder(config), world, config.run.on_bad_checkpoint, watch.tick)


def open_run(prepared: Prepared, data: TrainingData, world: World, watch: Watch, console: Console) -> OpenedRun:
    """Check that the run may start or resume, and make its folder.

    Raises:
        CheckpointError: on all ranks, if the checkpoint belongs to another run.
        ConfigError: on all ranks, if the disk is too small or the folder cannot be written.
    """
    config, checkpoint = prepared.settings.config, prepared.checkpoint
    fingerprint = from_main(world, prepared.source.fingerprint)
    own = fingerprint
    if prepared.other_reference is not None:
        own = from_main(world, prepared.other_reference.fingerprint)
    reference = reference_identity(prepared, fingerprint, own)
    described = describe(prepared, data, fingerprint, reference)
    # Rank 0 checks for all; an error there is raised on every rank.
    if checkpoint is not None:
        from_main(world, lambda: check_same_run(checkpoint, described, data.stream))
    start = checkpoint.manifest.step if checkpoint is not None else 0
    checkpoints = None
    if swaps_to_nvme(prepared.policy_config.values):
        watch.hint = "It wrote no checkpoints, because states swap to NVMe: start anew."
    else:
        keep = config.run.keep_checkpoints
        patches = select_patches(config.engine.disable_patches, speaks=world.is_main)
        checkpoints = Checkpoints(_checkpoint_folder(config), world, described, keep, patches, watch.tick)
    if warning := from_main(world, lambda: check_space(prepared, start, data.total_steps)):
        console.say(warning)
    # The folder is written last: a run that is refused leaves an earlier run's records untouched.
    from_main(world, lambda: open_run_folder(prepared, described["identity"], checkpoint is not None, world))
    return OpenedRun(
        reference=reference,
        reference_fingerprint=own,
        described=described,
        start=start,
        checkpoints=checkpoints,
    )


def _checkpoint_folder(config: JobConfig) -> Path:
    return Path(config.run.save_dir) / "checkpoints"
