"""Damages files, and checks that a reader returns values or raises one of our own errors, within limits.

`MINIMIND_FUZZ=5000 pytest tests/faults/test_fuzz_*.py` draws 5000 new files for each test; without it, few and always
the same.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from minimind.errors import MiniMindError

EXAMPLES = int(os.environ.get("MINIMIND_FUZZ", "0"))
# Processor seconds, so that a busy machine fails nothing. Each example takes a few milliseconds.
CPU_SECONDS = 5.0
# What reading a file of a few kilobytes may take beyond what the process has already.
MEMORY_BYTES = 3 * 2**30

INTERESTING = (
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b'"',
    b"{",
    b"[",
    b"NaN",
    b"-1",
)


def fuzzed(default: int) -> settings:
    """Settings of a fuzz test: `default` examples in CI."""
    return settings(
        max_examples=EXAMPLES or default,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def only_our_errors() -> Iterator[None]:
    """Suppress our own errors; other errors, a hang, or gigabytes of memory for a small file fail the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, hard))
    started = time.process_time()
    try:
        with contextlib.suppress(MiniMindError):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    seconds = time.process_time() - started
    assert seconds < CPU_SECONDS, f"took {seconds:.1f} s"


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """Bytes with some of them flipped, cut off, left out, repeated, overwritten or moved, often near the ends."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        near = draw(st.integers(0, 255))
        at = draw(st.sampled_from((near, len(data) - 1 - near, draw(st.integers(0, len(data) - 1))))) % len(data)
        length = draw(st.integers(1, 64))
        kind = draw(st.sampled_from(("flip", "cut", "drop", "repeat", "overwrite", "splice", "noise")))
        if kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 50))
        elif kind == "overwrite":
            value = draw(st.sampled_from(INTERESTING))
            data[at : at + len(value)] = value
        elif kind == "splice":
            start = draw(st.integers(0, len(data) - 1))
            data[at : at + length] = data[start : start + length]
        else:
            data[at:at] = draw(st.binary(max_size=16))
    return bytes(data)


def json_values() -> st.SearchStrategy[object]:
    """Any JSON there is: nested, with NaN, large numbers and halves of surrogate pairs."""
    text = st.text(st.characters(), max_size=8) | st.sampled_from(("\ud800", "a\udfffb", "\0", "user", "assistant"))
    plain = st.none() | st.booleans() | st.integers() | st.floats() | text | st.just(10**4000)
    return st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4))
