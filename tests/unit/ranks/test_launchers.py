"""The variables of every launcher; incomplete launches and unsuitable devices are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minimind.errors import LaunchError
from minimind.ranks import launchers as launchers_module
from minimind.ranks.launchers import check_devices, connect, first_host, join, launcher_pids, rank_variables
from minimind.ranks.status import Peer

SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_NODELIST": "gpu[03-04]",
}


def test_plain_python_is_a_group_of_one_rank():
    variables = rank_variables({})
    assert (variables["RANK"], variables["WORLD_SIZE"], variables["LOCAL_RANK"]) == ("0", "1", "0")
    assert variables["MASTER_ADDR"] == "127.0.0.1"
    assert int(variables["MASTER_PORT"]) > 1023


def test_variables_of_an_srun_step_are_translated():
    variables = rank_variables(SLURM)
    port = int(variables.pop("MASTER_PORT"))
    assert variables == {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "gpu03"}
    assert 12000 <= port < 32000
    assert int(rank_variables({**SLURM, "SLURM_PROCID": "0"})["MASTER_PORT"]) == port
    assert int(rank_variables({**SLURM, "SLURM_STEP_ID": "1"})["MASTER_PORT"]) != port


def test_srun_step_has_its_own_nodes_and_a_given_address_is_kept():
    step = {**SLURM, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "gpu04"}
    assert rank_variables(step)["WORLD_SIZE"] == "4"
    assert rank_variables(step)["MASTER_ADDR"] == "gpu04"
    given = rank_variables({**step, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29501"})
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("10.0.0.1", "29501")


def test_launcher_within_a_slurm_allocation_takes_precedence():
    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert rank_variables({**SLURM, **launched}) == {"LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    "environ",
    [
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"PMI_SIZE": "2"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # the batch script itself, not a step
        {"RANK": "0", "WORLD_SIZE": "2"},
        {**SLURM, "SLURM_JOB_NODELIST": ""},
    ],
)
def test_incomplete_launch_is_refused(environ):
    with pytest.raises(LaunchError):
        rank_variables(environ)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node[03-05,9],gpu1", "node03"),
        ("node[7,9-11]", "node7"),
        ("rack[1-2]n[4-5],x", "rack1n4"),
        ("a-b.example,c", "a-b.example"),
        ("", ""),
    ],
)
def test_first_host_of_a_slurm_node_list(nodes, first):
    assert first_host(nodes) == first


def peers(*specs):
    """Peers by rank, from (host, local rank, device, number of devices)."""
    return {
        rank: Peer(local_rank=local, pid=100 + rank, host=host, machine=host, device=device, devices=devices)
        for rank, (host, local, device, devices) in enumerate(specs)
    }


@pytest.mark.parametrize(
    "specs",
    [
        [("a", 0, "cpu", 0), ("a", 1, "cpu", 0), ("b", 0, "cpu", 0)],
        [
            ("a", 0, "cuda", 2),
            ("a", 1, "cuda", 2),
            ("b", 0, "cuda", 1),
        ],  # numbers differ by machine
    ],
)
def test_suitable_devices_are_accepted(specs):
    check_devices(peers(*specs))


def test_different_kinds_of_devices_are_refused_with_their_ranks():
    specs = [("a", 0, "cuda", 2), ("a", 1, "cuda", 2), ("b", 0, "cpu", 0), ("b", 1, "cpu", 0)]
    with pytest.raises(LaunchError, match="cuda on ranks 0-1 on a; cpu on ranks 2-3 on b") as caught:
        check_devices(peers(*specs))
    assert caught.value.agreed


def test_more_ranks_than_devices_are_refused_with_both_numbers():
    specs = [("a", 0, "cuda", 1), ("a", 1, "cuda", 1), ("a", 2, "cuda", 1)]
    expected = r"no cuda device for ranks 1-2: process 101 on a is number 2 on its machine, and sees 1\."
    with pytest.raises(LaunchError, match=expected) as caught:
        check_devices(peers(*specs))
    assert caught.value.agreed


def test_ranks_with_the_same_gpu_are_refused():
    specs = [("a", 0, "cuda", 8), ("b", 1, "cuda", 8), ("b", 0, "cuda", 8), ("b", 1, "cuda", 8)]
    expected = r"^ranks 1, 3 on b would use the same cuda device, because each has LOCAL_RANK 1\."
    with pytest.raises(LaunchError, match=expected) as caught:
        check_devices(peers(*specs))
    assert caught.value.agreed


@pytest.fixture
def alone(monkeypatch):
    """Variables of plain `python`, set for this process."""
    for name, value in rank_variables({}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


def test_join_of_one_rank_returns_its_process(alone):
    rank, store, peers = join(30.0, "cpu", 0)
    assert rank == 0
    assert list(peers) == [0]
    assert (peers[0].pid, peers[0].device, peers[0].devices) == (os.getpid(), "cpu", 0)
    assert store.check(["complete"])


def test_missing_ranks_are_named(alone, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(LaunchError, match=r"^ranks 1-3 of 4 did not start within 0 s \(--timeout\)\.") as caught:
        join(0.2, "cpu", 0)
    # The first rank that has started prints the error.
    assert not caught.value.agreed


def test_rank_0_that_does_not_answer_is_reported_with_its_address(alone):
    with pytest.raises(LaunchError, match=f"^rank 0 does not answer at 127.0.0.1, port {os.environ['MASTER_PORT']} "):
        connect(0.2)


def test_port_in_use_is_reported(alone):
    serving = connect(30.0, serves=True)
    serving.set("key", "1")
    with pytest.raises(LaunchError, match=f"^port {os.environ['MASTER_PORT']} cannot be used "):
        connect(1.0, serves=True)


def test_restarted_ranks_do_not_read_keys_of_the_last_start(alone, monkeypatch):
    serving = connect(30.0, serves=True)
    serving.set("key", "1")
    assert connect(30.0).check(["key"])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not connect(30.0).check(["key"])


@pytest.mark.parametrize(
    ("command", "launchers"),
    [
        ("bash", []),
        ("/usr/bin/python -m torch.distributed.run x.py", ["parent"]),
        ("/usr/bin/python /bin/torchrun x.py", ["parent"]),
        ("/usr/bin/python -u -m deepspeed.launcher.launch --world_info=x", ["parent", "grandparent"]),
    ],
)
def test_launcher_is_recognised_by_its_command(command, launchers, monkeypatch):
    monkeypatch.setattr(launchers_module, "_command", lambda pid: command)
    grandparent = int(Path(f"/proc/{os.getppid()}/status").read_text().split("PPid:")[1].split()[0])
    pids = {"parent": os.getppid(), "grandparent": grandparent}
    assert launcher_pids() == [pids[name] for name in launchers]
