"""Launches in the background, which a test can signal, kill or stop while they run, rank by rank."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable

import psutil

from tests.distributed.launching import BIN, REPO, Launch, environment, free_port, remove_shared_memory


class Running:
    """A launch in the background, in a process group of its own.

    Args:
        arguments: of the script.
        launcher: deepspeed or torchrun.
        ranks: number of ranks.
        prefix: words before the launcher's command.
        script: the script that every rank runs.
    """

    def __init__(
        self,
        *arguments: object,
        launcher: str = "deepspeed",
        ranks: int = 2,
        prefix: tuple[str, ...] = (),
        script: str = "launch/train_dpo.py",
    ) -> None:
        port = free_port()
        options = {
            "deepspeed": ("--num_gpus", str(ranks), "--master_port", str(port)),
            "torchrun": ("--nproc-per-node", str(ranks), "--master-port", str(port)),
        }[launcher]
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the launch has ended
        self.process = subprocess.Popen(
            [*prefix, str(BIN / launcher), *options, script, *map(str, arguments)],
            cwd=REPO,
            env=environment(),
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # As in a terminal's foreground. A shell's background jobs, this one perhaps, ignore SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._port, self._script, self._size = port, script, ranks
        self._ranks: dict[int, psutil.Process] = {}

    @property
    def ranks(self) -> dict[int, psutil.Process]:
        """The ranks' processes, by rank; empty until all of them have started."""
        if not self._ranks:
            found = {}
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "RANK" in child.environ() and self._script in child.cmdline():
                        found[int(child.environ()["RANK"])] = child
            if len(found) < self._size:
                return {}
            self._ranks = found
        return self._ranks

    def wait_for(self, what: Callable[[], bool], timeout: float = 300) -> Running:
        """Wait until a condition holds; fails if the launch ends before."""
        until = time.monotonic() + timeout
        while not what():
            assert self.process.poll() is None, f"ended before it should:\n{self.output[-6000:]}"
            assert time.monotonic() < until, f"did not happen within {timeout} s:\n{self.output[-6000:]}"
            time.sleep(0.01)
        return self

    def ended(self, timeout: float = 90) -> Launch:
        """Wait for the end of the launcher and of its ranks; fails after `timeout` seconds."""
        until = time.monotonic() + timeout
        try:
            status = self.process.wait(timeout)
            _, alive = psutil.wait_procs(self._ranks.values(), timeout=max(0.1, until - time.monotonic()))
            assert not alive, f"ranks outlived their launcher by {timeout} s:\n{self.output[-6000:]}"
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {timeout} s:\n{self.output[-6000:]}") from None
        return Launch(status=status, output=self.output)

    @property
    def output(self) -> str:
        """Output so far."""
        self._output.seek(0)
        return self._output.read()

    def close(self) -> None:
        """Kill all processes of the launch, and remove their shared memory."""
        for process in self._ranks.values():
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        remove_shared_memory(self._port)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
