"""Real `deepspeed` launches on CPU ranks, bounded in time, with what they printed and wrote."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A finished launch: exit status and all that it printed."""

    status: int
    output: str

    def succeeded(self) -> Launch:
        assert self.status == 0, self.output[-6000:]
        return self


def launch(script: str, *arguments: object, ranks: int = 1, timeout: float = 200, threads: int = 1) -> Launch:
    """Run a script under the deepspeed launcher; a launch that takes too long is ended and fails."""
    command = [
        str(Path(sys.executable).parent / "deepspeed"),
        *("--num_gpus", str(ranks), "--master_port", str(_free_port())),
        script,
        *map(str, arguments),
    ]
    # One thread a rank by default: two ranks on two cores would otherwise fight for them.
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        command,
        cwd=REPO,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # The launcher's own process group, which its ranks share: nothing else is in it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"launch took more than {timeout} s:\n{output[-6000:]}") from None
    return Launch(status=process.returncode, output=output)


def train(*arguments: object, config: str = "zero2", ranks: int = 1, timeout: float = 200, threads: int = 1) -> Launch:
    """Run the training script as a user does."""
    flags = ("--deepspeed", f"ds_configs/{config}.json", *arguments)
    return launch("launch/train_dpo.py", *flags, ranks=ranks, timeout=timeout, threads=threads)


def metrics(save_dir: Path, name: str = "loss") -> list[dict[str, float]]:
    """Logged training steps (or, by a name under eval/, evaluations) of a run."""
    entries = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if name in entry]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
