"""DeepSpeed compiles its ops in one process at a time, and never waits in silence for a compile that was killed.

    OpBuilder.jit_load -> folder that can be written -> turn (flock) -> torch's lock, if one is left -> torch compiles

Torch's own lock is a file that a compile makes and removes: if it is killed, every later process waits for ever. A turn
has its holder's name, and says while it compiles. A turn that says so and is free is that of a dead process of this
project, and so is torch's lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minimind.engine.patches.registry import Patch, PatchSelection, find
from minimind.errors import ConfigError
from minimind.locks import NO_FLOCK

_BUILDER = "deepspeed.ops.op_builder.builder:OpBuilder"
_FOLDER = "torch.utils.cpp_extension:_get_build_directory"
GUARD_COMPILES = Patch(
    name="guard_compiles",
    purpose="finds the lock of a compile that was killed, and says what a start waits for",
    without="after a compile that was killed, a start may wait without a message",
    names=(f"{_BUILDER}.jit_load", _FOLDER),
)

_TURN = ".minimind-compiles"
# Torch has the file open while it compiles. Another container may have it open where this process cannot see it; no op
# takes that long.
_UNSEEN_SECONDS = 120.0
# Without a file system of this machine alone, only the age tells; then the user decides.
_STALE_SECONDS = 300.0
_POLL_SECONDS = 0.5
# File systems that no other machine writes into.
_LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "ramfs", "overlay")


def guard_compiles(patches: PatchSelection) -> None:
    """Guard all compiles of DeepSpeed in this process, from here on."""
    if not patches.uses(GUARD_COMPILES):
        return
    builder = find(_BUILDER)
    original = builder.jit_load

    @functools.wraps(original)
    def jit_load(self: Any, verbose: bool = True) -> Any:
        return compiled(self.name, lambda: original(self, verbose))

    builder.jit_load = jit_load


def compiled(op: str, load: Callable[[], Any]) -> Any:
    """Compile an op of DeepSpeed and load it, or load what an earlier run has compiled.

    Args:
        op: DeepSpeed's name of it, which is that of its folder.
        load: compiles it, if it must, and loads it.

    Raises:
        ConfigError: the folder cannot be written, the compiler fails, or a lock is old and its owner unknown.
    """
    folder = _folder_of(op)
    if any(folder.glob(f"{op}*.so")) and not (folder / "lock").exists():
        return _load(op, folder, load)
    with _Turn(folder / _TURN, op) as turn:
        _pass_lock(folder / "lock", turn.died)
        turn.note(compiling=True)
        if not any(folder.glob(f"{op}*.so")):
            print(f"DeepSpeed compiles {op}, once on this machine: about half a minute", flush=True)
        return _load(op, folder, load)


def _load(op: str, folder: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ImportError as error:
        raise _error(f"{folder}: DeepSpeed's {op} was compiled for other libraries ({error}); delete it") from error
    except RuntimeError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line for line in lines[1:] if "error" in line), lines[0]).strip()
        raise _error(f"DeepSpeed cannot compile {op} ({reason}); are ninja and a C++ compiler installed?") from error


def _folder_of(op: str) -> Path:
    """Torch's folder of an op; it can be written."""
    remedy = "set TORCH_EXTENSIONS_DIR to a folder that can be written"
    named = any(os.environ.get(name) for name in ("TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME"))
    if not named and os.path.expanduser("~") == "~":
        raise _error(f"DeepSpeed compiles {op}, and there is no home directory for the result; {remedy}")
    try:
        folder = Path(find(_FOLDER)(op, False))
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" ")
    except OSError as error:
        raise _error(f"DeepSpeed compiles {op} and cannot keep the result ({error}); {remedy}") from error
    return folder


class _Turn:
    """The turn to compile in a folder, held in a `with` block.

    Attributes:
        died: whether a process has died while it compiled here.
    """

    def __init__(self, path: Path, op: str) -> None:
        self._path, self._op = path, op
        self.died = False

    def __enter__(self) -> _Turn:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                last = self._noted()
                _say(f"  waiting for process {last.get('pid')} on {last.get('host')}, which compiles {self._op}")
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            self.died = bool(self._noted().get("compiling"))
        except OSError as error:
            # A file system without flock: torch's lock alone keeps the processes apart.
            if error.errno not in NO_FLOCK:
                os.close(self._descriptor)
                raise _error(f"{self._path}: cannot be locked ({error})") from error
        # A lock that a dead process has left is still there if this one dies before it removes it.
        self.note(compiling=self.died)
        return self

    def note(self, *, compiling: bool) -> None:
        """Write who holds the turn."""
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "compiling": compiling})
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, holder.encode(), 0)

    def __exit__(self, *_: object) -> None:
        os.truncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _noted(self) -> dict[str, Any]:
        """What the last holder has written; empty if it has ended or has written nothing yet."""
        try:
            return dict(json.loads(os.pread(self._descriptor, 4096, 0)))
        except (OSError, ValueError, TypeError):
            return {}


def _pass_lock(lock: Path, died: bool) -> None:
    """Wait for torch's lock, or remove it if its owner is dead.

    Args:
        died: the last process of this project that compiled here died in it.
    """
    told = False
    while lock.exists():
        # Torch closes the file an instant before it removes it, and holds it for an instant when it only loads.
        owner = _user_of(lock)
        time.sleep(_POLL_SECONDS)
        owner = owner or _user_of(lock)
        try:
            found = lock.stat()
        except FileNotFoundError:
            return
        age = time.time() - found.st_mtime
        # Files that another user has open cannot be seen.
        seen = found.st_uid == os.geteuid() and age > _UNSEEN_SECONDS and _is_local(lock)
        if owner is None and (died or seen):
            lock.unlink(missing_ok=True)
            print(f"  removed {lock}, the lock of a compile that was killed", flush=True)
        elif owner is None and age > _STALE_SECONDS:
            raise _error(
                f"{lock}: lock of a compile that never ended ({age / 60:.0f} minutes old), perhaps on another machine; "
                "every run would wait for it for ever. Delete the file."
            )
        elif not told:
            told = True
            _say(f"  waiting for {owner or 'a process that cannot be seen from here'}, which compiles: {lock}")


def _user_of(lock: Path) -> str | None:
    """A process of this machine that has the lock open, or works in its folder (the compiler of a killed process)."""
    path, folder = os.path.realpath(lock), os.path.realpath(lock.parent)
    for process in Path("/proc").glob("[0-9]*"):
        # Processes end and files are closed meanwhile; those of other users cannot be read.
        with contextlib.suppress(OSError):
            if os.readlink(process / "cwd") == folder or path in map(_target, (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return None


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _is_local(path: Path) -> bool:
    """Whether no other machine writes into the path's file system, as far as its type tells."""
    device = path.parent.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[2] == number:
            return fields[fields.index("-") + 1] in _LOCAL
    return False


def _say(message: str) -> None:
    # One line per machine: its other ranks wait for the same process, or for the first one.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(message, flush=True)


def _error(message: str) -> ConfigError:
    # Every rank of a machine raises it; other machines may have other folders.
    return ConfigError(message, agreed=os.environ.get("LOCAL_RANK", "0") != "0")
