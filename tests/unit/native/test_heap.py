"""The heap: blocks do not overlap, freed ones are reused whole, and torch's allocator does what the heap cannot.

The heap cannot be removed from a process: the tests share one process of their own, each scenario reports its result.
Only limits that would disturb the others have a process to themselves.
"""

from __future__ import annotations

import json
import shutil
import textwrap

import pytest

from tests.forked import run_fresh

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")

SCENARIOS = '''
import json, os, random, threading, traceback
import torch
from minimind import native

before = torch.ones(1 << 20), torch.ones(3)  # of torch's allocator
native.keep_memory()
native.keep_memory()  # has no further effect


def sizes_that_differ_in_every_step():
    """Blocks of a step are allocated, freed in another order, and have other sizes in the next step."""
    draw, low, high, most = random.Random(0), 1 << 62, 0, 0
    for step in range(20):
        length, live = draw.randint(250, 1000), []
        for layer in range(30):
            tensor = torch.full((length * draw.choice((1, 2, 3)), 128), float(layer))
            assert tensor.data_ptr() % 64 == 0
            low, high = min(low, tensor.data_ptr()), max(high, tensor.data_ptr() + tensor.nbytes)
            live.append((layer, tensor))
        most = max(most, sum(tensor.nbytes for _, tensor in live))
        small = [torch.ones(8) for _ in range(100)]
        draw.shuffle(live)
        for layer, tensor in live:
            assert (tensor == layer).all(), "two tensors share memory"
    assert most <= high - low < 1.05 * most, (low, high, most)


def free_neighbours_are_merged():
    parts = [torch.empty(1 << 20, dtype=torch.uint8) for _ in range(4)]
    last = torch.empty(1 << 20, dtype=torch.uint8)
    first = min(part.data_ptr() for part in parts)
    for index in (2, 0, 3, 1):
        parts[index] = None
    assert torch.empty(4 << 20, dtype=torch.uint8).data_ptr() == first


def older_empty_and_resized_tensors():
    global before
    assert torch.empty(0).numel() == 0
    assert (before[0] + 1).sum() == 2 << 20
    del before  # freed by torch's allocator
    grown = torch.arange(1 << 15)
    grown.resize_(1 << 16)
    assert grown[: 1 << 15].equal(torch.arange(1 << 15))
    assert torch.from_numpy(grown.numpy()).data_ptr() == grown.data_ptr()


def more_than_the_machine_has():
    """Torch's allocator raises its own errors."""
    for allocate, message in (
        (lambda: torch.empty(1 << 60, dtype=torch.uint8), "allocate memory"),
        (lambda: torch.empty(4).untyped_storage().resize_(-1), "negative"),
    ):
        try:
            allocate()
        except RuntimeError as error:
            assert message in str(error), error
        else:
            raise AssertionError(message)
    torch.ones(1 << 20)


def threads_and_forks():
    """A child is forked while other threads are in the heap: its lock must not stay held there."""
    stop = threading.Event()
    def work(number):
        while not stop.is_set():
            tensor = torch.full((1 << 15,), number)
            assert (tensor == number).all()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            block = torch.empty(1 << 18)
            block[0] = 1
            os._exit(int(block[0]) - 1)
        assert os.waitpid(child, 0)[1] == 0
    stop.set()
    for thread in threads:
        thread.join()


results = {}
for scenario in (sizes_that_differ_in_every_step, free_neighbours_are_merged, older_empty_and_resized_tensors,
                 more_than_the_machine_has, threads_and_forks):
    try:
        scenario()
        results[scenario.__name__] = "ok"
    except Exception:
        results[scenario.__name__] = traceback.format_exc()
print(json.dumps(results))
'''
NAMES = (
    "sizes_that_differ_in_every_step",
    "free_neighbours_are_merged",
    "older_empty_and_resized_tensors",
    "more_than_the_machine_has",
    "threads_and_forks",
)


def run(script: str) -> str:
    """What a process of its own prints; it must end with status 0."""
    ended = run_fresh(script, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def results() -> dict[str, str]:
    return json.loads(run(SCENARIOS))


@pytest.mark.parametrize("name", NAMES)
def test_heap(name, results):
    assert results[name] == "ok", results[name]


def test_without_a_compiler_or_addresses_there_is_a_warning_and_torchs_allocator_stays():
    first, second = run(
        textwrap.dedent("""
        import os, resource, warnings
        import torch
        from minimind.native import library

        def warning():
            library.keep_memory.cache_clear()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                library.keep_memory()
            assert torch.ones(1 << 20).sum() == 1 << 20
            return caught[0].message

        compiler = os.environ.pop("CXX", None)
        os.environ["CXX"] = "no-compiler"
        print(warning())
        del os.environ["CXX"]
        if compiler:
            os.environ["CXX"] = compiler
        library._load_heap.cache_clear()
        library._compiled_heap()
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), used + (256 << 20)))
        print(warning())
        """)
    ).splitlines()
    assert "memory is not kept" in first
    assert "no-compiler" in first
    assert "ulimit -v" in second
