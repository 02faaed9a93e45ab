"""Compares the time of a step of training with that of another commit, step by step in turn.

    python -m tests.benchmarks.against REF [--steps 200] [--warmup 20] [--most 1.03] [-- flags of launch/train_dpo.py]

    git worktree of REF, this tree -> a process of each that trains the demo -> one step of one, one of the other, ...
                                   -> ratio of medians, with an interval

Both take the same steps on the same pairs, and one waits while the other computes, so that what else the machine does
meets both alike. A step is a whole turn of the loop: data, reference, forward, backward, optimizer, metrics and
listeners. The status is 1 if the whole interval lies above `--most`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

REPO = Path(__file__).resolve().parents[2]
# File descriptors of a worker: it waits at the first, and writes the seconds of a step into the second.
_PIPES = "MINIMIND_BENCH_PIPES"
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratio:
    """Time of this tree's steps over that of the other's.

    Attributes:
        medians: of the seconds of a step: the other's, this tree's.
        value: this median over the other.
        interval: in which 95 % of the ratios lie when pairs of steps are drawn again.
    """

    medians: tuple[float, float]
    value: float
    interval: tuple[float, float]


def ratio_of(base: Sequence[float], own: Sequence[float]) -> Ratio:
    """Compare the seconds of steps that were taken in pairs."""
    pairs = np.array([base, own])
    draws = np.random.default_rng(0).integers(pairs.shape[1], size=(_RESAMPLES, pairs.shape[1]))
    medians = np.median(pairs[:, draws], axis=2)
    low, high = np.quantile(medians[1] / medians[0], (0.025, 0.975))
    was, now = map(float, np.median(pairs, axis=1))
    return Ratio(medians=(was, now), value=now / was, interval=(float(low), float(high)))


def take_turns(
    base: Callable[[], float], own: Callable[[], float], steps: int, warmup: int
) -> tuple[list[float], list[float]]:
    """Seconds of the steps of both after the warm-up; which one is first changes from pair to pair."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(warmup + steps):
        order = ((0, base), (1, own)) if number % 2 == 0 else ((1, own), (0, base))
        for place, step in order:
            seconds = step()
            if number >= warmup:
                found[place].append(seconds)
    return found


class Worker:
    """A training that takes a step whenever it is asked to."""

    def __init__(self, tree: Path, folder: Path, flags: Sequence[str], port: int) -> None:
        asked, ask = os.pipe()
        answer, answered = os.pipe()
        environment = {
            **os.environ,
            **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"},
            "MASTER_PORT": str(port),
            "PYTHONPATH": str(tree),
            _PIPES: f"{asked} {answered}",
        }
        self._log = folder / f"{port}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), str(tree), *flags],
                cwd=tree,
                env=environment,
                pass_fds=(asked, answered),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        os.close(asked)
        os.close(answered)
        self._ask: IO[str] = os.fdopen(ask, "w")
        self._answer: IO[str] = os.fdopen(answer)

    def step(self) -> float:
        """Take a step; its seconds."""
        with contextlib.suppress(BrokenPipeError):
            self._ask.write("step\n")
            self._ask.flush()
        line = self._answer.readline()
        if not line:
            sys.exit(f"a training has ended before its last step:\n{self._log.read_text()[-3000:]}")
        return float(line)

    def end(self) -> None:
        """End the process: its weights are not wanted."""
        self.process.kill()
        self.process.wait()


def work(tree: str, flags: Sequence[str]) -> None:
    """A worker's process: train, and wait before each step."""
    sys.path[0] = tree
    import minimind.training.loop as loop
    from minimind.training.run import main as train

    assert Path(loop.__file__).is_relative_to(tree), f"{loop.__file__} is not of {tree}"
    asked, answered = (
        os.fdopen(int(number), mode) for number, mode in zip(os.environ[_PIPES].split(), "rw", strict=True)
    )
    real, started = loop.train_step, 0.0

    def in_turn(*arguments, **options):
        nonlocal started
        if started:
            answered.write(f"{time.perf_counter() - started}\n")
            answered.flush()
        if not asked.readline():
            os._exit(0)
        started = time.perf_counter()
        real(*arguments, **options)

    loop.train_step = in_turn
    train(list(flags))


@contextlib.contextmanager
def checked_out(ref: str, folder: Path) -> Iterator[Path]:
    """A worktree of a commit."""
    tree = folder / "tree"
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), ref], cwd=REPO, check=True)
    try:
        yield tree
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=REPO, check=True)


def measure(ref: str, steps: int, warmup: int, flags: Sequence[str]) -> Ratio:
    """Train with both trees in turn."""
    from tests.distributed.launching import free_port

    with tempfile.TemporaryDirectory(prefix="minimind-against-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        tree = stack.enter_context(checked_out(ref, folder))
        workers = []
        for place, one in enumerate((tree, REPO)):
            # One step more: the seconds of a step are known when the next one begins.
            own = ["--deepspeed", "ds_configs/zero2.json", "--epochs", "1000", "--max_steps", str(steps + warmup + 1)]
            own += ["--save_dir", str(folder / f"run{place}"), "--save_interval", "0", *flags]
            workers.append(Worker(one, folder, own, free_port()))
            stack.callback(workers[-1].end)
        return ratio_of(*take_turns(workers[0].step, workers[1].step, steps, warmup))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.against", description=__doc__.splitlines()[0])
    parser.add_argument("ref", help="commit to compare with")
    parser.add_argument("--steps", type=int, default=200, help="steps that count (default: 200)")
    parser.add_argument("--warmup", type=int, default=20, help="steps before them (default: 20)")
    parser.add_argument("--most", type=float, default=1.03, help="ratio that is not an error (default: 1.03)")
    parser.add_argument("flags", nargs="*", help="flags of launch/train_dpo.py, after --; without data the demo trains")
    given = parser.parse_args()
    found = measure(given.ref, given.steps, given.warmup, given.flags)
    was, now = (f"{1000 * seconds:.2f} ms" for seconds in found.medians)
    low, high = found.interval
    print(f"a step of {given.ref}: {was}, of this tree: {now} (medians of {given.steps} steps in turn)")
    print(f"ratio {found.value:.4f}, 95 % interval {low:.4f} to {high:.4f}")
    sys.exit(int(low > given.most))


if __name__ == "__main__":
    if _PIPES in os.environ:
        work(sys.argv[1], sys.argv[2:])
    else:
        main()
