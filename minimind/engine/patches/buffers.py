"""DeepSpeed's buffer files in /dev/shm: reserved before DeepSpeed writes them, removed when their run is dead.

    init_process_group -> remove_dead -> reserve (every rank) -> vote -> DeepSpeed fills the files and maps them
                                                              -> no room: DeepSpeed is kept from making them

DeepSpeed does not notice that /dev/shm is full, and writes through a mapping that failed: the ranks die of SIGSEGV. It
never deletes the files either. A reserved file has its blocks, so that DeepSpeed's writes cannot fail.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from minimind.engine.patches.registry import Patch, PatchSelection

SHM = Path("/dev/shm")
_PREFIX = "deepspeed_allreduce_buffer_"
# Size of a rank's buffer file: two states, and two areas each for small and for large tensors.
BUFFER_BYTES = 8 + 2 * (2**20 + 2**25)
# Another container may share /dev/shm and not its processes. All ranks have mapped a file that is so old, and mapped
# files work without their names.
_UNSEEN_SECONDS = 120.0

_COMM = "deepspeed.comm.torch"
SKIP_BUFFERS = Patch(
    name="skip_buffers",
    purpose="keeps DeepSpeed from compiling and filling shared memory that the ranks do not use, or that does not fit",
    without="DeepSpeed compiles its CPU communication in every run, and CPU ranks need 66 MiB of /dev/shm each",
    names=(f"{_COMM}:build_shm_op",),
)


def buffer_file(rank: int) -> Path:
    """DeepSpeed's name of a rank's buffer file."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    return SHM / f"{_PREFIX}{os.getuid()}_{address}_{port}_{rank}"


def skip_buffers(patches: PatchSelection) -> bool:
    """Keep DeepSpeed from its shared memory in this process; before `init_distributed`. Returns whether it is kept."""
    uses = patches.uses(SKIP_BUFFERS)
    if uses:
        module: Any = importlib.import_module(_COMM)
        module.build_shm_op = lambda: None
    return uses


class Reservation:
    """One rank's buffer file, with all its blocks. All ranks make theirs together, on one machine.

    It is kept open: another run's `remove_dead` would take a file that nobody has open for that of a dead run.

    Args:
        rank: this process.
        size: world size.

    Attributes:
        problem: None, the same on all ranks, if all buffers fit; else, on all ranks, why not and what to do.
    """

    def __init__(self, rank: int, size: int) -> None:
        if rank == 0:
            remove_dead(SHM)
        dist.barrier()  # the others have the room of the removed files too
        self._path, self._descriptor = buffer_file(rank), -1
        own = self._reserve()
        fits = torch.tensor(int(own is None))
        dist.all_reduce(fits, op=dist.ReduceOp.MIN)
        self.problem = None if fits else f"{own or 'another rank has no room'}; {_room(size)}"
        if not fits:
            self.release()

    def release(self) -> None:
        """Remove the file's name. Its memory is freed when the last process that has mapped it ends."""
        self._path.unlink(missing_ok=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _reserve(self) -> str | None:
        """Make the file; returns why that failed."""
        try:
            # The name is this run's, as its port is.
            self._path.unlink(missing_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.posix_fallocate(self._descriptor, 0, BUFFER_BYTES)
        except OSError as error:
            return str(error)
        return None


def _room(size: int) -> str:
    needed = f"{size} ranks take {size * BUFFER_BYTES / 2**20:.0f} MiB there"
    with contextlib.suppress(OSError):
        disk = shutil.disk_usage(SHM)
        needed += f", {disk.free / 2**20:.0f} of {disk.total / 2**20:.0f} MiB are free"
        left = sum(path.stat().st_blocks * 512 for path in SHM.glob(f"{_PREFIX}*"))
        if left:
            needed += f", and {left / 2**20:.0f} MiB are in {_PREFIX}*, which you may delete if no other run uses them"
    return f"{needed}. Start the container with --shm-size=1g"


def remove_dead(folder: Path) -> None:
    """Remove the buffers of this user's dead runs: no process has them open."""
    mine = list(folder.glob(f"{_PREFIX}{os.getuid()}_*"))
    if not mine:
        return
    used, all_seen = _open_files()
    for path in mine:
        with contextlib.suppress(OSError):
            old = time.time() - path.stat().st_mtime > _UNSEEN_SECONDS
            if str(path) not in used and (old or all_seen):
                path.unlink()


def _open_files() -> tuple[set[str], bool]:
    """Files that processes of this user have open, and whether these are all of the user's processes on the machine.

    DeepSpeed keeps its buffers open as long as it has them mapped.
    """
    used, all_seen = set(), _in_first_namespace()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for entry in (process / "fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    used.add(os.readlink(entry))
        except PermissionError:
            # Process 1 of the first namespace is the system's, which root may not look into.
            with contextlib.suppress(OSError):
                all_seen &= process.name == "1" or process.stat().st_uid != os.getuid()
        except OSError:
            continue  # it has ended
    return used, all_seen


def _in_first_namespace() -> bool:
    """Whether this process is in the machine's first process namespace, not in a container's."""
    # The kernel's number of it: PROC_PID_INIT_INO.
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid") == f"pid:[{0xEFFFFFFC}]"
    return False
