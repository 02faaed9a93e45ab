"""Checkpoints: DeepSpeed's files, plus what makes them safe to go on from.

save_dir/checkpoints/step00000100/                 DeepSpeed's model and optimizer states of every rank
                    /step00000100/manifest.json    what the run was, and every file's size and hash; written last
                    /latest                        the newest complete one, written after that and at once

    find -> Checkpoint (whole, every file as it was written) -> Checkpoints.load -> the policy, wherever it runs now
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from minimind.checkpoints.manifest import MANIFEST, Manifest, damage, own_files, record, sync_folder, write_whole
from minimind.checkpoints.reshard import load_elsewhere
from minimind.engine.policy import Policy
from minimind.errors import CheckpointError
from minimind.ranks.process import World, agree, from_main, gather

_TAG = re.compile(r"step\d{8}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that is whole.

    Attributes:
        path: its folder.
        manifest: what it is.
        damaged: newer ones that are not whole, and what is wrong with each.
    """

    path: Path
    manifest: Manifest
    damaged: Mapping[str, str]


def find(folder: Path, world: World, on_bad: str) -> Checkpoint | None:
    """The checkpoint to go on from, or None if there is none; all ranks call it, and read a share of the files each.

    Args:
        folder: where checkpoints lie.
        on_bad: what to do if the newest is damaged. error: stop; previous: take the newest that is whole.

    Raises:
        CheckpointError: the newest is damaged, under `error`; all are.
    """
    damaged: dict[str, str] = {}
    found = None
    for tag in from_main(world, lambda: _candidates(folder)):
        manifest, problem = _inspect(folder / tag, world)
        if manifest is not None:
            found = Checkpoint(path=folder / tag, manifest=manifest, damaged=damaged)
            break
        damaged[tag] = problem
    if damaged and (found is None or on_bad == "error"):
        listed = "\n".join(f"  {tag}: {problem}" for tag, problem in damaged.items())
        good = (
            f"The newest whole one is {found.path.name}: --on_bad_checkpoint previous goes on from there."
            if found
            else "No other is whole: start anew without --from_resume, or in another --save_dir."
        )
        raise _agreed(CheckpointError(f"{folder}: a checkpoint is damaged\n{listed}\n{good}"))
    return found


class Checkpoints:
    """The checkpoints that a run writes.

    Args:
        folder: where they lie.
        world: the ranks.
        described: what a manifest says of the run: its identity, batch, layout and attention.
        keep: how many are kept, the newest; 0: all.
    """

    def __init__(self, folder: Path, world: World, described: Mapping[str, Any], keep: int) -> None:
        self.folder = folder
        self.world = world
        self.described = described
        self.keep = keep

    def save(self, policy: Policy, step: int, stream: Mapping[str, Any], unlogged: Mapping[str, Any]) -> Path:
        """Write the state after global step `step`. `latest` names it only when every file of every rank is there.

        Args:
            stream: where the stream of pairs stands.
            unlogged: training metrics since the last logged step.

        Raises:
            CheckpointError: on all ranks, if any could not write; then nothing is left of it, and what was there stays.
        """
        path = self.folder / f"step{step:08d}"
        try:
            from_main(self.world, lambda: self._make_room(path))
            with _held_failures(policy.engine, self.world.watch.tick) as failures:
                policy.engine.save_checkpoint(
                    str(self.folder), tag=path.name, client_state={"step": step}, save_latest=False
                )
            parts = gather(self.world, agree(self.world, lambda: self._records(path, failures)))
            files = {name: entry for part in parts for name, entry in (part or {}).items()}
            manifest = Manifest(step=step, stream=stream, files=files, unlogged=unlogged, **self.described)
            from_main(self.world, lambda: self._complete(path, manifest))
        except CheckpointError:
            if self.world.is_main:
                shutil.rmtree(path, ignore_errors=True)
            raise
        return path

    def load(self, policy: Policy, checkpoint: Checkpoint) -> None:
        """Load a checkpoint into the policy, whatever ranks and ZeRO stage it was written under.

        Raises:
            CheckpointError: on all ranks, if any has files that DeepSpeed cannot load.
        """
        from_main(self.world, lambda: self._set_back(checkpoint))
        with _held_epilogue(policy.engine) as epilogue:
            agree(self.world, lambda: self._read(policy.engine, checkpoint))
        epilogue()

    def newest(self) -> str | None:
        """Name of the newest complete checkpoint, None if there is none; on rank 0."""
        return next(iter(_candidates(self.folder)), None)

    def _read(self, engine: Any, checkpoint: Checkpoint) -> None:
        path = checkpoint.path
        try:
            if checkpoint.manifest.layout != self.described["layout"]:
                load_elsewhere(engine, path, self.world)
            elif engine.load_checkpoint(str(self.folder), tag=path.name)[0] is None:
                raise CheckpointError(f"{path}: holds nothing that DeepSpeed can load")
        except CheckpointError:
            raise
        except Exception as error:
            # A file that is as it was written, and yet not as DeepSpeed wants it, makes it raise almost anything.
            raise CheckpointError(f"{path}: cannot be loaded ({type(error).__name__}: {error})") from error

    def _make_room(self, path: Path) -> None:
        """Remove what a run that was killed in mid-save, or gone back from, left under this name."""
        with _as_checkpoint_error(path):
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True)

    def _records(self, path: Path, failures: list[str]) -> dict[str, Any]:
        if failures:
            raise CheckpointError(failures[0])
        with _as_checkpoint_error(path):
            own = own_files(path, self.world.rank)
            return {str(file.relative_to(path)): record(file, self.world.watch.tick) for file in own}

    def _complete(self, path: Path, manifest: Manifest) -> None:
        with _as_checkpoint_error(path):
            sync_folder(path)
            manifest.write(path)
            sync_folder(self.folder)
            write_whole(self.folder / "latest", path.name)
        with contextlib.suppress(OSError):  # what cannot be deleted now is tried again after the next save
            self._prune(path.name)

    def _prune(self, newest: str) -> None:
        """Delete what --keep_checkpoints does not keep, and what saves that were killed have left."""
        whole = complete_tags(self.folder)
        old = [tag for tag in whole if tag <= newest][: -self.keep] if self.keep else []
        present = [entry.name for entry in self.folder.iterdir() if _TAG.fullmatch(entry.name)]
        for tag in [*old, *(tag for tag in present if tag not in whole)]:
            # Its manifest first: what is half deleted is not to be taken for damaged.
            (self.folder / tag / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self.folder / tag, ignore_errors=True)

    def _set_back(self, checkpoint: Checkpoint) -> None:
        """Put damaged ones aside, and let `latest` name the one that is gone on from."""
        if checkpoint.damaged:
            with _as_checkpoint_error(self.folder):
                write_whole(self.folder / "latest", checkpoint.path.name)
                for tag in checkpoint.damaged:
                    aside = self.folder / f"{tag}.damaged"
                    shutil.rmtree(aside, ignore_errors=True)
                    if (self.folder / tag).exists():
                        os.replace(self.folder / tag, aside)


