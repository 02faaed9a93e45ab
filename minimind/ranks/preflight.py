"""Checks before anything is loaded: all ranks have the same programs, settings and files.

versions, settings and file hashes of every rank -> gather -> one error that lists every difference with its ranks

One rank per machine reads the files. Large files are sampled: another file, an old copy or an incomplete transfer
differs in its size or in one of the samples.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from minimind.errors import ConfigError, LaunchError
from minimind.ranks.collectives import agree, all_reduce, from_main, gather
from minimind.ranks.world import World
from minimind.version import __version__

# Larger files are sampled: 64 samples of 64 KiB, spread evenly from the first byte to the last.
_WHOLE_BYTES = 2**23
_SAMPLES, _SAMPLE_BYTES = 64, 2**16
# A network file system caches folders, so another machine's new file may appear with a delay.
_SHARED_SECONDS = 40.0
_MISSING, _NOT_GIVEN = "missing", "not given"


def check_alike(world: World, settings: Mapping[str, object], files: Mapping[str, Path], save_dir: Path) -> None:
    """Check that the ranks can train together.

    Args:
        world: the ranks.
        settings: name -> value, which must be the same on all ranks.
        files: name -> file or folder, whose contents must be the same on all machines.
        save_dir: the run's folder, which all machines must share.

    Raises:
        LaunchError: on all ranks; lists every difference, with its values and ranks.
    """
    agree(world, lambda: check_sum(world))
    if world.size == 1:
        return
    problems = _compare_settings(world, {**versions(), **{name: str(value) for name, value in settings.items()}})
    problems += _compare_files(world, files)
    # Writes into the folder, so it runs only if the ranks agree about which folder that is.
    problems = problems or _check_shared(world, save_dir)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise LaunchError(f"the ranks cannot train together:\n{listed}", agreed=True)


def check_sum(world: World) -> None:
    """Sum a vector over the ranks, and compare it with the known sum.

    Raises:
        LaunchError: the sum is wrong.
    """
    # Integers are exact for any number of ranks: i * (1 + 2 + ... + n) = i * n * (n + 1) / 2.
    values = torch.arange(1024, device=world.device)
    got = all_reduce(values * (world.rank + 1))
    expected = values * (world.size * (world.size + 1) // 2)
    if not torch.equal(got, expected):
        wrong = int((got != expected).sum())
        raise LaunchError(
            f"a sum over the ranks has {wrong} wrong values of 1024: the connection between the ranks is faulty"
        )


def versions() -> dict[str, str]:
    """Versions of everything that decides the numbers of a run: Python, the libraries, this project's source."""
    packages = {
        f"version of {name}": importlib.metadata.version(name) for name in ("torch", "deepspeed", "transformers")
    }
    # A copy of the project may have been edited without a change of its version.
    source = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for path in sorted(root.rglob("*.py")):
        source.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return {
        "version of Python": ".".join(platform.python_version_tuple()[:2]),
        **packages,
        "version of minimind": f"{__version__} (source {source.hexdigest()[:8]})",
    }


def content_hash(path: Path) -> str:
    """Text that identifies the contents of a file, or of the files directly in a folder.

    Returns:
        A hash of names, sizes and bytes (samples of the bytes if the file is large); or the reason why there is none.
    """
    digest = hashlib.sha256()
    try:
        if not path.exists():
            return _MISSING
        for file in [path] if path.is_file() else sorted(path.iterdir()):
            if file.is_file():
                digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
                _add_bytes(digest, file)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return f"content {digest.hexdigest()[:12]}"


def _add_bytes(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
            return
        for number in range(_SAMPLES):
            # The first sample starts at 0, the last one ends at the end of the file.
            file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))


def _compare_settings(world: World, settings: Mapping[str, str]) -> list[str]:
    """Differences between the settings of the ranks. All ranks must call."""
    of_ranks = gather(world, settings)
    problems = [
        _difference(world, name, {rank: own.get(name, _NOT_GIVEN) for rank, own in enumerate(of_ranks)})
        for name in of_ranks[0]
    ]
    return [problem for problem in problems if problem is not None]


def _compare_files(world: World, files: Mapping[str, Path]) -> list[str]:
    """Differences between the files of the machines. All ranks must call."""
    reads = world.local_rank == 0
    contents = {name: (str(path), content_hash(path)) for name, path in files.items()} if reads else None
    of_readers = {rank: own for rank, own in enumerate(gather(world, contents)) if own is not None}
    problems = [
        _file_difference(world, name, {rank: own.get(name, ("", _NOT_GIVEN)) for rank, own in of_readers.items()})
        for name in sorted(set().union(*of_readers.values()))
    ]
    return [problem for problem in problems if problem is not None]


def _file_difference(world: World, name: str, files: Mapping[int, tuple[str, str]]) -> str | None:
    """Text about a file that differs; `files` are (path, content hash) by rank. None if all are equal."""
    missing = [rank for rank, (_, content) in files.items() if content == _MISSING]
    present = [rank for rank in files if rank not in missing]
    if missing and present:
        return (
            f"{name} {files[missing[0]][0]}: exists for {world.name(present)}, but not for {world.name(missing)}; "
            "copy it to every machine, or give a path that all of them share"
        )
    return _difference(world, name, {rank: content for rank, (_, content) in files.items()})


def _difference(world: World, name: str, values: Mapping[int, str]) -> str | None:
    """Text about a value that differs, with the ranks of each value; None if all ranks have the same."""
    ranks: dict[str, list[int]] = {}
    for rank, value in values.items():
        ranks.setdefault(value, []).append(rank)
    if len(ranks) == 1:
        return None
    return f"{name}: " + ", ".join(f"{value} on {world.name(some)}" for value, some in ranks.items())


def _check_shared(world: World, folder: Path) -> list[str]:
    """Check that every machine sees the files of rank 0 in the run's folder. All ranks must call.

    A checkpoint consists of files of all ranks, and all ranks read it.
    """
    first_of_machine = gather(world, world.local_rank == 0)
    if sum(first_of_machine) == 1:
        return []
    # A new name in every run: a file system may show an old file of the same name.
    token = folder / f".seen-by-all-{os.getpid()}-{time.time_ns()}"
    token = from_main(world, lambda: _write_token(token))
    invisible = world.local_rank == 0 and not _appears(token)
    ranks = [rank for rank, one in enumerate(gather(world, invisible)) if one]
    if world.is_main:
        token.unlink()
    if not ranks:
        return []
    return [
        f"--save_dir {folder}: {world.name(ranks)} cannot see a file that {world.name([0])} has written there; "
        "give a folder on a file system that all machines share"
    ]


def _write_token(token: Path) -> Path:
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        raise ConfigError(f"--save_dir {token.parent}: cannot be written ({error})") from error
    return token


def _appears(path: Path) -> bool:
    """Whether the file becomes visible within the time limit."""
    until = time.monotonic() + _SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True
