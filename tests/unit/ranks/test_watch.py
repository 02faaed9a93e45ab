"""Signals, ended processes and verdicts as the watch handles them; tests/distributed has real ones."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from signal import SIGTERM, SIGUSR1

import pytest
import torch.distributed as dist

from minimind.ranks import watch as watch_module
from minimind.ranks.exits import FAILED, PREEMPTED
from minimind.ranks.signals import STOP_SIGNALS
from minimind.ranks.status import Peer, RankStatus
from minimind.ranks.status_store import Reply
from minimind.ranks.watch import Watch


class ExitError(Exception):
    """Raised instead of ending the process: (status, message)."""


@pytest.fixture
def fresh(monkeypatch):
    """A watch before the training loop, that raises instead of ending the process, and has no threads."""

    def leave(status, message=None):
        raise ExitError(status, message)

    monkeypatch.setattr(watch_module, "leave", leave)
    monkeypatch.setattr(watch_module.threading.Thread, "start", lambda thread: None)
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    watch = Watch()
    watch.listen(local_rank=0, launchers=[])
    yield watch
    os.close(signal.set_wakeup_fd(-1))
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def training(fresh):
    """A watch in the training loop."""
    fresh.can_save()
    return fresh


def test_repeated_signal_ends_the_process_and_another_signal_does_not(training, capsys):
    training._handle_signal(SIGUSR1, 100.0)
    training._handle_signal(SIGTERM, 220.0)
    assert training.stop_reason == "SIGUSR1"
    assert capsys.readouterr().err.count("SIGUSR1: the run saves after this step and exits") == 1
    with pytest.raises(ExitError, match="SIGTERM again: exiting at once") as caught:
        training._handle_signal(SIGTERM, 230.0)
    assert caught.value.args[0] == 128 + SIGTERM


def test_another_rank_than_the_first_of_its_machine_says_nothing_about_signals(training, capsys):
    training._speaks = False
    training._handle_signal(SIGTERM, 100.0)
    with pytest.raises(ExitError) as caught:
        training._handle_signal(SIGTERM, 110.0)
    assert caught.value.args == (128 + SIGTERM, None)
    assert capsys.readouterr().err == ""


def test_first_signal_after_the_launcher_has_exited_does_not_count_as_repeated(training):
    training._request_stop("the launcher has exited")
    training._handle_signal(SIGTERM, 200.0)
    assert training.stop_reason == "the launcher has exited"
    with pytest.raises(ExitError, match="SIGTERM again"):
        training._handle_signal(SIGTERM, 204.0)


def test_one_signal_before_the_training_loop_ends_the_process_as_preempted(fresh):
    fresh.enter("loading")
    with pytest.raises(ExitError, match="SIGTERM in phase loading: exiting; there is nothing to save yet") as caught:
        fresh._handle_signal(SIGTERM, 100.0)
    assert caught.value.args[0] == PREEMPTED


def test_other_signals_are_ignored(training):
    training._handle_signal(signal.SIGWINCH, 100.0)
    assert training.stop_reason is None


def test_meeting_without_peers_returns(fresh):
    fresh.meet()


@pytest.fixture
def begun(fresh):
    """A watch of rank 0 that has begun; rank 1 is a process that sleeps."""
    child = subprocess.Popen(["sleep", "600"])
    peers = {
        rank: Peer(local_rank=rank, pid=pid, host="a", machine="a", device="cpu", devices=0)
        for rank, pid in enumerate((os.getpid(), child.pid))
    }
    fresh.begin(dist.HashStore(), dist.HashStore(), peers, 0, timeout=60.0)
    yield fresh, child
    child.kill()
    child.wait()


def ended_processes(watch) -> list[int]:
    """Descriptors of processes that have ended, after waiting for one of them."""
    return [descriptor for descriptor, _ in watch._poll.poll(30_000)]


def test_signal_arrives_at_the_pipe(begun):
    watch, _ = begun
    os.kill(os.getpid(), SIGUSR1)
    assert ended_processes(watch) == [watch._signal_pipe]
    assert os.read(watch._signal_pipe, 64) == bytes([SIGUSR1])


def test_killed_rank_is_reported_after_the_grace_time(begun):
    watch, child = begun
    watch.enter("backward", 7)
    child.kill()
    (descriptor,) = ended_processes(watch)
    now = time.monotonic()
    watch._handle_process_end(descriptor, now)
    watch._check_run(now + 3.1)  # its last report is not read yet
    watch._exchange.reply = Reply(time=now + 0.1, statuses={})
    watch._check_run(now + 2.9)
    with pytest.raises(ExitError) as caught:
        watch._check_run(now + 3.0)
    status, message = caught.value.args
    assert status == FAILED
    assert f"LaunchError: rank 1 (process {child.pid} on a) is lost: killed by SIGKILL." in message
    assert "The rank that reports this is in backward of step 7, at " in message
    assert message.endswith("--from_resume 1.")


def test_error_that_a_rank_reports_is_named_at_the_next_look(begun):
    watch, child = begun
    watch._local_ranks = [0]  # rank 1 is on another machine
    now = watch._progress_at + 6.0
    failed = dataclasses.replace(watch._status(1), failure="KeyError: 'a'")
    watch._exchange.reply = Reply(time=now, statuses={0: watch._status(1), 1: failed})
    with pytest.raises(ExitError, match=rf"rank 1 \(process {child.pid} on a\) is lost: KeyError: 'a'\."):
        watch._check_run(now)


def test_own_error_is_in_the_last_report(begun):
    watch, _ = begun
    watch._exchange.report_now = lambda timeout: watch._exchange._report(7)
    watch.fail("KeyError: 'a'")
    assert RankStatus.from_json(watch._exchange._store.get("status/0")).failure == "KeyError: 'a'"


def test_signals_of_the_launcher_are_ignored_after_a_rank_is_lost(begun):
    watch, child = begun
    child.kill()
    (descriptor,) = ended_processes(watch)
    watch._handle_process_end(descriptor, 100.0)
    watch._handle_signal(SIGTERM, 100.0)
    assert watch.stop_reason is None


@pytest.mark.parametrize(("status", "said"), [(PREEMPTED, "rank 1 was asked to stop in phase"), (130, "SIGINT again")])
def test_rank_that_a_signal_ended_is_not_reported_as_lost(status, said, begun, monkeypatch):
    """All ranks get the signal; the others notice the end of the first one before they have handled theirs."""
    watch, child = begun
    watch.can_save()
    monkeypatch.setattr(watch_module, "read_exit_status", lambda pid: status)
    child.kill()
    (descriptor,) = ended_processes(watch)
    with pytest.raises(ExitError, match=said) as caught:
        watch._handle_process_end(descriptor, 100.0)
    assert caught.value.args[0] == status


def test_end_of_the_launcher_asks_for_a_stop(begun):
    watch, child = begun
    watch.can_save()
    watch._processes = dict.fromkeys(watch._processes)  # as if the child were the launcher
    child.kill()
    (descriptor,) = ended_processes(watch)
    watch._handle_process_end(descriptor, 100.0)
    assert watch.stop_reason == "the launcher has exited"
    assert watch._lost == {}


def test_statuses_are_requested_only_after_five_idle_seconds(begun):
    watch, _ = begun
    watch._check_run(watch._progress_at + 5.0)
    assert not watch._exchange._requested.is_set()
    watch._check_run(watch._progress_at + 5.1)
    assert watch._exchange._requested.is_set()
    watch._check_run(watch._progress_at + 1.0)
    assert not watch._exchange._requested.is_set()


def test_stuck_run_kills_the_late_rank_and_prints_one_message(begun, capsys):
    watch, child = begun
    watch.enter("backward", 7)
    now = watch._progress_at + 61.0
    late = watch._status(0)
    watch.enter("optimizer step")
    own = watch._status(0)
    watch._progress_at = now - 61.0
    watch._exchange.reply = Reply(time=now, statuses={0: own, 1: late})
    watch._history.record({0: own, 1: late}, now - 61.0)
    with pytest.raises(ExitError) as caught:
        watch._check_run(now)
    assert caught.value.args == (FAILED, None)
    assert child.wait(timeout=30) == -signal.SIGKILL
    said = capsys.readouterr().err
    assert said.count("LaunchError") == 1
    assert "no rank has made progress for 60 s (--timeout); rank 1 has not arrived" in said
    assert "waiting in optimizer step of step 7" in said


def test_statuses_are_forgotten_after_the_process_was_suspended(begun):
    watch, _ = begun
    watch._exchange.reply = Reply(time=1.0, statuses={})
    watch._history.record({1: watch._status(0)}, 1.0)
    watch._forget_statuses(500.0)
    assert watch._exchange.reply is None
    assert watch._history.statuses == {}
    assert watch._progress_at == 500.0
