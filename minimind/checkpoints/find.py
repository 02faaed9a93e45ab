"""Finds the checkpoint to resume from, and verifies it.

    save_dir/checkpoints -> candidates, newest first -> manifest and every file's size and hash -> Checkpoint

The ranks share the hashing: each verifies every world-size-th file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from minimind.checkpoints.manifest import MANIFEST, Manifest, find_damage
from minimind.errors import CheckpointError
from minimind.ranks.collectives import from_main, gather
from minimind.ranks.world import World

# Names the checkpoint to resume from; a file beside the checkpoint folders.
LATEST = "latest"
_NAME = re.compile(r"step\d{8}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An intact checkpoint.

    Attributes:
        path: its folder.
        manifest: its manifest.
        damaged: newer checkpoints that are damaged: folder name -> what is wrong.
    """

    path: Path
    manifest: Manifest
    damaged: Mapping[str, str]


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after a global step."""
    return f"step{step:08d}"


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder of this name is a checkpoint, finished or not."""
    return _NAME.fullmatch(name) is not None


def find_checkpoint(
    folder: Path, world: World, on_bad: str, on_progress: Callable[[], object] = lambda: None
) -> Checkpoint | None:
    """The checkpoint to resume from; None if there is none. All ranks must call.

    Args:
        folder: the folder of all checkpoints.
        world: the ranks.
        on_bad: what to do if the newest is damaged. error: stop; previous: take the newest intact one.
        on_progress: called after each block of a file that is read.

    Raises:
        CheckpointError: on all ranks, if the newest is damaged under `error`, or if none is intact.
    """
    damaged: dict[str, str] = {}
    found = None
    for name in from_main(world, lambda: resume_candidates(folder)):
        # A collective: all ranks verify the same candidate, each a share of its files.
        manifest, problem = _verify(folder / name, world, on_progress)
        if manifest is not None:
            found = Checkpoint(path=folder / name, manifest=manifest, damaged=damaged)
            break
        damaged[name] = problem
    if damaged and (found is None or on_bad == "error"):
        listed = "\n".join(f"  {name}: {problem}" for name, problem in damaged.items())
        advice = (
            f"The newest intact checkpoint is {found.path.name}; --on_bad_checkpoint previous resumes from it."
            if found
            else "No checkpoint is intact: start a new run without --from_resume, or in another --save_dir."
        )
        raise CheckpointError(f"{folder}: a checkpoint is damaged\n{listed}\n{advice}", agreed=True)
    return found


def complete_checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder that have a manifest, the oldest first."""
    # Steps have a fixed number of digits, so names sort by step.
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}") if is_checkpoint_name(path.parent.name))


def resume_candidates(folder: Path) -> list[str]:
    """Names of the checkpoints to try in order: the one in `latest`, then older ones, the newest first.

    Checkpoints newer than `latest` are left out: they belong to a run that was reset to an earlier step.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    latest = folder / LATEST
    try:
        names = complete_checkpoints(folder)
        newest = latest.read_text(encoding="utf-8", errors="replace").strip() if latest.is_file() else ""
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error})") from error
    if not is_checkpoint_name(newest):
        return names[::-1]
    return [newest, *(name for name in reversed(names) if name < newest)]


def _verify(path: Path, world: World, on_progress: Callable[[], object]) -> tuple[Manifest | None, str]:
    """An intact checkpoint's manifest, or None and what is wrong. All ranks must call."""

    def read() -> Manifest | str:
        try:
            return Manifest.read(path)
        except CheckpointError as error:
            return str(error)

    manifest = from_main(world, read)
    if isinstance(manifest, str):
        return None, manifest
    # Hashing is the slow part, so the files are dealt to the ranks. Sorting makes all ranks agree on the deal.
    mine = sorted(manifest.files)[world.rank :: world.size]
    found = [problem for name in mine if (problem := find_damage(path / name, manifest.files[name], on_progress))]
    problems = [problem for part in gather(world, found) for problem in part]
    return (None, "; ".join(problems)) if problems else (manifest, "")
