"""Before anything is loaded: do all ranks run the same programs, with the same settings, on the same files?

versions, settings, file contents of every rank -> gathered -> one error that names what differs, on which ranks

Files are read by one rank per machine. Large ones are sampled: what goes wrong between machines (another file, an old
copy, a transfer that broke off) shows in the size or in any of the samples.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from minimind.errors import ConfigError, LaunchError
from minimind.ranks.collectives import agree, all_reduce, from_main, gather
from minimind.ranks.world import World
from minimind.version import __version__

_WHOLE_BYTES = 2**23
_SAMPLES, _SAMPLE_BYTES = 64, 2**16
# A network file system may take so long to show another machine's new file.
_SHARED_SECONDS = 40.0
_MISSING, _NOT_GIVEN = "missing", "not given"


def check_alike(world: World, settings: Mapping[str, object], files: Mapping[str, Path], save_dir: Path) -> None:
    """Check that the ranks can train together.

    Args:
        settings: name -> value, which must be the same on all ranks.
        files: name -> file or folder, whose contents must be the same on all machines.
        save_dir: the run's folder, which must be the same on all machines.

    Raises:
        LaunchError: on all ranks; names every difference, with its values and ranks.
    """
    agree(world, lambda: check_sum(world))
    if world.size == 1:
        return
    mine = {**versions(), **{name: str(value) for name, value in settings.items()}}
    facts = gather(world, mine)
    problems = [_difference(world, name, [said.get(name, _NOT_GIVEN) for said in facts]) for name in facts[0]]
    leads = world.local_rank == 0
    contents = {name: (str(path), content_hash(path)) for name, path in files.items()} if leads else None
    told = {rank: said for rank, said in enumerate(gather(world, contents)) if said is not None}
    for name in sorted(set().union(*told.values())):
        of_ranks = {rank: said.get(name, ("", _NOT_GIVEN)) for rank, said in told.items()}
        problems.append(_file_difference(world, name, of_ranks))
    problems = [problem for problem in problems if problem]
    if not problems:
        problems = _check_shared(world, save_dir)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise LaunchError(f"the ranks cannot train together:\n{listed}", agreed=True)


def check_sum(world: World) -> None:
    """Sum a vector over the ranks, and compare with what it must be.

    Raises:
        LaunchError: the connection between the ranks gives wrong sums.
    """
    # Whole numbers, which stay exact on however many ranks.
    place = torch.arange(1024, device=world.device)
    got = all_reduce(place * (world.rank + 1))
    expected = place * (world.size * (world.size + 1) // 2)
    if not torch.equal(got, expected):
        wrong = int((got != expected).sum())
        raise LaunchError(f"a sum over the ranks is wrong in {wrong} of 1024 places: the connection cannot be trusted")


def versions() -> dict[str, str]:
    """What of a rank's programs decides the numbers."""
    packages = {
        f"version of {name}": importlib.metadata.version(name) for name in ("torch", "deepspeed", "transformers")
    }
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
    """A hash of a file's bytes, or of all files that lie in a folder; of large files the size and samples."""
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
            file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))


def _file_difference(world: World, name: str, said: Mapping[int, tuple[str, str]]) -> str:
    """The same for a file: (path, content) by rank."""
    missing = [rank for rank, (_, content) in said.items() if content == _MISSING]
    there = [rank for rank in said if rank not in missing]
    if missing and there:
        return (
            f"{name} {said[missing[0]][0]}: is there for {world.name(there)}, not for "
            f"{world.name(missing)}; copy it to every machine, or give a path that all of them share"
        )
    return _difference(world, name, [content for _, content in said.values()], list(said))


def _difference(world: World, name: str, values: Sequence[str], of: Sequence[int] | None = None) -> str:
    """What differs between ranks (all, or those in `of`), as a user reads it; empty if nothing does."""
    ranks: dict[str, list[int]] = {}
    for rank, value in zip(of or range(len(values)), values, strict=True):
        ranks.setdefault(value, []).append(rank)
    if len(ranks) == 1:
        return ""
    return f"{name}: " + ", ".join(f"{value} on {world.name(some)}" for value, some in ranks.items())


def _check_shared(world: World, folder: Path) -> list[str]:
    """Whether every machine sees what rank 0 writes into the run's folder: a checkpoint has parts of all ranks."""
    leads = gather(world, world.local_rank == 0)
    if sum(leads) == 1:
        return []
    token = folder / f".seen-by-all-{os.getpid()}-{time.time_ns()}"
    token = from_main(world, lambda: _write_token(token))
    blind = world.local_rank == 0 and not _appears(token)
    ranks = [rank for rank, one in enumerate(gather(world, blind)) if one]
    if world.is_main:
        token.unlink()
    if not ranks:
        return []
    return [
        f"--save_dir {folder}: what {world.name([0])} writes there is not seen by {world.name(ranks)}; "
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
    until = time.monotonic() + _SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True
