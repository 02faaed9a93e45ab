"""What makes a checkpoint whole: a manifest with the size and hash of every file, written last.

    files on the disk -> record -> Manifest -> write        a folder without one is no checkpoint
    folder -> read -> Manifest -> damage                    what is wrong with a file

Hashes are SHA-256, so that `sha256sum` can check them too; it is the fastest that processors help with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minimind.errors import CheckpointError

MANIFEST = "manifest.json"
_BLOCK_BYTES = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint is.

    Attributes:
        step: the global step it was written after.
        stream: where the stream of pairs stood then.
        identity: what must be the same for a run to go on from it.
        batch: how a global batch was split: batch_size, accumulation_steps.
        layout: how the states are cut: ranks, ZeRO section, optimizer. Going on with another means cutting them anew.
        files: name -> {"bytes", "sha256"}.
        unlogged: what the training metrics had come to since the last logged step.
        attention: what attended over packs; empty in manifests that do not say.
    """

    step: int
    stream: Mapping[str, Any]
    identity: Mapping[str, Any]
    batch: Mapping[str, int]
    layout: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    unlogged: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    attention: str = ""

    def write(self, folder: Path) -> None:
        """Write it, with a hash of its own."""
        values = dataclasses.asdict(self)
        text = json.dumps({**values, "sha256": _hash_of(values)}, indent=1, ensure_ascii=False)
        write_whole(folder / MANIFEST, text)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read it.

        Raises:
            CheckpointError: it is missing, or not as it was written.
        """
        try:
            values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            written = values.pop("sha256")
            manifest = cls(**values)
        except FileNotFoundError as error:
            raise CheckpointError(f"{MANIFEST} is missing: it was never finished, or files were deleted") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{MANIFEST} cannot be read ({error})") from error
        if written != _hash_of(values):
            raise CheckpointError(f"{MANIFEST} is not as it was written")
        return manifest


def record(path: Path, tick: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Size and hash of a file that has reached the disk.

    Args:
        tick: called between blocks, since a large file takes its time.

    Raises:
        OSError: it has not.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": _sha256(file, tick)}


def damage(path: Path, written: Mapping[str, Any], tick: Callable[[], object] = lambda: None) -> str | None:
    """What is wrong with a file, None if it is as it was written; of a file of another size no hash is taken."""
    try:
        size = path.stat().st_size
        if size != written["bytes"]:
            return f"{path.name} has {size} of {written['bytes']} bytes"
        with path.open("rb") as file:
            if _sha256(file, tick) != written["sha256"]:
                return f"{path.name} has other contents than were written (SHA-256)"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error})"
    return None


def _sha256(file: io.BufferedReader, tick: Callable[[], object]) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    while size := file.readinto(block):
        digest.update(block[:size])
        tick()
    return digest.hexdigest()


def own_files(folder: Path, rank: int) -> list[Path]:
    """The files that a rank wrote: those that bear its number; rank 0's are the rest."""
    # All ranks come here at once: each asks the file system only about its own.
    return [path for path in sorted(folder.rglob("*")) if _writer(path) == rank and path.is_file()]


def _writer(path: Path) -> int:
    match = re.search(r"_pp_rank_(\d+)", path.name)
    return int(match[1]) if match else 0


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the new one, whenever the machine stops."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """See to it that the names in a folder, too, survive a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
