"""Reads the launcher's environment (deepspeed, torchrun, srun or plain python) and connects the ranks.

launcher's variables -> RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, as torch and DeepSpeed read them
-> the ranks' common store -> the process of every rank (Peer) -> check of their devices
"""

from __future__ import annotations

import datetime
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist

from minimind.errors import LaunchError
from minimind.ranks.status import Peer, name_ranks, name_ranks_by_host

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Variables in which other launchers give the number of processes.
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "PMI_SIZE")
# Names of launchers that run as long as their ranks. Any other parent (a shell, a terminal) may end earlier.
_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed")
# Below the range from which Linux assigns ports automatically (32768 and above).
_SLURM_PORTS = range(12000, 32000)


def rank_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that must be set so that this process is a rank; plain `python` is a group of one rank.

    The deepspeed launcher and torchrun set all of them, also within a Slurm allocation. `srun` alone sets variables of
    Slurm, which are translated.

    Raises:
        LaunchError: the environment is incomplete: the processes would train separately, or wait for each other for
            ever.
    """
    if "RANK" in environ:
        missing = [name for name in _NEEDED if name not in environ]
        if missing:
            raise LaunchError(f"RANK is set, but {', '.join(missing)} not; start with deepspeed, torchrun or srun")
        return {"LOCAL_RANK": environ.get("LOCAL_RANK", "0")}
    # A process that srun starts has both; the batch script itself has not, and would train alone.
    if environ.get("SLURM_STEP_ID", "").isdecimal() and "SLURM_LOCALID" in environ:
        return _slurm_variables(environ)
    for variable in _SIZE_VARIABLES:
        if int(environ.get(variable) or 1) > 1:
            raise LaunchError(
                f"{variable} is {environ[variable]}, but RANK, WORLD_SIZE and MASTER_ADDR are not set: every process "
                "would train alone. Start with deepspeed, torchrun or srun, or set them."
            )
    port = str(_free_port())
    return {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def _slurm_variables(environ: Mapping[str, str]) -> dict[str, str]:
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    address = environ.get("MASTER_ADDR") or first_host(nodes)
    if not address:
        raise LaunchError("SLURM_JOB_NODELIST is empty, so the first node is unknown; set MASTER_ADDR to its address")
    # All ranks must derive the same port. Two steps of one job may run at the same time and must not share it.
    number = 16 * int(environ.get("SLURM_JOB_ID", 0)) + int(environ["SLURM_STEP_ID"])
    return {
        "RANK": environ["SLURM_PROCID"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "WORLD_SIZE": environ.get("SLURM_STEP_NUM_TASKS") or environ["SLURM_NTASKS"],
        "MASTER_ADDR": address,
        "MASTER_PORT": environ.get("MASTER_PORT") or str(_SLURM_PORTS[number % len(_SLURM_PORTS)]),
    }


def first_host(nodes: str) -> str:
    """The first name of a Slurm node list: `node[03-05,9],gpu1` -> `node03`, `rack[1-2]n[4-5]` -> `rack1n4`."""
    # Up to the first comma outside brackets; then each bracket is replaced by its first number.
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes.strip())
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group()) if first else ""


def join(timeout: float, device: str, devices: int) -> tuple[int, dist.Store, dict[int, Peer]]:
    """Connect this rank to the others; RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT must be set.

    Args:
        timeout: seconds in which all ranks must have started.
        device: kind of device that this rank computes on.
        devices: number of such devices that it sees.

    Returns:
        This rank, the ranks' common store, and the process of every rank.

    Raises:
        LaunchError: rank 0 cannot be reached, or ranks are missing after `timeout` seconds.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # torchrun's agent already serves a store at MASTER_ADDR:MASTER_PORT.
    store = connect(timeout, serves=rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True")
    store.set(f"peer/{rank}", _own_peer(device, devices).to_json())
    if store.add("joined", 1) == size:
        store.set("complete", "1")
    try:
        store.wait(["complete"], datetime.timedelta(seconds=timeout))
    except dist.DistStoreError as error:
        started = [other for other in range(size) if store.check([f"peer/{other}"])]
        raise LaunchError(
            f"{name_ranks(set(range(size)) - set(started))} of {size} did not start within {timeout:.0f} s "
            "(--timeout). Does the launcher run on every node, with the same sizes, address and port?",
            # Rank 0 may be among the missing ones; the first rank that has started prints the error.
            agreed=rank != started[0],
        ) from error
    texts = store.multi_get([f"peer/{other}" for other in range(size)])
    return rank, store, {other: Peer.from_json(text) for other, text in enumerate(texts)}


def _own_peer(device: str, devices: int) -> Peer:
    # The boot id tells apart machines of equal host name, the namespace tells apart containers of one machine.
    namespace, boot = Path("/proc/self/ns/pid"), Path("/proc/sys/kernel/random/boot_id")
    host = socket.gethostname()
    return Peer(
        local_rank=int(os.environ["LOCAL_RANK"]),
        pid=os.getpid(),
        host=host,
        machine=f"{host} {os.readlink(namespace)} {boot.read_text().strip()}",
        device=device,
        devices=devices,
    )


def check_devices(peers: Mapping[int, Peer]) -> None:
    """Check that the ranks' devices allow them to compute together.

    It runs before torch's process group is made, because the group's backend (gloo, NCCL) depends on the device.

    Raises:
        LaunchError: the same on all ranks; their devices are of different kinds, or a machine has more ranks than
            devices, or two ranks have the same GPU.
    """
    problem = _different_devices(peers) or _too_few_devices(peers) or _shared_devices(peers)
    if problem:
        raise LaunchError(problem, agreed=True)


def _different_devices(peers: Mapping[int, Peer]) -> str | None:
    hosts = [peers[rank].host for rank in sorted(peers)]
    by_device: dict[str, list[int]] = {}
    for rank, peer in sorted(peers.items()):
        by_device.setdefault(peer.device, []).append(rank)
    if len(by_device) == 1:
        return None
    listed = "; ".join(f"{device} on {name_ranks_by_host(ranks, hosts)}" for device, ranks in by_device.items())
    return f"the ranks compute on different devices: {listed}. Does `nvidia-smi` show the GPUs on every machine?"


def _too_few_devices(peers: Mapping[int, Peer]) -> str | None:
    # Any number of ranks can share a CPU.
    short = [rank for rank, peer in sorted(peers.items()) if peer.device != "cpu" and peer.local_rank >= peer.devices]
    if not short:
        return None
    hosts = [peers[rank].host for rank in sorted(peers)]
    first = peers[short[0]]
    return (
        f"there is no {first.device} device for {name_ranks_by_host(short, hosts)}: {first} is number "
        f"{first.local_rank + 1} on its machine, and sees {first.devices}. Start as many ranks as there are devices, "
        "and let each rank see all of them (CUDA_VISIBLE_DEVICES; Slurm: --gpus-per-node, not --gpus-per-task)."
    )


def _shared_devices(peers: Mapping[int, Peer]) -> str | None:
    by_gpu: dict[tuple[str, int], list[int]] = {}
    for rank, peer in sorted(peers.items()):
        if peer.device != "cpu":
            by_gpu.setdefault((peer.machine, peer.local_rank), []).append(rank)
    shared = next((ranks for ranks in by_gpu.values() if len(ranks) > 1), None)
    if shared is None:
        return None
    hosts = [peers[rank].host for rank in sorted(peers)]
    first = peers[shared[0]]
    return (
        f"{name_ranks_by_host(shared, hosts)} would use the same {first.device} device, because each has LOCAL_RANK "
        f"{first.local_rank}. Start with deepspeed, torchrun or srun, or number the ranks of each machine from 0."
    )


def connect(timeout: float, serves: bool = False) -> dist.Store:
    """A connection to the ranks' common store at MASTER_ADDR:MASTER_PORT.

    Args:
        timeout: seconds in which the store must answer.
        serves: whether this process holds the store.

    Raises:
        LaunchError: the store does not answer, or this process cannot open the port.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = datetime.timedelta(seconds=timeout)
    try:
        store = dist.TCPStore(address, port, is_master=serves, timeout=limit, wait_for_workers=False)
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        if serves:
            raise LaunchError(f"port {port} cannot be used ({reason}); give another --master_port") from error
        raise LaunchError(f"rank 0 does not answer at {address}, port {port} ({reason})") from error
    # torchrun's store outlives a restart of the ranks. Their keys of the last start must not be read again.
    return dist.PrefixStore(f"minimind/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def launcher_pids() -> list[int]:
    """Process ids of the launcher on this machine, the rank's parent first; empty if the parent is no launcher.

    deepspeed has two processes on each machine: the parent of the ranks, and its own parent, which is the command
    itself on the first machine and a remote shell on the others.
    """
    parent = os.getppid()
    command = _command(parent)
    if not any(name in command for name in _LAUNCHERS):
        return []
    if "deepspeed.launcher.launch" in command:
        # The command name, in parentheses, may contain spaces. The parent's id is the second field after it.
        fields = (Path("/proc") / str(parent) / "stat").read_text().rpartition(")")[2].split()
        return [parent, int(fields[1])]
    return [parent]


def _command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
