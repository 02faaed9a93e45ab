"""The tests' side of the fork server (fork_server.py): starts it when it is first needed, and asks it for launches."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.distributed.fork_server import MAX_MESSAGE_BYTES, Reply, Request

REPO = Path(__file__).resolve().parents[2]
# Importing everything and compiling the kernels; seconds on an idle machine.
_START_SECONDS = 300
# Beyond a launch's own limit, which the server keeps.
_GRACE_SECONDS = 60
# Variables that no library reads when it is imported: they may differ between the server and its ranks.
_PER_TEST = ("PYTEST_CURRENT_TEST", "PYTEST_XDIST", "TEST_")


class ForkServer:
    """A running fork server.

    Args:
        environment: of the server. Libraries read variables when they are loaded (OMP_NUM_THREADS for one), so its
            ranks must have the same, but for those of _PER_TEST.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = _at_import(environment)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "tests.distributed.fork_server", str(theirs.fileno())],
                cwd=REPO,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._socket.settimeout(_START_SECONDS)
        assert self._socket.recv(MAX_MESSAGE_BYTES) == b"ready", "the fork server did not start; see its output above"

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether ranks with this environment can be forked from this server."""
        return self._process.poll() is None and self._environment == _at_import(environment)

    def run(self, request: Request) -> tuple[int | None, str]:
        """Run one launch: its exit status, None after a timeout, and what all ranks have printed."""
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            self._socket.settimeout(request.timeout + _GRACE_SECONDS)
            message = json.dumps(dataclasses.asdict(request)).encode()
            assert len(message) < MAX_MESSAGE_BYTES
            socket.send_fds(self._socket, [message], [output.fileno()])
            answer = self._socket.recv(MAX_MESSAGE_BYTES)
            output.seek(0)
            assert answer, f"the fork server has ended:\n{output.read()[-6000:]}"
            return Reply(**json.loads(answer)).status, output.read()

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._process.wait()


class ForkServers:
    """At most one running server, which is replaced when a launch needs another environment."""

    def __init__(self) -> None:
        self._server: ForkServer | None = None

    def run(self, script: str, arguments: Sequence[str], **options: object) -> tuple[int | None, str]:
        """See `Request` for the options."""
        request = Request(script=script, arguments=list(arguments), **options)
        if self._server is not None and not self._server.serves(request.environment):
            self.close()
        if self._server is None:
            self._server = ForkServer(request.environment)
        try:
            return self._server.run(request)
        except BaseException:
            # An answer that was not waited for would be taken for that of the next launch.
            self.close()
            raise

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


def _at_import(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_PER_TEST)}


FORK_SERVERS = ForkServers()
