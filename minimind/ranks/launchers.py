"""Who started this process, as which rank, and beside whom: deepspeed, torchrun, srun, or nobody.

a launcher's own variables -> RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, as torch and DeepSpeed read them
-> a store that all ranks reach -> every rank's process
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
# What a process that watches over ranks is called; any other parent (a shell, a terminal) may end before a run does.
_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed")
# Below the ports that machines hand out by themselves.
_SLURM_PORTS = range(12000, 32000)


def rank_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that must be set for this process to be a rank; a bare `python` is a group of one.

    The deepspeed launcher and torchrun set them all, also within a Slurm allocation; `srun` alone sets its own.

    Raises:
        LaunchError: the environment is half of a launch, in which every process would train alone or wait for ever.
    """
    if "RANK" in environ:
        missing = [name for name in _NEEDED if name not in environ]
        if missing:
            raise LaunchError(f"RANK is set, but {', '.join(missing)} not; start with deepspeed, torchrun or srun")
        return {"LOCAL_RANK": environ.get("LOCAL_RANK", "0")}
    if environ.get("SLURM_STEP_ID", "").isdecimal() and "SLURM_LOCALID" in environ:
        return _slurm_variables(environ)
    for variable in ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "PMI_SIZE"):
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
        raise LaunchError("srun names no nodes (SLURM_JOB_NODELIST is empty); set MASTER_ADDR to the first node's")
    # Steps of one job may run side by side.
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
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes.strip())
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group()) if first else ""


def join(timeout: float, device: str, devices: int) -> tuple[int, dist.Store, dict[int, Peer]]:
    """Meet the other ranks: this rank, a store that all of them share, and every rank's process.

    Args:
        timeout: seconds in which all ranks must be there.
        device, devices: the kind of device that this rank computes on, and how many it sees.

    Raises:
        LaunchError: rank 0 cannot be reached, or ranks are missing after `timeout` seconds.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # torchrun's agent keeps a store of its own at that address.
    store = connect(timeout, serves=rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True")
    namespace, boot = Path("/proc/self/ns/pid"), Path("/proc/sys/kernel/random/boot_id")
    host = socket.gethostname()
    me = Peer(
        local_rank=int(os.environ["LOCAL_RANK"]),
        pid=os.getpid(),
        host=host,
        machine=f"{host} {os.readlink(namespace)} {boot.read_text().strip()}",
        device=device,
        devices=devices,
    )
    store.set(f"peer/{rank}", me.to_json())
    if store.add("joined", 1) == size:
        store.set("complete", "1")
    try:
        store.wait(["complete"], datetime.timedelta(seconds=timeout))
    except dist.DistStoreError as error:
        there = [other for other in range(size) if store.check([f"peer/{other}"])]
        raise LaunchError(
            f"{name_ranks(set(range(size)) - set(there))} of {size} did not start within {timeout:.0f} s (--timeout); "
            "is the launcher running on every node, with the same sizes, address and port?",
            agreed=rank != there[0],
        ) from error
    letters = store.multi_get([f"peer/{other}" for other in range(size)])
    return rank, store, {other: Peer.from_json(text) for other, text in enumerate(letters)}


def check_devices(peers: Mapping[int, Peer]) -> None:
    """Whether the ranks can compute together; before they choose how to talk, since that depends on the device.

    Raises:
        LaunchError: the same on all ranks; they compute on devices of several kinds, or a machine has more ranks than
            devices.
    """
    hosts = [peers[rank].host for rank in sorted(peers)]
    by_device: dict[str, list[int]] = {}
    for rank, peer in sorted(peers.items()):
        by_device.setdefault(peer.device, []).append(rank)
    problem = ""
    if len(by_device) > 1:
        listed = "; ".join(f"{device} on {name_ranks_by_host(ranks, hosts)}" for device, ranks in by_device.items())
        problem = f"the ranks compute on different devices: {listed}. Does `nvidia-smi` show the GPUs on every machine?"
    elif "cpu" not in by_device:
        short = [rank for rank, peer in sorted(peers.items()) if peer.local_rank >= peer.devices]
        if short:
            one = peers[short[0]]
            problem = (
                f"there is no {one.device} device for {name_ranks_by_host(short, hosts)}: {one} is number "
                f"{one.local_rank + 1} on its machine, and sees {one.devices}. Start as many ranks as there are "
                "devices, and let each see all of them (CUDA_VISIBLE_DEVICES; Slurm: --gpus-per-node, not "
                "--gpus-per-task)."
            )
    if problem:
        raise LaunchError(problem, agreed=True)


def connect(timeout: float, serves: bool = False) -> dist.Store:
    """A connection to the ranks' store at MASTER_ADDR:MASTER_PORT; it is in the process that serves.

    Raises:
        LaunchError: nobody answers there for `timeout` seconds, or the port is taken.
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
    # A launcher that starts the ranks anew keeps its store.
    return dist.PrefixStore(f"minimind/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def launcher_pids() -> list[int]:
    """The processes that this rank's end is reported to, nearest first; empty where no launcher is the parent.

    deepspeed is two processes on each machine: the one that starts the ranks, and the command itself or what stands for
    it there (ssh).
    """
    parent = os.getppid()
    command = _command(parent)
    if not any(name in command for name in _LAUNCHERS):
        return []
    if "deepspeed.launcher.launch" in command:
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
