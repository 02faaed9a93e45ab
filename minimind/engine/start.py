"""Starts a rank: joins the other ranks, then DeepSpeed's process group.

launcher environment -> rank_variables -> join -> Watch -> torch process group -> deepspeed.init_distributed -> World
"""

from __future__ import annotations

import datetime
import logging
import os
import time
import warnings
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
import transformers
from deepspeed.accelerator import get_accelerator

from minimind.engine.patches.shared_memory import share_memory
from minimind.errors import ConfigError
from minimind.ranks.launchers import check_devices, connect, join, launcher_pids, rank_variables
from minimind.ranks.process import BEYOND_TIMEOUT, World
from minimind.ranks.watch import Watch

# A compile of DeepSpeed's op takes well under a minute; a lock this old belongs to one that was killed.
_STALE_LOCK_SECONDS = 300
# DeepSpeed's ops that a run may compile.
_COMPILED_OPS = ("deepspeed_shm_comm", "cpu_adam", "fused_adam", "async_io")


def start_rank(timeout: float = 1800.0) -> World:
    """Join the process group that the launcher's environment describes; a bare `python` run is a group of one.

    Args:
        timeout: seconds in which all ranks must be there, and without progress of any of them after which the run ends.

    Raises:
        ConfigError: a lock that a killed compile left would make every rank wait for ever.
        LaunchError: the environment is half of a launch, ranks are missing, or their devices do not go together.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed still calls a collective by a name that torch has deprecated; no user can do anything about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    transformers.utils.logging.disable_progress_bar()
    launchers = launcher_pids() if "RANK" in os.environ else []
    os.environ.update(rank_variables(os.environ))
    local_rank = int(os.environ["LOCAL_RANK"])
    accelerator = get_accelerator()
    device = accelerator.device_name()
    _check_compiled_op(speaks=os.environ["RANK"] == "0" and device == "cpu")
    rank, store, peers = join(timeout, device, 0 if device == "cpu" else accelerator.device_count())
    watch = Watch()
    watch.begin(store, connect(timeout), peers, rank, launchers, timeout)
    watch.meet()  # all have read what they compare: rank 0 may take the store with it
    check_devices(peers)
    if device != "cpu":
        accelerator.set_device(local_rank)
    limit = datetime.timedelta(seconds=timeout + BEYOND_TIMEOUT)
    backend = accelerator.communication_backend_name()
    group_store = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group_store, rank=rank, world_size=len(peers), timeout=limit)
    deepspeed.init_distributed(dist_backend=backend, timeout=limit, verbose=False)
    world = World(
        rank=rank,
        local_rank=local_rank,
        size=len(peers),
        device=torch.device(accelerator.current_device_name()),
        hosts=tuple(peers[other].host for other in range(len(peers))),
        watch=watch,
    )
    dist.barrier()
    if world.on_cpu:
        share_memory(world.rank, world.size)
    return world


def _check_compiled_op(speaks: bool) -> None:
    """Refuse a lock that would be waited for in silence for ever, and say so when a first compile will take a while."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in (lock for op in _COMPILED_OPS for lock in root.glob(f"**/{op}/lock")):
        age = time.time() - lock.stat().st_mtime
        if age > _STALE_LOCK_SECONDS:
            error = ConfigError(
                f"{lock}: lock of a compile that never ended ({age / 60:.0f} minutes old); every run would wait for "
                "it for ever. Delete the file."
            )
            error.agreed = os.environ.get("LOCAL_RANK", "0") != "0"
            raise error
    if speaks and not any(root.rglob("deepspeed_shm_comm.so")):
        print("First run on this machine: DeepSpeed compiles its CPU communication, about half a minute", flush=True)
