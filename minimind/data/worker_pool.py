"""Runs tasks in worker processes, with few tasks in memory at a time.

tasks -> at most `_TASKS_PER_WORKER` a worker in flight -> results, in the order of the tasks
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

# Set in processes that tokenise, see `minimind/__init__.py`.
_VARIABLE = "MINIMIND_ONLY_TOKENISES"
# One that runs, one that waits in the worker's queue, one whose result waits for an earlier task.
_TASKS_PER_WORKER = 3

# The function of a worker process, set once: sending a tokenizer with every task would cost more than the task.
_function: Callable[[Any], Any] | None = None


def run_in_order(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Yield the results of a function of each task. Tasks are taken only as fast as results are.

    Args:
        function: sent to each worker process once, so it must be picklable.
        workers: number of processes.

    Raises:
        BrokenProcessPool: a worker process died.
    """
    pool = _start_pool(function, workers)
    if pool is None:
        yield from map(function, tasks)
        return
    pending: deque[Future[Result]] = deque()
    with pool:
        try:
            for task in tasks:
                with starting_workers():
                    pending.append(pool.submit(_run, task))
                if len(pending) == _TASKS_PER_WORKER * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _start_pool(function: Callable[[Any], Any], workers: int) -> ProcessPoolExecutor | None:
    """Worker processes; None, after a warning, if the system has no room for what they need to talk to each other."""
    # Not fork: this process may already have threads (torch, gloo), and a forked child inherits their locks as held.
    context = multiprocessing.get_context("spawn")
    try:
        return ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(function,))
    except OSError as error:
        # Python keeps semaphores in /dev/shm.
        warnings.warn(f"one process tokenises, which is slower: /dev/shm cannot be used ({error})", stacklevel=2)
        return None


def _start_worker(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    threading.Thread(target=exit_with_parent, daemon=True).start()


def _run(task: Any) -> Any:
    assert _function is not None
    return _function(task)


def exit_with_parent() -> None:
    """Exit when the parent process dies: after a kill, a worker of the pool would wait forever for its next task."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def only_tokenises() -> bool:
    """Whether this process was started to tokenise."""
    return _VARIABLE in os.environ


def tokenises_no_longer() -> None:
    """Let this process import what all others do."""
    del os.environ[_VARIABLE]


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Processes that start in the block tokenise: they import neither torch nor the model, and do not get SIGINT, at
    which each would print a traceback.

    They end with this process, in which another thread gets the signal.
    """
    # Mask and environment are inherited.
    mask, value = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}), os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        yield
    finally:
        if value is None:
            os.environ.pop(_VARIABLE, None)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
