"""What a rank makes of signals and ends; tests/distributed has real ones."""

from __future__ import annotations

import signal
from signal import SIGTERM, SIGUSR1

import pytest

from minimind.ranks import watch
from minimind.ranks.watch import PREEMPTED, Watch, notice_seconds


class LeftError(Exception):
    """Instead of the process's end."""


@pytest.fixture
def training(monkeypatch):
    """A watch in the training loop."""

    def leave(self, status, text):
        raise LeftError(status, text)

    monkeypatch.setattr(Watch, "_leave", leave)
    one = Watch()
    one.can_save()
    return one


def test_a_request_that_arrives_twice_is_one(training):
    training._hear(SIGTERM, 100.0)
    training._hear(SIGTERM, 102.9)
    assert training.stop_reason == "SIGTERM"


def test_the_same_signal_again_ends_at_once(training):
    training._hear(SIGUSR1, 100.0)
    training._hear(SIGUSR1, 101.0)
    with pytest.raises(LeftError, match="SIGUSR1 again") as caught:
        training._hear(SIGUSR1, 103.1)
    assert caught.value.args[0] == 128 + SIGUSR1


def test_slurms_own_end_does_not_cut_the_save_that_its_notice_began(training):
    training._hear(SIGUSR1, 100.0)
    training._hear(SIGTERM, 220.0)
    assert training.stop_reason == "SIGUSR1"
    with pytest.raises(LeftError, match="SIGTERM again"):
        training._hear(SIGTERM, 230.0)


def test_a_launcher_that_is_gone_is_no_signal(training):
    training._ask_to_stop("the launcher is gone")
    training._hear(SIGTERM, 200.0)  # of a user who ends what is left
    assert training.stop_reason == "the launcher is gone"
    with pytest.raises(LeftError, match="SIGTERM again"):
        training._hear(SIGTERM, 204.0)


def test_before_there_is_anything_to_save_one_signal_is_enough(training):
    training._can_save = False
    with pytest.raises(LeftError, match="nothing to save") as caught:
        training._hear(SIGTERM, 100.0)
    assert caught.value.args[0] == PREEMPTED


def test_other_signals_are_not_a_request(training):
    training._hear(signal.SIGWINCH, 100.0)
    assert training.stop_reason is None


@pytest.mark.parametrize("ranks", [2, 100, 400, 1000, 8000])
def test_a_broken_connection_waits_longer_than_the_watch_needs(ranks):
    look = max(watch._LOOK_SECONDS, ranks / 20)
    # It looks after standing still, hears of the others once a look, and gives them their silence from then on.
    assert notice_seconds(ranks) >= watch._LOOK_SECONDS + (watch._SILENT_SECONDS + look) + look
