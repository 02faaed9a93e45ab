"""The pool: few tasks in flight, results in order. `test_tokens.py` runs real worker processes."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from minimind.data import worker_pool
from minimind.data.worker_pool import run_in_order


@pytest.fixture
def pool(monkeypatch):
    """A pool whose futures have no result before they are asked for it; the futures that it gave out."""

    class Late(Future):
        def result(self):
            return self.function(self.task)

    class Pool:
        def __init__(self, workers, context, initializer, initargs):
            (self.function,) = initargs

        def submit(self, run, task):
            future = Late()
            future.function, future.task = self.function, task
            futures.append(future)
            return future

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    futures: list[Future] = []
    monkeypatch.setattr(worker_pool, "ProcessPoolExecutor", Pool)
    return futures


def test_tasks_are_taken_only_as_fast_as_results(pool):
    taken, ahead = [], []

    def tasks():
        for number in range(100):
            taken.append(number)
            yield number

    results = []
    for result in run_in_order(lambda task: task * 2, tasks(), workers=2):
        results.append(result)
        ahead.append(len(taken) - len(results))
    assert results == [2 * number for number in range(100)]
    # Three tasks a worker, of which one has given its result.
    assert max(ahead) == 5
    assert ahead[:50] == [5] * 50


def test_what_waits_is_cancelled_if_the_caller_stops(pool):
    results = run_in_order(lambda task: task, iter(range(100)), workers=1)
    assert next(results) == 0
    results.close()
    assert [future.cancelled() for future in pool] == [False, True, True]


def test_an_error_of_the_tasks_ends_the_pool(pool):
    def tasks():
        yield 1
        raise ValueError("cut off")

    with pytest.raises(ValueError, match="cut off"):
        list(run_in_order(lambda task: task, tasks(), workers=1))
    assert pool[0].cancelled()
