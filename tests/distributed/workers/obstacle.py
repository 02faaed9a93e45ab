"""The training script, with an obstacle to writing while some steps are saved.

TEST_OBSTACLE_STEPS: the steps, such as `2,4`. TEST_OBSTACLE: the obstacle,
disk: the file system of save_dir (it should be a small one) is filled to the last byte;
rank1: the operating system lets rank 1 write no file of more than 100 kB.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from minimind.checkpoints.store import Checkpoints
from minimind.training.run import main

KIND, STEPS = os.environ["TEST_OBSTACLE"], [int(step) for step in os.environ["TEST_OBSTACLE_STEPS"].split(",")]
RANK = os.environ.get("RANK", "0")


@contextlib.contextmanager
def full_disk(filler: Path) -> Iterator[None]:
    if RANK == "0":
        with filler.open("wb", buffering=0) as file:
            for size in (2**20, 2**10, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size) == size:
                        pass
    yield


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if RANK == "1" else soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_behind_obstacle(self, policy, step, *state, **options):
    filler = self.folder / "filler"
    if RANK == "0":
        filler.unlink(missing_ok=True)
    if step not in STEPS:
        return save(self, policy, step, *state, **options)
    with contextlib.ExitStack() as stack:
        stack.enter_context(full_disk(filler) if KIND == "disk" else small_files())
        return save(self, policy, step, *state, **options)


if __name__ == "__main__":
    save = Checkpoints.save
    Checkpoints.save = save_behind_obstacle
    main()
