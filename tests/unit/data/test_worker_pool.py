"""The pool: few tasks in flight, results in order. `test_tokens.py` runs real worker processes."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import Future
from functools import partial

import pytest

import minimind
from minimind.data import dataset, worker_pool
from minimind.data.encoder import build_encoder
from minimind.data.encoding import EncodingOptions
from minimind.data.worker_pool import only_tokenises, run_in_order, starting_workers
from tests.conftest import REPO


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


# Reads calls of encoders, as a process that tokenises gets encoders.
SCRIPT = """
import json, pickle, sys
import minimind.data.streaming.builder
rows = [encode().tokens for encode in pickle.load(sys.stdin.buffer)]
heavy = {"torch", "deepspeed", "transformers.modeling_utils", "minimind.model"} & set(sys.modules)
print(json.dumps([rows, sorted(heavy)]))
"""
CONVERSATION = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Seven."}]


def test_a_process_that_tokenises_imports_neither_torch_nor_a_model(tokenizer):
    encoders = [build_encoder(tokenizer, EncodingOptions(mask=mask)) for mask in ("turns", "minimind", "text")]
    given = [partial(encoder.encode, CONVERSATION, 0) for encoder in encoders[:2]]
    given.append(partial(encoders[2].encode_text, "A text."))
    with starting_workers():
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], input=pickle.dumps(given), cwd=REPO, capture_output=True, check=False
        )
    assert done.returncode == 0, done.stderr.decode()
    rows, heavy = json.loads(done.stdout)
    assert rows == [encode().tokens for encode in given]
    assert heavy == []


def test_only_processes_that_are_started_to_tokenise_do_so():
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for _ in range(2):
        with starting_workers(), starting_workers():
            assert "MINIMIND_ONLY_TOKENISES" in os.environ
            assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert not only_tokenises()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_a_program_s_main_file_may_import_names_of_the_package(monkeypatch):
    """A process that tokenises reads it too, unless all of it is under `if __name__ == "__main__"`."""
    monkeypatch.setenv("MINIMIND_ONLY_TOKENISES", "1")
    monkeypatch.delattr(minimind, "DPODataset")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = minimind.nothing
    assert minimind.DPODataset is dataset.DPODataset
    assert not only_tokenises()
