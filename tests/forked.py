"""A process that is forked from the test's own: all is imported there, where a new interpreter imports for seconds.

For code that computes with no tensor: threads of OpenMP and of autograd do not survive a fork.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess


@contextlib.contextmanager
def forked(work: Callable[..., object], *arguments: object) -> Iterator[BaseProcess]:
    """Run `work(*arguments)` in a process of its own, which is killed in the end if it still runs.

    An exception is printed there and gives exit code 1.
    """
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    with warnings.catch_warnings():
        # Python warns that a thread of this process could hold a lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
