"""Files that survive a full disk; those that are replaced survive a power cut too: whole, under names on the disk.

    write under a temporary name -> sync -> rename -> sync the folder
    line of a run's records -> append_whole, without a sync -> step_lines -> the lines that are whole

A rename alone keeps readers from partly written files, but after a power cut the new name may stand for an empty file.
A power cut may cost the last appended records, or leave part of them: to sync each would make steps wait for the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def sync_file(path: Path) -> None:
    """Flush a file's contents to the disk.

    Raises:
        OSError: the file cannot be opened or flushed.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the file system supports it: new names then survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder, the folders in it and all their files.

    Raises:
        OSError: a file cannot be opened or flushed.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
    sync_folder(folder)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Replace a file, which need not exist, by a new one: within it, the path to write the new contents to.

    The new file takes the name when it is complete and on the disk. If anything is raised, the old one stays.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        # The old file goes only when the new one is on the disk.
        sync_file(partial)
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Replace a folder, which need not exist, by a new one: within it, an empty folder to write the new contents into.

    The new folder takes the name when it is complete and on the disk. If anything is raised, the old one stays.

    Raises:
        OSError: a folder or a file cannot be written.
    """
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    try:
        # A process that was killed may have left these.
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        sync_tree(partial)
        # A folder that is not empty cannot be replaced in one step: move the old one aside first.
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.replace(old, folder)


def append_whole(path: Path, data: bytes) -> None:
    """Append all of the data to a file, which need not exist, or nothing. It is not synced: a power cut may take it.

    Raises:
        OSError: the data could not be written; the file has its old contents.
    """
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError:
        # A full disk may have taken a part of the data.
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise


def step_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a run's records, such as metrics.jsonl, each with its JSON object, which has a global step.

    A line that is damaged, or that a kill has cut off, is left out.

    Raises:
        OSError: the file cannot be read.
    """
    # Split as bytes: the cut may be within a character, and JSON leaves other line separators in a text as they are.
    for line in path.read_bytes().split(b"\n"):
        if (entry := _entry(line)) is not None:
            yield line, entry


def _entry(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line of records, if it has a global step."""
    try:
        # From bytes json would guess the encoding: NULs, which a power cut leaves in a file, look like UTF-32.
        entry = json.loads(line.decode())
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


def keep_steps(path: Path, last: int) -> list[str]:
    """Remove the lines of a run's records after a global step, which a resumed run takes again, and damaged lines.

    Returns:
        A message for the user if there were damaged lines. The last line does not count: a kill may have cut it off.

    Raises:
        OSError: the file cannot be read or written; it is unchanged.
    """
    lines = path.read_bytes().split(b"\n")
    entries = [_entry(line) for line in lines]
    whole = ((line, entry) for line, entry in zip(lines, entries, strict=True) if entry is not None)
    kept = [line for line, entry in whole if entry["step"] <= last]
    # Behind the last line's end nothing follows.
    if [*kept, b""] != lines:
        with whole_file(path) as partial:
            partial.write_bytes(b"".join(line + b"\n" for line in kept))
    damaged = entries[:-1].count(None)
    return [f"{path}: {damaged} damaged line{'' if damaged == 1 else 's'} removed"] if damaged else []


def checksum(path: Path, on_block: Callable[[], object] = lambda: None) -> int:
    """CRC-32 of a file: finds damage by disks and programs, not by an attacker; a gigabyte takes about a second.

    Args:
        on_block: called for each block that is read.

    Raises:
        OSError: the file cannot be read.
    """
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
            on_block()
    return value
