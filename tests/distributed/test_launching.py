"""Forked ranks are what the deepspeed launcher starts: the same environment, statuses and numbers."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.distributed.forking import ForkServers
from tests.distributed.launching import (
    environment,
    free_port,
    launch,
    metrics,
    remove_shared_memory,
    shared_memory,
    train,
)

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

SMALL = "tests/distributed/workers/small.py"
# Speed and memory of a process are its own.
MEASURED = re.compile(r"(eval/)?(tokens_per_second(_per_rank)?|pairs_per_second|(peak_)?memory_gib|mfu|time/\w+)")


def numbers(folder: Path) -> list[dict[str, float]]:
    """Every entry of a run's metrics but for what was measured of its process."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if not MEASURED.fullmatch(name)} for entry in entries]


@pytest.mark.long
@pytest.mark.parametrize(("config", "ranks"), [("zero2", 1), ("zero3", 2)])
def test_forked_and_launched_runs_have_the_same_numbers_to_the_last_bit(config, ranks, tmp_path):
    flags = ("--dtype", "bfloat16", "--max_steps", 3, "--log_interval", 1, "--learning_rate", 1e-3)
    for launcher in (True, False):
        folder = tmp_path / f"{launcher}"
        train(*flags, "--save_dir", folder, config=config, ranks=ranks, launcher=launcher).succeeded()
    forked, launched = numbers(tmp_path / "False"), numbers(tmp_path / "True")
    assert forked == launched
    assert [entry["step"] for entry in metrics(tmp_path / "False")] == [1, 2, 3]
    weights = [(tmp_path / way / "dpo_96.pth").read_bytes() for way in ("False", "True")]
    assert weights[0] == weights[1]


def runs(pid: int) -> bool:
    """Whether a process is there and not a zombie, whose parent has not asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("launcher", [False, True])
def test_ranks_have_the_environment_of_a_launch(launcher, monkeypatch):
    monkeypatch.setenv("TEST_NAME", "given")
    done = launch(SMALL, "--some", "flag", "report", ranks=2, launcher=launcher).succeeded()
    for rank in (0, 1):
        arguments = [SMALL, f"--local_rank={rank}", "--some", "flag", "report"]
        assert (
            f"__main__ {arguments} RANK={rank} LOCAL_RANK={rank} WORLD_SIZE=2 LOCAL_SIZE=2 "
            "MASTER_ADDR=127.0.0.1 OMP_NUM_THREADS=1 TEST_NAME=given beside=workers\n"
        ) in done.output


@pytest.mark.parametrize("launcher", [False, True])
def test_failed_rank_ends_the_others_and_gives_the_status(launcher):
    done = launch(SMALL, "fail", ranks=2, launcher=launcher)
    assert done.status == 7
    assert "rank 0 has received SIGTERM" in done.output


@pytest.mark.parametrize("launcher", [False, pytest.param(True, marks=pytest.mark.long)])
def test_exception_is_printed_and_gives_status_1(launcher):
    done = launch(SMALL, "crash", launcher=launcher)
    assert done.status == 1
    assert "ZeroDivisionError: on rank 0" in done.output


def test_signal_that_ends_a_rank_is_the_status():
    assert launch(SMALL, "die").status == -signal.SIGKILL


def test_launch_past_its_time_limit_is_killed_with_its_children():
    with pytest.raises(AssertionError, match="launch took more than 1 s") as caught:
        launch(SMALL, "hang", ranks=2, timeout=1)
    started = re.findall(r"child (\d+) of (\d+)", str(caught.value))
    assert len(started) == 2
    killed = {int(number) for pair in started for number in pair}
    until = time.monotonic() + 60
    while any(map(runs, killed)) and time.monotonic() < until:
        time.sleep(0.01)
    assert [pid for pid in killed if runs(pid)] == []
    # The next launch is a new one.
    assert launch(SMALL, "crash").status == 1


def test_buffers_of_killed_ranks_are_removed_by_their_port():
    mine, other = free_port(), free_port()
    paths = [Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_{port}_0") for port in (mine, other)]
    try:
        for path in paths:
            path.touch()
        assert shared_memory(mine) == paths[:1]
        remove_shared_memory(mine)
        assert [path.exists() for path in paths] == [False, True]
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


@pytest.mark.long
def test_server_is_replaced_when_a_variable_changes_that_libraries_read(monkeypatch):
    servers = ForkServers()

    def server_of_a_launch() -> object:
        options = {"environment": environment(), "ranks": 1, "port": free_port(), "timeout": 60.0}
        status, output = servers.run(SMALL, ["report"], **options)
        assert (status, f"TEST_NAME={os.environ['TEST_NAME']}" in output) == (0, True)
        return servers._server

    try:
        monkeypatch.setenv("TEST_NAME", "first")
        server = server_of_a_launch()
        monkeypatch.setenv("TEST_NAME", "second")
        assert server_of_a_launch() is server
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert server_of_a_launch() is not server
    finally:
        servers.close()
