"""The heap for tensors: what it gives out is whole, what is freed is found again, and what it cannot do torch does.

Each test is a process of its own, since a process that has the heap keeps it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")


def run(code: str) -> str:
    """What a script prints that has the heap; what goes wrong in it fails the test."""
    script = "import torch\nfrom minimind import native\n" + textwrap.dedent(code)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_sizes_that_never_come_twice_do_not_break_it_up():
    """As in training: the blocks of a step are taken, freed in another order, and are other sizes in the next step."""
    span, most = map(
        int,
        run("""
            import random
            native.keep_memory()
            draw, low, high, most = random.Random(0), 1 << 62, 0, 0
            for step in range(40):
                length = draw.randint(500, 2000)
                live = []
                for layer in range(30):
                    one = torch.full((length * draw.choice((1, 2, 3)), 256), float(layer))
                    assert one.data_ptr() % 64 == 0
                    low, high = min(low, one.data_ptr()), max(high, one.data_ptr() + one.nbytes)
                    live.append((layer, one))
                most = max(most, sum(one.nbytes for _, one in live))
                small = [torch.ones(8) for _ in range(100)]
                draw.shuffle(live)
                for layer, one in live:
                    assert (one == layer).all(), "two tensors share memory"
            print(high - low, most)
        """).split(),
    )
    assert most <= span < 1.05 * most


def test_blocks_that_touch_become_one():
    assert run("""
        native.keep_memory()
        parts = [torch.empty(1 << 20, dtype=torch.uint8) for _ in range(4)]
        wall = torch.empty(1 << 20, dtype=torch.uint8)
        first = min(part.data_ptr() for part in parts)
        for index in (2, 0, 3, 1):
            parts[index] = None
        print(torch.empty(4 << 20, dtype=torch.uint8).data_ptr() == first)
    """).split() == ["True"]


def test_tensors_of_before_empty_ones_and_resized_ones():
    run("""
        before, small = torch.ones(1 << 20), torch.ones(3)
        native.keep_memory()
        native.keep_memory()
        assert torch.empty(0).numel() == 0
        assert (before + 1).sum() == 2 << 20
        del before, small
        grown = torch.arange(1 << 15)
        grown.resize_(1 << 16)
        assert grown[: 1 << 15].equal(torch.arange(1 << 15))
        assert torch.from_numpy(grown.numpy()).data_ptr() == grown.data_ptr()
    """)


def test_threads_and_processes_that_are_forked_meanwhile():
    run("""
        import os, threading
        native.keep_memory()
        stop = threading.Event()
        def work(number):
            while not stop.is_set():
                one = torch.full((1 << 16,), number)
                assert (one == number).all()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(40):
            child = os.fork()
            if child == 0:
                block = torch.empty(1 << 18)
                block[0] = 1
                os._exit(int(block[0]) - 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
    """)


def test_more_than_the_machine_has_is_refused_in_torch_s_words():
    run("""
        native.keep_memory()
        try:
            torch.empty(1 << 60, dtype=torch.uint8)
        except RuntimeError as error:
            assert "allocate memory" in str(error), error
        else:
            raise AssertionError("had it")
        storage = torch.empty(4).untyped_storage()
        try:
            storage.resize_(-1)
        except RuntimeError as error:
            assert "negative" in str(error), error
        else:
            raise AssertionError("had it")
        torch.ones(1 << 20)
    """)


def test_without_addresses_there_is_a_warning_and_torch_goes_on():
    assert "ulimit -v" in run("""
        import resource, warnings
        from minimind.native.library import _compiled_heap
        _compiled_heap()
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), used + (256 << 20)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            native.keep_memory()
        assert torch.ones(1 << 20).sum() == 1 << 20
        print(caught[0].message)
    """)


def test_without_a_compiler_there_is_a_warning_and_torch_goes_on():
    assert "memory is not kept" in run("""
        import os, warnings
        os.environ["CXX"] = "no-compiler"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            native.keep_memory()
        assert torch.ones(1 << 20).sum() == 1 << 20
        print(caught[0].message)
    """)