def complete_tags(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder that have their manifest, the oldest first."""
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}") if _TAG.fullmatch(path.parent.name))


def _candidates(folder: Path) -> list[str]:
    """Checkpoints to go on from, the best first: what `latest` names, then those before it."""
    latest = folder / "latest"
    try:
        tags = complete_tags(folder)
        named = latest.read_text(encoding="utf-8", errors="replace").strip() if latest.is_file() else ""
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error})") from error
    if not _TAG.fullmatch(named):
        return tags[::-1]
    return [named, *(tag for tag in reversed(tags) if tag < named)]


def _inspect(path: Path, world: World) -> tuple[Manifest | None, str]:
    """A checkpoint's manifest if it is whole, else what is wrong with it; each rank looks at a share of the files."""

    def read() -> Manifest | str:
        try:
            return Manifest.read(path)
        except CheckpointError as error:
            return str(error)

    manifest = from_main(world, read)
    if isinstance(manifest, str):
        return None, manifest
    mine = sorted(manifest.files)[world.rank :: world.size]
    tick = world.watch.tick
    found = [problem for name in mine if (problem := damage(path / name, manifest.files[name], tick))]
    problems = [problem for part in gather(world, found) for problem in part]
    return (None, "; ".join(problems)) if problems else (manifest, "")


@contextlib.contextmanager
def _held_failures(engine: Any, tick: Callable[[], None]) -> Iterator[list[str]]:
    """Hold a rank's failure to write until all ranks are through DeepSpeed's barriers: alone it would leave them there.

    Its recovery scripts, which it copies after the files and outside of this, are left out. `tick` follows each file.
    """
    failures: list[str] = []
    writer = engine.checkpoint_engine
    write, copy_scripts = writer.save, engine._copy_recovery_script

    def save(state_dict: Any, path: str) -> None:
        try:
            write(state_dict, path)
        except (OSError, RuntimeError) as error:
            # torch's zip writer turns a full disk into a RuntimeError.
            failures.append(_unwritten(Path(path), error))
        tick()

    writer.save, engine._copy_recovery_script = save, lambda folder: None
    try:
        yield failures
    finally:
        writer.save, engine._copy_recovery_script = write, copy_scripts


@contextlib.contextmanager
def _held_epilogue(engine: Any) -> Iterator[Callable[[], None]]:
    """Keep back the end of a load under stage 3, where all ranks meet to gather small weights, and give it for later: a
    rank whose files cannot be loaded would not come there.
    """
    optimizer = engine.optimizer
    epilogue = getattr(optimizer, "checkpoint_event_epilogue", None)
    if epilogue is None:
        yield lambda: None
        return
    optimizer.checkpoint_event_epilogue = lambda: None
    try:
        yield epilogue
    finally:
        optimizer.checkpoint_event_epilogue = epilogue


@contextlib.contextmanager
def _as_checkpoint_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(_unwritten(path, error)) from error


def _unwritten(path: Path, error: BaseException) -> str:
    while error.__context__ is not None:  # torch's writer fails again when it closes the file; the first says why
        error = error.__context__
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    free = ""
    with contextlib.suppress(OSError):
        free = f"; {shutil.disk_usage(path.parent).free / 2**20:,.0f} MiB are free there"
    return f"{path}: cannot be written ({first}{free})"


def _agreed(error: CheckpointError) -> CheckpointError:
    error.agreed = True
    return error
