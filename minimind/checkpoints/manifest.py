"""The manifest: describes a checkpoint, with the size and hash of every file; written last.

    files on the disk -> fingerprint_file -> Manifest -> write    a folder without one is an unfinished checkpoint
    folder -> read -> Manifest -> find_damage                     what is wrong with a file

Hashes are SHA-256: `sha256sum` can check them, and processors compute it in hardware.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minimind.durable import whole_file
from minimind.engine.patches.checkpoint_files import rank_of_file
from minimind.errors import CheckpointError

MANIFEST = "manifest.json"
_BLOCK_BYTES = 2**20
# Names of fields in manifests of version 0.1.0 -> names of today.
_RENAMED = {"layout": "sharding"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of a checkpoint.

    Attributes:
        step: the global step after which it was written.
        stream: position in the stream of pairs at that step.
        identity: settings that must be equal for a run to resume from it.
        batch: how a global batch was split: batch_size, accumulation_steps.
        sharding: how the states are partitioned: ranks, ZeRO section, optimizer. If it differs, states are resharded.
        files: file name -> {"bytes", "sha256"}.
        unlogged: sums of the training metrics since the last logged step.
        attention: attention backend of the packs; empty in manifests of versions that did not record it.
        listeners: state of the training loop's listeners by name, JSON values; empty in older manifests.
    """

    step: int
    stream: Mapping[str, Any]
    identity: Mapping[str, Any]
    batch: Mapping[str, int]
    sharding: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    unlogged: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    attention: str = ""
    listeners: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it, with a hash of its own fields."""
        values = dataclasses.asdict(self)
        text = json.dumps({**values, "sha256": _hash_values(values)}, indent=1, ensure_ascii=False)
        write_atomically(folder / MANIFEST, text)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a checkpoint.

        Raises:
            CheckpointError: it is missing, is no manifest, or does not match its own hash.
        """
        try:
            values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            written = values.pop("sha256")
            manifest = cls(**{_RENAMED.get(name, name): value for name, value in values.items()})
        except FileNotFoundError as error:
            raise CheckpointError(f"{MANIFEST} is missing: the save did not finish, or files were deleted") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{MANIFEST} cannot be read ({error})") from error
        # Over the fields in the file, not over the defaults that an older manifest lacks.
        if written != _hash_values(values):
            raise CheckpointError(f"{MANIFEST} does not match its own hash (SHA-256)")
        return manifest


def fingerprint_file(path: Path, on_progress: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file, after it has been flushed to the disk.

    Args:
        path: the file.
        on_progress: called after each block of 1 MiB.

    Raises:
        OSError: the file cannot be read or flushed.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": _sha256(file, on_progress)}


def find_damage(path: Path, written: Mapping[str, Any], on_progress: Callable[[], object] = lambda: None) -> str | None:
    """What is wrong with a file; None if it is intact. A file of the wrong size is not hashed.

    Args:
        path: the file.
        written: its entry in the manifest, from `fingerprint_file`.
        on_progress: called after each block of 1 MiB.
    """
    try:
        size = path.stat().st_size
        if size != written["bytes"]:
            return f"{path.name} has {size} of {written['bytes']} bytes"
        with path.open("rb") as file:
            if _sha256(file, on_progress) != written["sha256"]:
                return f"{path.name} has changed since it was written (SHA-256 differs)"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error})"
    return None


def _sha256(file: io.BufferedReader, on_progress: Callable[[], object]) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    while size := file.readinto(block):
        digest.update(block[:size])
        on_progress()
    return digest.hexdigest()


def own_files(folder: Path, rank: int) -> list[Path]:
    """The files that a rank wrote: those with its number in their name; files without a number are rank 0's."""
    # The name is compared first: all ranks call this at once, and each should stat only its own files.
    return [path for path in sorted(folder.rglob("*")) if (rank_of_file(path.name) or 0) == rank and path.is_file()]


def write_atomically(path: Path, text: str) -> None:
    """Write a text file: after a crash at any moment it has either its old or its new contents."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _hash_values(values: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's fields as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
