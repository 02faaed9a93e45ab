"""Every launcher's environment names the same five variables; half a launch is refused."""

from __future__ import annotations

import pytest

from minimind.errors import LaunchError
from minimind.ranks.launchers import check_devices, first_host, rank_variables
from minimind.ranks.status import Peer

SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_NODELIST": "gpu[03-04]",
}


def test_bare_python_is_a_group_of_one():
    variables = rank_variables({})
    assert (variables["RANK"], variables["WORLD_SIZE"], variables["LOCAL_RANK"]) == ("0", "1", "0")
    assert variables["MASTER_ADDR"] == "127.0.0.1"
    assert int(variables["MASTER_PORT"]) > 1023


def test_srun_step():
    variables = rank_variables(SLURM)
    port = int(variables.pop("MASTER_PORT"))
    assert variables == {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "gpu03"}
    assert 12000 <= port < 32000
    assert int(rank_variables({**SLURM, "SLURM_PROCID": "0"})["MASTER_PORT"]) == port
    assert int(rank_variables({**SLURM, "SLURM_STEP_ID": "1"})["MASTER_PORT"]) != port


def test_srun_step_on_fewer_nodes_than_the_job_and_with_an_address_of_its_own():
    step = {**SLURM, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "gpu04"}
    assert rank_variables(step)["WORLD_SIZE"] == "4"
    assert rank_variables(step)["MASTER_ADDR"] == "gpu04"
    given = rank_variables({**step, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29501"})
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("10.0.0.1", "29501")


def test_a_launcher_within_a_slurm_allocation_wins():
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
def test_half_a_launch_is_refused(environ):
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
def test_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


def peers(*specs):
    """Peers by rank, of (host, local rank, device, how many it sees)."""
    return {
        rank: Peer(local_rank=local, pid=100 + rank, host=host, machine=host, device=device, devices=devices)
        for rank, (host, local, device, devices) in enumerate(specs)
    }


@pytest.mark.parametrize(
    "specs",
    [
        [("a", 0, "cpu", 0), ("a", 1, "cpu", 0), ("b", 0, "cpu", 0)],
        [("a", 0, "cuda", 2), ("a", 1, "cuda", 2), ("b", 0, "cuda", 1)],  # machines may have different numbers
    ],
)
def test_devices_that_go_together(specs):
    check_devices(peers(*specs))


def test_a_machine_without_its_gpus_is_named_before_anyone_waits_for_it():
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
