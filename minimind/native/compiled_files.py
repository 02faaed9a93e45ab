"""Libraries that earlier processes have compiled, so that a start need not compile.

They are in `$XDG_CACHE_HOME/minimind/native`.

    sources, compiler, flags, processor, torch -> key_of -> key -> find -> library, or None: compile it
                                                                -> keep -> KEY-DIGEST.so, for the processes after this

No process waits for another: each that finds nothing compiles, and a file gets its name when it is whole. A file whose
contents are not those of its digest, or that another user could have written, is no library. Without a folder that can
be written every process compiles for itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import tempfile
import time
from pathlib import Path

_DAY = 86400.0
_UNUSED_DAYS = 30
_DIGITS = 32
# What a compiler reads besides its command.
_VARIABLES = ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH", "GCC_EXEC_PREFIX")
# What the kernel says of a processor that decides about its instructions.
_IDENTITY = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU", "Features")


def key_of(*parts: str | bytes) -> str:
    """A name for what is compiled of these parts on this machine, in this environment."""
    digest = hashlib.sha256()
    environment = [os.environ.get(name, "") for name in _VARIABLES]
    for part in (*parts, _processor(), *environment):
        data = part if isinstance(part, bytes) else part.encode()
        # With its length, so that two lists of parts with the same concatenation have different keys.
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:_DIGITS]


def find(key: str) -> bytes | None:
    """The library of a key, as it was kept; None if there is none."""
    with contextlib.suppress(OSError, RuntimeError):
        # Loading it runs its code: a file of another user, or one that others may write, is not taken.
        for path in _folder().glob(f"{key}-*.so"):
            status = path.stat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                continue
            data = path.read_bytes()
            if path.stem == f"{key}-{_digest(data)}":
                if time.time() - status.st_mtime > _DAY:
                    os.utime(path)
                return data
            path.unlink()
    return None


def keep(key: str, data: bytes) -> None:
    """Keep a library, if it can be written, and remove those that no process has used for a month."""
    with contextlib.suppress(OSError, RuntimeError):
        folder = _folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                # By its own digest in the name: two processes that compiled different bytes do not overwrite each
                # other.
                os.replace(file.name, folder / f"{key}-{_digest(data)}.so")
            except OSError:
                os.unlink(file.name)
                raise
        for path in folder.iterdir():
            # Among them what a process left that was killed while it wrote.
            if time.time() - path.stat().st_mtime > _UNUSED_DAYS * _DAY:
                path.unlink()


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimind" / "native"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def _processor() -> str:
    """What the compiler's `-march=native` depends on; the machine's name where the system does not tell."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            first = file.read().partition("\n\n")[0]
    except OSError:
        first = ""
    lines = [line for line in first.splitlines() if line.startswith(_IDENTITY)]
    return "\n".join([platform.machine(), *(lines or [platform.node()])])
