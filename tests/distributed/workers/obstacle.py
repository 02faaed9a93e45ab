"""The training script, with an obstacle to writing.

TEST_OBSTACLE: the obstacle. While the steps TEST_OBSTACLE_STEPS, such as `2,4`, are saved:
disk: the file system of save_dir (it should be a small one) is filled to the last byte;
rank1: the operating system lets rank 1 write no file of more than 100 kB.
From the first to the last of those steps, training and all:
full: the file system of save_dir is full;
moved: save_dir has another name.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from minimind.checkpoints.store import Checkpoints
from minimind.training import loop
from minimind.training.listeners.metrics_file import MetricsFile
from minimind.training.run import main

KIND, STEPS = os.environ["TEST_OBSTACLE"], [int(step) for step in os.environ["TEST_OBSTACLE_STEPS"].split(",")]
RANK = os.environ.get("RANK", "0")


@contextlib.contextmanager
def full_disk(filler: Path) -> Iterator[None]:
    if RANK == "0":
        fill(filler)
    yield


def fill(filler: Path) -> None:
    """Write a file until the file system has no byte left."""
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**10, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size) == size:
                    pass


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


def step_behind_obstacle(run, step, *more):
    if RANK == "0" and step in (STEPS[0], STEPS[-1] + 1):
        (listener,) = (one for one in run.events._listeners if isinstance(one, MetricsFile))
        folder, begins = listener._path.parent, step == STEPS[0]
        filler, away = folder.parent / "filler", folder.with_name("away")
        if KIND == "moved":
            os.rename(*((folder, away) if begins else (away, folder)))
        elif begins:
            fill(filler)
        else:
            filler.unlink()
    take_step(run, step, *more)


if __name__ == "__main__":
    save, take_step = Checkpoints.save, loop._take_step
    if KIND in ("disk", "rank1"):
        Checkpoints.save = save_behind_obstacle
    else:
        loop._take_step = step_behind_obstacle
    main()
