"""Compares all-gather and reduce of CPU ranks through shared memory with gloo's sockets: interleaved, medians.

deepspeed --num_gpus 2 tests/benchmarks/shared_memory.py [millions of bf16 elements in all]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.comm import comm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from minimind.engine.start import start_rank
from minimind.ranks import process

ROUNDS = 11


def seconds(collective: Callable[[], object]) -> float:
    dist.barrier()
    started = time.perf_counter()
    collective()
    return time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(1)
    millions = float(sys.argv[-1]) if sys.argv[-1].replace(".", "").isdecimal() else 30
    context = start_rank()
    world = context.world
    shared = getattr(comm.cdb.all_gather_function, "__self__", None)
    if shared is None:
        sys.exit("memory is not shared here: several ranks of one machine and AVX-512 are needed")
    whole = torch.zeros(int(millions * 1e6) // world.size * world.size, dtype=torch.bfloat16)
    part = whole.chunk(world.size)[world.rank]
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "all-gather": (
            lambda: shared.all_gather(whole, part),
            lambda: shared._gather(output_tensor=whole, input_tensor=part),
        ),
        "reduce": (lambda: shared.reduce(whole, 0), lambda: shared._reduce(tensor=whole, dst=0)),
    }
    for name, (memory, gloo) in ways.items():
        rounds = [(seconds(memory), seconds(gloo)) for _ in range(ROUNDS)]
        by_memory, by_gloo = (1e3 * statistics.median(side) for side in zip(*rounds, strict=True))
        if world.is_main:
            print(
                f"{name}, {world.size} ranks, {whole.numel() * 2 / 1e6:.0f} MB: memory {by_memory:.0f} ms, gloo "
                f"{by_gloo:.0f} ms, {by_gloo / by_memory:.1f}x",
                flush=True,
            )
    process.end(0, context)


if __name__ == "__main__":
    with process.user_errors():
        main()
