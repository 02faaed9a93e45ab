"""Run by all ranks of one machine: collectives through their shared memory have the results of torch's."""

from __future__ import annotations

import torch
import torch.distributed as dist
from deepspeed import comm
from torch import Tensor

from minimind.engine.patches import shared_memory
from minimind.engine.start import start_rank
from minimind.ranks import process
from minimind.ranks.world import World

# Bytes of a whole tensor, of all ranks' parts: above the 32 MiB of DeepSpeed's buffer, so that it is filled twice.
LARGE_BYTES = 36_000_000
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def part_sizes(dtype: torch.dtype, ranks: int) -> tuple[int, int, int]:
    """Elements of a rank's part: too few bytes for shared memory; an odd number; more than one round and buffer."""
    return 10, 100_003, LARGE_BYTES // (dtype.itemsize * ranks) | 1


def numbers(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Random numbers whose sums are rounded, with zeros of both signs and infinities at both ends."""
    made = torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(dtype)
    made[:4] = made[-4:] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    return made


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(BITS[tensor.dtype])


def assert_gathered(whole: Tensor, parts: list[Tensor]) -> None:
    """Every number, and every bit but the sign of a zero among the last few of a part or of a round of the sum."""
    expected = torch.cat(parts)
    assert torch.equal(whole, expected)
    differs = bits(whole) != bits(expected)
    assert not differs[expected != 0].any()
    # Each part begins with a zero of either sign, which no end of anything is near.
    assert not differs.view(len(parts), -1)[:, :4].any()


def check_gather(world: World, size: int, dtype: torch.dtype) -> None:
    parts = [numbers(size, dtype, seed=rank) for rank in range(world.size)]
    own = parts[world.rank]
    whole = torch.full((world.size * size,), torch.nan, dtype=dtype)
    comm.all_gather_into_tensor(whole, own)
    assert_gathered(whole, parts)
    # In place, as new weights are gathered, and waited for later, as ZeRO-3 does.
    whole.fill_(torch.nan)
    place = whole.chunk(world.size)[world.rank].copy_(own)
    comm.allgather_fn(whole, place, async_op=True).wait()
    assert_gathered(whole, parts)


def check_sums(world: World, size: int, dtype: torch.dtype) -> None:
    given = [numbers(world.size * size, dtype, seed=10 + rank) for rank in range(world.size)]
    total = torch.stack(given).double().sum(0).to(dtype)
    # Three are summed in float32 by one and in the tensors' own dtype by the other, which rounds twice.
    close = {"rtol": 0.0 if world.size == 2 else 4 * torch.finfo(dtype).eps, "atol": 0.0}
    close["atol"] = 8 * close["rtol"]
    mine = given[world.rank].clone()
    comm.reduce(mine, dst := world.size - 1)
    if world.rank == dst:
        torch.testing.assert_close(mine, total, **close, equal_nan=True)
    mine = given[world.rank].clone()
    part = mine.chunk(world.size)[world.rank]
    comm.reduce_scatter_fn(part, mine)
    torch.testing.assert_close(part, total.chunk(world.size)[world.rank], **close, equal_nan=True)
    # Into another tensor, which leaves the input as it was.
    mine, other = given[world.rank].clone(), torch.empty(size, dtype=dtype)
    comm.reduce_scatter_fn(other, mine)
    torch.testing.assert_close(other, total.chunk(world.size)[world.rank], **close, equal_nan=True)
    assert torch.equal(bits(mine), bits(given[world.rank]))


def check_the_rest(world: World) -> None:
    """Integers, maxima and groups of some ranks do not use shared memory."""
    whole = torch.empty(world.size * 2**17, dtype=torch.int64)
    comm.all_gather_into_tensor(whole, torch.full((2**17,), world.rank))
    assert whole.unique_consecutive().tolist() == list(range(world.size))
    largest = torch.full((2**17,), float(world.rank))
    comm.reduce(largest, 0, op=comm.ReduceOp.MAX)
    assert world.rank != 0 or (largest == world.size - 1).all()
    for rank in range(world.size):
        group = dist.new_group([rank])
        if rank == world.rank:
            alone = torch.ones(2**17)
            comm.reduce(alone, rank, group=group)
            assert (alone == 1).all()


def main() -> None:
    through_memory: list[int] = []
    inner = shared_memory._SharedCollectives._sum

    def watched(self: shared_memory._SharedCollectives, tensor: Tensor) -> object:
        through_memory.append(tensor.numel())
        return inner(self, tensor)

    shared_memory._SharedCollectives._sum = watched
    # As many rounds of the sum as a tensor of some gigabytes has.
    shared_memory._MAX_BYTES = 2**23
    context = start_rank()
    world = context.world
    for dtype in BITS:
        for size in part_sizes(dtype, world.size):
            check_gather(world, size, dtype)
            check_sums(world, size, dtype)
    expected = [world.size * size for dtype in BITS for size in part_sizes(dtype, world.size)[1:] for _ in range(4)]
    # Of each size but the smallest two gathers, a reduce, and a reduce-scatter in place.
    assert through_memory in ([], expected)
    check_the_rest(world)
    print(f"rank {world.rank}: {len(through_memory)} collectives through memory")
    process.end(0, context)


if __name__ == "__main__":
    with process.user_errors():
        main()
