"""Writing a table: once, by one process, which goes on where an earlier one ended, with and without locks."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from minimind import locks
from minimind.data import table_build, table_cache, tokens
from minimind.data.table_build import Tokenised, TokenisingListener
from minimind.errors import DataError
from tests.conftest import pair
from tests.unit.data.tables import content

# Chunks of 4 rows.
ROWS = [pair(f"Number {number}?", "Yes.", f"No, {number}!") for number in range(22)]
DAY = 86400


class Recorded(TokenisingListener):
    """Keeps what it is told."""

    def __init__(self):
        self.messages: list[str] = []
        self.rows: list[Tokenised] = []
        self.works = 0

    def on_work(self):
        self.works += 1

    def on_message(self, text):
        self.messages.append(text)

    def on_rows(self, done):
        self.rows.append(done)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(tokens, "_ROWS_PER_TASK", 4)
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.001)


@pytest.fixture
def path(write_rows):
    return write_rows(*ROWS)


@pytest.fixture
def stopped_after(monkeypatch):
    """Lets a tokenising of the next loads end after some chunks, with an error."""

    def call(number: int, error: BaseException) -> None:
        real = tokens.tokenize

        def stopping(*args, **settings):
            monkeypatch.setattr(table_cache, "tokenize", real)
            chunks = real(*args, **settings)
            for _ in range(number):
                yield next(chunks)
            raise error

        monkeypatch.setattr(table_cache, "tokenize", stopping)

    return call


def test_rows_and_bytes_are_told_and_a_whole_table_is_left(load, path, tmp_path):
    listener = Recorded()
    table = load(path, listener=listener)
    assert [done.rows for done in listener.rows] == [0, 4, 8, 12, 16, 20, 22]
    last = listener.rows[-1]
    assert (last.source, last.bytes_read, last.bytes_total) == ("pairs.jsonl", *[path.stat().st_size] * 2)
    assert listener.messages == []
    told = len(listener.rows)
    load(path, listener=listener)
    assert len(listener.rows) == told
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [f"pairs-{table.key}"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), BrokenProcessPool(), OSError(errno.ENOSPC, "no space left")], ids=repr
)
def test_a_run_that_ends_early_is_continued(load, path, tmp_path, stopped_after, error):
    whole = load(path, cache_dir=tmp_path / "other")
    stopped_after(3, error)
    with pytest.raises((KeyboardInterrupt, DataError), match=r"goes on where|no space left|^$"):
        load(path)
    listener = Recorded()
    resumed = load(path, listener=listener)
    assert listener.messages == [f"{path}: 12 rows are tokenised already, by a run that ended early"]
    assert [done.rows for done in listener.rows] == [12, 16, 20, 22]
    assert content(resumed) == content(whole)
    folders = [tmp_path / name / f"pairs-{whole.key}" for name in ("other", "cache")]
    assert len({tuple((file.name, file.read_bytes()) for file in sorted(one.iterdir())) for one in folders}) == 1
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [folders[0].name]


def test_a_source_that_cannot_be_tokenised_leaves_nothing(load, path, tmp_path, stopped_after):
    stopped_after(3, DataError("cut off"))
    with pytest.raises(DataError, match="cut off"):
        load(path)
    assert list((tmp_path / "cache").iterdir()) == []


class OtherProcess:
    """Tokenises in a thread, and stops after its first chunk until `go_on`. Locks hold between threads as well."""

    def __init__(self, load, path, monkeypatch) -> None:
        self.started, self._may_end, self.error = threading.Event(), threading.Event(), None
        self.calls, real = [], tokens.tokenize

        def tokenize(*args, **settings):
            self.calls.append(settings["skip"])
            chunks = real(*args, **settings)
            if len(self.calls) == 1:
                yield next(chunks)
                self.started.set()
                assert self._may_end.wait(60)
                if self.error is not None:
                    raise self.error
            yield from chunks

        monkeypatch.setattr(table_cache, "tokenize", tokenize)
        self._pool = ThreadPoolExecutor(1)
        self._result = self._pool.submit(load, path)
        assert self.started.wait(60)

    def go_on(self) -> None:
        self._may_end.set()

    def result(self):
        self.go_on()
        return self._result.result(60)


@pytest.fixture
def other(load, path, monkeypatch):
    process = OtherProcess(load, path, monkeypatch)
    yield process
    process.go_on()


def test_a_second_process_waits_for_the_first(load, path, other, tmp_path):
    class Waits(Recorded):
        def on_message(self, text):
            super().on_message(text)
            other.go_on()

    listener = Waits()
    table = load(path, listener=listener)
    assert content(table) == content(other.result())
    assert other.calls == [0]
    assert listener.messages == [
        f"{path}: another run tokenises the same data (process {os.getpid()} on {os.uname().nodename}); waiting for it"
    ]
    assert listener.rows == []
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [f"pairs-{table.key}"]


def test_a_second_process_goes_on_when_the_first_dies(load, path, other):
    class Waits(Recorded):
        def on_message(self, text):
            super().on_message(text)
            other.error = KeyboardInterrupt()
            other.go_on()

    listener = Waits()
    table = load(path, listener=listener)
    with pytest.raises(KeyboardInterrupt):
        other.result()
    assert other.calls == [0, 4]
    assert len(table) == 22
    assert [message.partition(": ")[2][:11] for message in listener.messages] == ["another run", "4 rows are "]


def test_the_first_s_progress_is_that_of_the_second(load, path, other, tmp_path, monkeypatch):
    """The watch ends a run without progress: so it does if what it waits for hangs, and not before."""
    (partial,) = (tmp_path / "cache").glob("*.partial-*")
    listener, works = Recorded(), []

    def sleep(seconds):
        works.append(listener.works)
        if len(works) == 3:
            with (partial / "journal.jsonl").open("ab") as file:
                file.write(b"x")
        if len(works) == 5:
            other.go_on()
            other.result()

    monkeypatch.setattr(locks.time, "sleep", sleep)
    load(path, listener=listener)
    assert works[0] == works[1] == works[2] < works[3] == works[4]


@pytest.mark.parametrize("first_ends", ["first", "last"])
def test_without_locks_two_processes_do_not_harm_each_other(load, path, tmp_path, monkeypatch, first_ends):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    other = OtherProcess(load, path, monkeypatch)

    class Overtaken(Recorded):
        def on_rows(self, done):
            if done.rows > 8 and first_ends == "first":
                other.result()

    table = load(path, listener=Overtaken())
    assert content(other.result()) == content(table)
    assert other.calls == [0, 4]
    assert table.lines.tolist() == list(range(1, 23))
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [f"pairs-{table.key}"]


def make_old(folder, seconds: float) -> None:
    for path in (*folder.iterdir(), folder):
        os.utime(path, times=(time.time() - seconds,) * 2)


def test_chunks_that_are_copied_are_deleted_once_nobody_writes_them(load, path, tmp_path, stopped_after):
    """A run that is killed again and again fills no disk."""
    for _ in range(2):
        stopped_after(1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            load(path)
        for partial in (tmp_path / "cache").glob("*.partial-*"):
            make_old(partial, 2 * table_build._COPIED_AGE)
    stopped_after(1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        load(path)
    assert len(list((tmp_path / "cache").glob("*.partial-*"))) == 1
    listener = Recorded()
    load(path, listener=listener)
    assert listener.rows[0].rows == 12


def test_what_dead_runs_left_of_other_data_goes_after_a_week(load, path, write_rows, tmp_path, stopped_after):
    cache, listener, left = tmp_path / "cache", Recorded(), {}
    for name in ("old", "young", "alive"):
        stopped_after(1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            load(write_rows(*ROWS, {"of": name}, name=f"{name}.jsonl"))
        (left[name],) = {*cache.glob("*.partial-*")} - {*left.values()}
    for name, partial in left.items():
        make_old(partial, 6 * DAY if name == "young" else 8 * DAY)
    descriptor = locks.try_lock(left["alive"].with_name(left["alive"].name.partition(".partial-")[0] + ".lock"))
    load(path, listener=listener)
    assert [partial.is_dir() for partial in left.values()] == [False, True, True]
    assert listener.messages == [
        f"{cache}: removed what 1 runs that ended early had tokenised of other data over a week ago"
    ]
    os.close(descriptor)
