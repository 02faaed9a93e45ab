"""A process that has imported torch, DeepSpeed and the trainer, and forks the ranks of launches from itself.

    Request, file for the output (socket) -> one forked process a rank -> script -> exit statuses -> Reply (socket)

Importing and compiling take most of the time of a short launch; a fork has both. A rank is otherwise what the
deepspeed launcher starts: a process of its own with RANK, LOCAL_RANK, WORLD_SIZE and the store's address in its
environment, which runs the script as `__main__`. The server itself never runs a tensor operation on several threads,
never runs a backward pass and opens no process group: OpenMP, autograd and gloo do not survive a fork.

Run as `python -u -m tests.distributed.fork_server SOCKET`, where SOCKET is the number of an inherited descriptor of a
SOCK_SEQPACKET socket. The server ends, and ends its ranks, when the other side closes that socket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

# A request carries the whole environment.
MAX_MESSAGE_BYTES = 2**17
# The deepspeed launcher looks every second whether a rank has failed, then sends SIGTERM to the others. It kills those
# that are still there 30 s later; here they have 10 s, in which a tiny model is saved.
_SIGTERM_SECONDS, _SIGKILL_SECONDS = 1.0, 11.0
# Besides the trainer: what the ranks import later than at their start.
_MODULES = (
    "minimind.training.run",
    "minimind.plan.traffic",
    "torch.utils.tensorboard",
    "deepspeed.runtime.zero.stage3",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One launch.

    Attributes:
        script: what each rank runs, relative to the working directory.
        arguments: of the script.
        environment: of the ranks, without the variables that tell a rank its number.
        ranks: how many.
        machines: on so many, each with as many ranks, as far as the launcher's variables tell.
        port: of the ranks' store.
        timeout: seconds after which the ranks are killed.
    """

    script: str
    arguments: list[str]
    environment: dict[str, str]
    ranks: int
    machines: int
    port: int
    timeout: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """The exit status of the first rank that failed (minus the signal's number if one ended it), 0 if none did, None
    if the ranks were killed at the time limit."""

    status: int | None


class Ranks:
    """The forked processes of one launch, each the leader of a session of its own."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._running = {os.pidfd_open(pid): pid for pid in pids}
        self._status = 0

    def wait(self, client: socket.socket, timeout: float) -> Reply:
        """Wait for all ranks as the deepspeed launcher does.

        An ended rank stays a zombie until all have ended, so that the others can read its exit status.

        Raises:
            ConnectionError: the client has closed its socket.
        """
        poll = select.poll()
        for descriptor in (client.fileno(), *self._running):
            poll.register(descriptor, select.POLLIN)
        deadline, failed_at, told = time.monotonic() + timeout, 0.0, False
        while self._running:
            for descriptor, _ in poll.poll(100):
                if descriptor == client.fileno():
                    raise ConnectionError
                poll.unregister(descriptor)
                self._note_end(descriptor)
            now = time.monotonic()
            failed_at = failed_at or (now if self._status else 0.0)
            if failed_at and not told and now > failed_at + _SIGTERM_SECONDS:
                self._signal(signal.SIGTERM)
                told = True
            if now > deadline or (failed_at and now > failed_at + _SIGKILL_SECONDS):
                self._signal(signal.SIGKILL)
            if now > deadline:
                return Reply(status=None)
        return Reply(status=self._status)

    def _note_end(self, descriptor: int) -> None:
        ended = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        os.close(descriptor)
        del self._running[descriptor]
        status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        self._status = self._status or status

    def _signal(self, number: signal.Signals) -> None:
        for descriptor in self._running:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)

    def close(self) -> None:
        """Kill what is left of the ranks and of their own children, and take their exit statuses."""
        for descriptor in self._running:
            os.close(descriptor)
        for pid in self._pids:
            # Not reaped yet: its number, which is its session's too, cannot have gone to another process.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def fork_rank(request: Request, rank: int, output: int) -> int:
    """Fork one rank; returns its process number in the server. In the child it returns 0, ready to run the script."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    for target in (1, 2):
        os.dup2(output, target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    machine, local_rank = divmod(rank, request.ranks // request.machines)
    os.environ.clear()
    os.environ.update(request.environment)
    os.environ.update(
        {
            **{"RANK": str(rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(request.ranks)},
            **{"LOCAL_SIZE": str(request.ranks // request.machines)},
            **{"CROSS_RANK": str(machine), "CROSS_SIZE": str(request.machines)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request.port)},
        }
    )
    sys.argv = [request.script, f"--local_rank={local_rank}", *request.arguments]
    sys.path[0] = str(Path(request.script).resolve().parent)
    # A new process has a seed of its own; torch's generator begins with the same one everywhere.
    random.seed()
    return 0


def serve(client: socket.socket) -> str | None:
    """Answer requests until the client closes; returns the script to run in a forked rank, None in the server."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(client, MAX_MESSAGE_BYTES, 1)
        if not message:
            return None
        request, output = Request(**json.loads(message)), descriptors[0]
        pids = []
        for rank in range(request.ranks):
            pids.append(fork_rank(request, rank, output))
            if not pids[-1]:
                client.close()
                os.close(output)
                return request.script
        os.close(output)
        ranks = Ranks(pids)
        try:
            reply = ranks.wait(client, request.timeout)
        except ConnectionError:
            return None
        finally:
            ranks.close()
        client.send(json.dumps(dataclasses.asdict(reply)).encode())


def prepare() -> None:
    """Import and compile what the ranks need.

    Raises:
        RuntimeError: an import has started threads, which a fork would not have.
    """
    for module in _MODULES:
        importlib.import_module(module)
    from minimind.native import library

    library.compiled_kernels()
    library._compiled_heap()
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1 or threading.active_count() > 1:
        raise RuntimeError(f"{threads} threads run in the fork server; a fork would have one of them")
    # The collector would otherwise write to, and so copy, every page that the ranks share with the server.
    gc.collect()
    gc.freeze()


def main() -> None:
    client = socket.socket(fileno=int(sys.argv[1]))
    prepare()
    client.send(b"ready")
    script = serve(client)
    if script is not None:
        # Outside of the server's own calls, so that a rank ends as any interpreter does.
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
