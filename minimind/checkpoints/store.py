"""Writes checkpoints, deletes old ones and loads them into the policy.

save_dir/checkpoints/step00000100/                 DeepSpeed's model and optimizer states of every rank
                    /step00000100/manifest.json    the run's description, every file's size and hash; written last
                    /latest                        name of the newest complete checkpoint; replaced after the manifest

    save: DeepSpeed's files -> sizes and hashes of all ranks -> manifest -> latest -> old checkpoints deleted
    load: Checkpoint -> DeepSpeed's own loader, or reshard.py if the ranks or the ZeRO stage changed
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.checkpoints.find import (
    LATEST,
    Checkpoint,
    checkpoint_name,
    complete_checkpoints,
    is_checkpoint_name,
    resume_candidates,
)
from minimind.checkpoints.manifest import MANIFEST, Manifest, fingerprint_file, own_files, write_atomically
from minimind.checkpoints.reshard import load_resharded
from minimind.durable import sync_folder
from minimind.engine.moving_reference import MovingReference
from minimind.engine.patches.checkpoint_io import FailedWrite, collect_write_failures, defer_load_epilogue
from minimind.engine.patches.partitions import RESHARD_CHECKPOINTS
from minimind.engine.patches.registry import PatchSelection
from minimind.engine.policy import Policy
from minimind.errors import CheckpointError
from minimind.ranks.collectives import agree, from_main, gather
from minimind.ranks.world import World


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the folder of all checkpoints.
        world: the ranks.
        described: the manifest's description of the run: its identity, batch, sharding and attention.
        keep: how many of the newest are kept; None: all.
        patches: which patches of DeepSpeed the run uses; None: all.
        on_progress: called after each file that is written, and after each block or tensor that is read.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        described: Mapping[str, Any],
        keep: int | None,
        patches: PatchSelection | None = None,
        on_progress: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder = folder
        self.world = world
        self.described = described
        self.keep = keep
        self.patches = patches or PatchSelection()
        self._on_progress = on_progress

    def save(
        self,
        policy: Policy,
        step: int,
        stream: Mapping[str, Any],
        unlogged: Mapping[str, Any],
        *,
        listeners: Mapping[str, Any] | None = None,
        moving: MovingReference | None = None,
    ) -> Path:
        """Write a checkpoint after global step `step`. `latest` names it only when every file of every rank is there.

        All ranks must call.

        Args:
            policy: the model that trains.
            step: the global step that has just ended.
            stream: position in the stream of pairs.
            unlogged: training metrics since the last logged step.
            listeners: state of the training loop's listeners by name, JSON values; rank 0's is written.
            moving: a reference that follows the policy.

        Raises:
            CheckpointError: on all ranks, if any could not write. The new folder is deleted, older ones stay.
        """
        path = self.folder / checkpoint_name(step)
        try:
            from_main(self.world, lambda: _make_empty(path))
            with collect_write_failures(policy.engine, self._on_progress, self.patches) as failures:
                policy.engine.save_checkpoint(
                    str(self.folder),
                    tag=path.name,
                    client_state={"step": step},
                    # DeepSpeed's rank 0 would name the folder while other ranks still write into it.
                    save_latest=False,
                    # Weights under adapters do not change; the manifest has their hash.
                    exclude_frozen_parameters=policy.has_adapters,
                )
            # Each rank hashes its own files, which are still in its page cache; rank 0 needs all the hashes.
            parts = gather(self.world, agree(self.world, lambda: self._finish_own(path, moving, failures)))
            files = {name: entry for part in parts for name, entry in (part or {}).items()}
            manifest = Manifest(
                step=step, stream=stream, files=files, unlogged=unlogged, listeners=listeners or {}, **self.described
            )
            from_main(self.world, lambda: self._complete(path, manifest))
        except CheckpointError:
            if self.world.is_main:
                shutil.rmtree(path, ignore_errors=True)
            raise
        return path

    def load(self, policy: Policy, checkpoint: Checkpoint, moving: MovingReference | None = None) -> None:
        """Load a checkpoint into the policy and a reference that follows it. All ranks must call.

        The number of ranks and the ZeRO stage may be others.

        Raises:
            CheckpointError: on all ranks, if any has files that cannot be loaded.
        """
        from_main(self.world, lambda: self._set_damaged_aside(checkpoint))
        with defer_load_epilogue(policy.engine, self.patches) as epilogue:
            agree(self.world, lambda: self._read(policy, checkpoint))
        epilogue()
        if moving is not None:
            agree(self.world, lambda: moving.read(checkpoint.path))

    def newest(self) -> str | None:
        """Name of the newest complete checkpoint, None if there is none; to be called on rank 0."""
        return next(iter(resume_candidates(self.folder)), None)

    def _read(self, policy: Policy, checkpoint: Checkpoint) -> None:
        engine, path = policy.engine, checkpoint.path
        # Strict, but for frozen weights that are not in the file: the manifest's hashes prove that the file is whole.
        strict = not policy.has_adapters
        try:
            if checkpoint.manifest.sharding != self.described["sharding"]:
                self._check_resharding(path)
                load_resharded(engine, path, self.world, self._on_progress)
            elif engine.load_checkpoint(str(self.folder), tag=path.name, load_module_strict=strict)[0] is None:
                raise CheckpointError(f"{path}: contains nothing that DeepSpeed can load")
        except CheckpointError:
            raise
        except Exception as error:
            # DeepSpeed raises almost any exception for an intact file whose contents it does not expect.
            raise CheckpointError(f"{path}: cannot be loaded ({type(error).__name__}: {error})") from error

    def _check_resharding(self, path: Path) -> None:
        """Refuse to reshard if this DeepSpeed arranges states otherwise than resharding expects."""
        if reason := self.patches.why_off(RESHARD_CHECKPOINTS):
            raise CheckpointError(
                f"{path}: cannot resume with another number of ranks, ZeRO section or optimizer, since patch "
                f"{RESHARD_CHECKPOINTS.name!r} is off: {reason}; resume with those that the checkpoint was written with"
            )

    def _finish_own(
        self, path: Path, moving: MovingReference | None, failures: Sequence[FailedWrite]
    ) -> dict[str, Any]:
        """Write what is not DeepSpeed's; sizes and hashes of the files that this rank wrote."""
        if failures:
            raise CheckpointError(_write_problem(failures[0].path, failures[0].error))
        with _as_checkpoint_error(path):
            if moving is not None:
                moving.write(path)
                self._on_progress()
            own = own_files(path, self.world.rank)
            return {str(file.relative_to(path)): fingerprint_file(file, self._on_progress) for file in own}

    def _complete(self, path: Path, manifest: Manifest) -> None:
        """Write the manifest, then `latest`, each only after what it refers to has reached the disk."""
        with _as_checkpoint_error(path):
            sync_folder(path)
            manifest.write(path)
            sync_folder(self.folder)
            write_atomically(self.folder / LATEST, path.name)
        with contextlib.suppress(OSError):  # files that cannot be deleted now are tried again after the next save
            self._prune(path.name)

    def _prune(self, newest: str) -> None:
        """Delete checkpoints beyond `keep`, and unfinished ones of killed runs."""
        complete = complete_checkpoints(self.folder)
        old = [name for name in complete if name <= newest][: -self.keep] if self.keep is not None else []
        present = [entry.name for entry in self.folder.iterdir() if is_checkpoint_name(entry.name)]
        for name in [*old, *(name for name in present if name not in complete)]:
            # The manifest goes first: a checkpoint that is deleted only in part must not be reported as damaged.
            (self.folder / name / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _set_damaged_aside(self, checkpoint: Checkpoint) -> None:
        """Rename damaged checkpoints, after `latest` names the one that the run resumes from."""
        if not checkpoint.damaged:
            return
        with _as_checkpoint_error(self.folder):
            write_atomically(self.folder / LATEST, checkpoint.path.name)
            for name in checkpoint.damaged:
                aside = self.folder / f"{name}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                if (self.folder / name).exists():
                    os.replace(self.folder / name, aside)


def _make_empty(path: Path) -> None:
    """An empty folder, without files of a killed save or of a run that was reset to an earlier step."""
    with _as_checkpoint_error(path):
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)


@contextlib.contextmanager
def _as_checkpoint_error(path: Path) -> Iterator[None]:
    """Turn an OSError into a CheckpointError that names the path."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(_write_problem(path, error)) from error


def _write_problem(path: Path, error: BaseException) -> str:
    """Message for a failed write, with the free space."""
    while error.__context__ is not None:  # torch's writer fails again when it closes the file; the first error says why
        error = error.__context__
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    free = ""
    with contextlib.suppress(OSError):
        free = f"; {shutil.disk_usage(path.parent).free / 2**20:,.0f} MiB are free there"
    return f"{path}: cannot be written ({first}{free})"
