"""Starts a rank: joins the other ranks, then the process groups of torch and DeepSpeed.

launcher's environment -> rank_variables -> join -> Watch -> torch's process group -> DeepSpeed -> RankContext
"""

from __future__ import annotations

import datetime
import logging
import os
import warnings

import deepspeed
import torch
import torch.distributed as dist
import transformers
from deepspeed.accelerator import get_accelerator

from minimind.engine.patches.buffers import Reservation
from minimind.engine.patches.compiles import guard_compiles
from minimind.engine.patches.late_compile import compile_late
from minimind.engine.patches.narrow_headers import narrow_headers
from minimind.engine.patches.registry import PatchSelection, select_patches
from minimind.engine.patches.shared_memory import reserve_memory, share_memory
from minimind.ranks.collectives import EXTRA_TIMEOUT, barrier
from minimind.ranks.launchers import check_devices, connect, join, launcher_pids, rank_variables
from minimind.ranks.process import RankContext
from minimind.ranks.watch import Watch
from minimind.ranks.world import World

# Matrix product shapes that the CPU's library remembers: those of a few steps.
_CACHED_PRIMITIVES = 128


def start_rank(timeout: float = 1800.0, disable_patches: str | None = None) -> RankContext:
    """Join the process group that the launcher's environment describes; plain `python` is a group of one rank.

    Args:
        timeout: seconds in which all ranks must start. Later the run ends after as many seconds in which no rank makes
            progress.
        disable_patches: value of --disable_patches.

    Raises:
        ConfigError: DeepSpeed cannot compile what the ranks need, or its shared memory does not fit.
        LaunchError: the environment is incomplete, ranks are missing, or their devices do not match.
    """
    _silence_warnings()
    # Only deepspeed and torchrun set RANK. Any other parent, for instance a shell, may end before the run does.
    launchers = launcher_pids() if "RANK" in os.environ else []
    os.environ.update(rank_variables(os.environ))
    local_rank = int(os.environ["LOCAL_RANK"])
    accelerator = get_accelerator()
    device = accelerator.device_name()
    watch = Watch()
    watch.listen(local_rank, launchers)
    if device == "cpu":
        limit_primitive_cache()
    rank, store, peers = join(timeout, device, 0 if device == "cpu" else accelerator.device_count())
    watch.begin(store, connect(timeout), peers, rank, timeout)
    # If the devices do not match, rank 0 ends and its store with it. All ranks must have read their peers before.
    watch.meet()
    check_devices(peers)
    if device != "cpu":
        # After the check: for a rank without a device torch would raise an error of its own.
        accelerator.set_device(local_rank)
    # Before DeepSpeed's communication is initialised, which may compile.
    patches = select_patches(disable_patches, speaks=rank == 0)
    guard_compiles(patches)
    narrow_headers(patches)
    compile_late(patches)
    reservation = _join_process_groups(store, rank, len(peers), timeout, patches)
    world = World(
        rank=rank,
        local_rank=local_rank,
        size=len(peers),
        device=torch.device(accelerator.current_device_name()),
        hosts=tuple(peers[other].host for other in range(len(peers))),
        meet=watch.meet,
    )
    # After it DeepSpeed's communication is initialised on every rank.
    barrier()
    if reservation is not None:
        share_memory(reservation, rank, world.size, patches)
    return RankContext(world=world, watch=watch)


def limit_primitive_cache() -> None:
    """Limit the CPU matrix library's cache of product shapes; must run before the first product.

    Packs differ in length. Every step brings about twenty new shapes, each half a megabyte of code and tables, and an
    unlimited cache grows to half a gigabyte of shapes that never come again. Shapes that repeat within a step still hit
    the cache. A limit that the user has set stays.
    """
    # The first is read by oneDNN itself, the second by torch's own cache in front of it.
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(_CACHED_PRIMITIVES))


def _silence_warnings() -> None:
    """Hide messages on which a user cannot act."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls a collective by a name that torch has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    transformers.utils.logging.disable_progress_bar()


def bound_device(size: int) -> torch.device | None:
    """The GPU that torch's process group gets for this rank; None: torch finds it by the tensors that it is given.

    DeepSpeed's barriers name no GPU. Without a bound one, some versions of torch guess it from the rank.

    Args:
        size: number of ranks.
    """
    # As DeepSpeed does: a group of one rank fails with a bound GPU in some versions, and torch 2.7.0 hangs.
    # Torch's version is a text that compares itself number by number.
    hangs = "2.6.0" < torch.__version__ < "2.7.1"
    if get_accelerator().device_name() != "cuda" or size == 1 or hangs:
        return None
    return torch.device("cuda", torch.cuda.current_device())


def _join_process_groups(
    store: dist.Store, rank: int, size: int, timeout: float, patches: PatchSelection
) -> Reservation | None:
    """Create torch's process group on our store, and let DeepSpeed use it; returns the room for its shared memory."""
    limit = datetime.timedelta(seconds=timeout + EXTRA_TIMEOUT)
    backend = get_accelerator().communication_backend_name()
    # Torch's keys get a prefix of their own, apart from the watch's.
    group_store = dist.PrefixStore("group", store)
    device = bound_device(size)
    dist.init_process_group(backend, store=group_store, rank=rank, world_size=size, timeout=limit, device_id=device)
    on_cpu = get_accelerator().device_name() == "cpu"
    reservation = reserve_memory(rank, size, patches) if on_cpu else None
    deepspeed.init_distributed(dist_backend=backend, timeout=limit, verbose=False)
    return reservation
