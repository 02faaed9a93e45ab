"""Ends the fork server with the test session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.forking import FORK_SERVERS


@pytest.fixture(scope="session", autouse=True)
def _end_fork_server() -> Iterator[None]:
    """The server would end by itself when its socket closes; waiting for it adds its processor time to pytest's."""
    yield
    FORK_SERVERS.close()
