"""Launches of scripts on CPU ranks: bounded in time, with all that they printed.

    script, arguments -> forked ranks (the default), or the deepspeed launcher -> Launch

Both ways start real processes that train with real DeepSpeed engines over gloo. Forked ranks start in a fraction of a
second (fork_server.py). The launcher takes seconds of imports: it is for tests of the launcher itself, of ranks that
die and of exit statuses.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.distributed.forking import FORK_SERVERS

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A finished launch: its exit status, all that its processes printed, and the buffers that it left in /dev/shm."""

    status: int
    output: str
    left_in_shared_memory: tuple[Path, ...] = ()

    def succeeded(self) -> Launch:
        assert self.status == 0, self.output[-6000:]
        return self


def launch(
    script: str,
    *arguments: object,
    ranks: int = 1,
    timeout: float = 200,
    launcher: bool = False,
    machines: int = 1,
) -> Launch:
    """Run a script on `ranks` ranks.

    Args:
        script: path within the repository.
        arguments: of the script.
        ranks: how many processes.
        timeout: seconds; a launch that takes longer is killed, and the test fails.
        launcher: start the ranks by the deepspeed command instead of forking them.
        machines: forked ranks take themselves for ranks of so many machines, whose files are the same.
    """
    given = list(map(str, arguments))
    port = free_port()
    try:
        if launcher:
            status, output = _run_launcher(script, given, ranks, port, timeout)
        else:
            options = {"environment": environment(), "ranks": ranks, "machines": machines}
            status, output = FORK_SERVERS.run(script, given, port=port, timeout=timeout, **options)
    finally:
        left = shared_memory(port)
        remove_shared_memory(port)
    assert status is not None, f"launch took more than {timeout} s:\n{output[-6000:]}"
    return Launch(status=status, output=output, left_in_shared_memory=tuple(left))


def train(*arguments: object, config: str = "zero2", **options: object) -> Launch:
    """Run the DPO script under a file of ds_configs/; for the options see `launch`."""
    return launch("launch/train_dpo.py", "--deepspeed", f"ds_configs/{config}.json", *arguments, **options)


def metrics(save_dir: Path, name: str = "loss") -> list[dict[str, float]]:
    """Logged training steps of a run; with a name under eval/, its evaluations."""
    entries = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if name in entry]


def environment() -> dict[str, str]:
    """Variables of a launch.

    One thread a rank, since two ranks on two cores would compete for them. A cache folder of this test session, since
    an earlier one may have cached other messages about the same rows.
    """
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": _cache_home().name,
        # Otherwise torch.compile takes code from /tmp that an earlier run compiled for other vector instructions.
        "TORCHINDUCTOR_CACHE_DIR": f"{_cache_home().name}/inductor",
    }


@functools.cache
def _cache_home() -> tempfile.TemporaryDirectory[str]:
    """A cache folder that goes with this process. What is compiled, for minutes, is the user's."""
    folder = tempfile.TemporaryDirectory(prefix="minimind-tests-")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for name in ("torch_extensions", "minimind/native"):
        (user / name).mkdir(parents=True, exist_ok=True)
        own = Path(folder.name, name)
        own.parent.mkdir(exist_ok=True)
        own.symlink_to(user / name)
    return folder


def free_port() -> int:
    """A TCP port of this machine that nothing uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def shared_memory(port: int) -> list[Path]:
    """DeepSpeed's buffers in /dev/shm of ranks that met at this port."""
    return list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*_{port}_*"))


def remove_shared_memory(port: int) -> None:
    """Remove the buffers of ranks that were killed before they could do it."""
    for path in shared_memory(port):
        path.unlink(missing_ok=True)


def _run_launcher(script: str, arguments: list[str], ranks: int, port: int, timeout: float) -> tuple[int | None, str]:
    """Exit status of the deepspeed command, None after a timeout, and its output."""
    process = subprocess.Popen(
        [str(BIN / "deepspeed"), "--num_gpus", str(ranks), "--master_port", str(port), script, *arguments],
        cwd=REPO,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # The launcher's process group, which contains its ranks and nothing else.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return None, output
    return process.returncode, output
