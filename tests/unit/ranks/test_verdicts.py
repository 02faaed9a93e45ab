"""Verdicts from hand-made statuses: lost ranks, stuck runs, and their messages."""

from __future__ import annotations

import pytest

from minimind.ranks.status import Peer, RankStatus, StatusHistory
from minimind.ranks.verdicts import (
    GRACE_SECONDS,
    IDLE_SECONDS,
    LostRank,
    StuckRun,
    describe_lost_ranks,
    find_failed_ranks,
    find_unresponsive_ranks,
    grace_is_over,
    is_stuck,
    notice_seconds,
    read_interval,
    silence_limit,
)

PEERS = {
    rank: Peer(local_rank=rank % 2, pid=100 + rank, host=host, machine=host, device="cpu", devices=0)
    for rank, host in enumerate("aabb")
}


def status(phases, *, heartbeat=0, seconds=0.0, waits=False, phase="backward", failure="") -> RankStatus:
    return RankStatus(
        heartbeat=heartbeat,
        phases=phases,
        ticks=0,
        phase=phase,
        step=7,
        seconds=seconds,
        line="x.py:1",
        waits=waits,
        failure=failure,
    )


def history_at(now, statuses) -> StatusHistory:
    history = StatusHistory()
    history.record(statuses, now)
    return history


@pytest.mark.parametrize(("ranks", "seconds"), [(2, 5.0), (100, 5.0), (400, 20.0)])
def test_statuses_are_read_less_often_by_many_ranks(ranks, seconds):
    assert read_interval(ranks) == seconds
    assert silence_limit(ranks) == 25.0 + seconds


@pytest.mark.parametrize("ranks", [2, 100, 400, 1000, 8000])
def test_notice_time_covers_idle_time_silence_and_two_reads(ranks):
    # The watch reads after it was idle, sees the heartbeat within one interval, and its end within another.
    assert notice_seconds(ranks) >= IDLE_SECONDS + silence_limit(ranks) + 2 * read_interval(ranks)


def unresponsive(history, *, known=(0, 1), now=100.0, idle=50.0, read_at=100.0, store_failed_at=None):
    return find_unresponsive_ranks(
        history,
        known=known,
        now=now,
        idle=idle,
        read_at=read_at,
        store_failed_at=store_failed_at,
        silence=30.0,
    )


@pytest.fixture
def silent_rank_2():
    """Rank 2 stopped at heartbeat 5 at time 60; ranks 0, 1 and 3 sent another one at time 100."""
    history = history_at(60.0, {rank: status(4, heartbeat=5) for rank in range(4)})
    history.record({rank: status(4, heartbeat=5 if rank == 2 else 45) for rank in range(4)}, 100.0)
    return history


def test_rank_without_heartbeat_is_lost_without_further_grace_time(silent_rank_2):
    lost = unresponsive(silent_rank_2)
    assert lost == {2: LostRank(since=100.0 - GRACE_SECONDS, cause="no sign of life for 30 s")}


def test_silence_is_no_loss_while_this_rank_makes_progress(silent_rank_2):
    assert unresponsive(silent_rank_2, idle=29.0) == {}


def test_known_ranks_are_not_found_again(silent_rank_2):
    assert unresponsive(silent_rank_2, known=(0, 1, 2)) == {}


@pytest.mark.parametrize(
    ("options", "since"),
    [
        ({"store_failed_at": 90.0, "idle": 10.0}, 90.0),
        ({"read_at": 69.0}, 100.0),  # no answer of the store for 31 s
    ],
)
def test_rank_0_is_lost_if_its_store_fails_or_is_silent(options, since):
    lost = unresponsive(StatusHistory(), known=(2, 3), **options)
    assert lost == {0: LostRank(since=since, cause="neither it nor its machine responds")}


def test_rank_0_of_this_machine_is_not_lost_with_its_store():
    assert unresponsive(StatusHistory(), known=(0, 1), read_at=69.0, store_failed_at=90.0) == {}


def test_run_is_stuck_when_no_rank_has_made_progress_within_the_timeout():
    history = history_at(100.0, {0: status(4, seconds=61.0), 1: status(4, seconds=70.0)})
    assert is_stuck(history, now=100.0, idle=70.0, timeout=60.0)
    assert not is_stuck(history, now=100.0, idle=70.0, timeout=61.0)


def test_run_is_not_stuck_while_one_rank_makes_progress():
    history = history_at(100.0, {0: status(4, seconds=500.0), 1: status(4, seconds=1.0)})
    assert not is_stuck(history, now=100.0, idle=500.0, timeout=60.0)


@pytest.mark.parametrize(("idle", "stuck"), [(14.0, False), (16.0, True)])
def test_run_without_answers_is_stuck_after_the_store_had_ten_seconds_to_answer(idle, stuck):
    # 5 s until the first read, 10 s for the answer: both exceed the timeout of 6 s.
    assert is_stuck(StatusHistory(), now=100.0, idle=idle, timeout=6.0) == stuck


def test_stuck_run_names_the_late_rank_and_where_the_others_wait():
    statuses = {rank: status(8, waits=True) for rank in range(4)} | {2: status(7, phase="policy forward")}
    stuck = StuckRun.from_statuses(history_at(0.0, statuses), 0, statuses[0])
    assert (stuck.late, stuck.waiting) == ([2], [0, 1, 3])
    assert stuck.message(PEERS, 60.0, "Hint.") == (
        "LaunchError: no rank has made progress for 60 s (--timeout); rank 2 has not arrived: rank 2 (process 102 on b)"
        " is in policy forward of step 7, at x.py:1; waiting in backward of step 7, at x.py:1: ranks 0-1, 3. Hint."
    )


def test_stuck_run_without_answers_blames_rank_0_which_holds_the_store():
    stuck = StuckRun.from_statuses(StatusHistory(), 1, status(8, phase="saving"))
    assert stuck.message(PEERS, 6.0, "Hint.") == (
        "LaunchError: no rank has made progress for 6 s (--timeout); rank 0 has not arrived: rank 0 (process 100 on a)"
        " does not answer; waiting in saving of step 7, at x.py:1: rank 1. Hint."
    )


def test_own_status_replaces_the_older_one_of_the_store():
    history = history_at(0.0, {0: status(7), 1: status(7, waits=True)})
    assert StuckRun.from_statuses(history, 0, status(8, waits=True)).late == [1]


def test_one_rank_of_a_machine_prints_and_it_is_not_a_late_one_if_possible():
    statuses = {rank: status(7 if rank in (0, 2, 3) else 8) for rank in range(4)}
    stuck = StuckRun.from_statuses(history_at(0.0, statuses), 0, statuses[0])
    assert stuck.speaker([0, 1]) == 1
    assert stuck.speaker([2, 3]) == 2


def test_message_about_many_late_ranks_lists_eight():
    history = history_at(0.0, {rank: status(7) for rank in range(12)})
    peers = dict.fromkeys(range(12), PEERS[0])
    message = StuckRun.from_statuses(history, 0, status(7)).message(peers, 6.0, "")
    assert "ranks 0-11 have not arrived" in message
    assert message.count("is in backward") == 8


def test_rank_that_reports_an_error_is_lost_without_grace():
    history = history_at(90.0, {0: status(5), 2: status(4, failure="KeyError: 'a'"), 3: status(4, failure="x")})
    lost = find_failed_ranks(history, known=[0, 1, 3], now=100.0)
    assert lost == {2: LostRank(since=100.0 - GRACE_SECONDS, cause="KeyError: 'a'")}


def test_lost_ranks_are_described_with_process_cause_and_last_status():
    lost = {2: LostRank(since=1.0, cause="killed by SIGKILL"), 1: LostRank(since=2.0, cause="it exited with status 1")}
    message = describe_lost_ranks(lost, PEERS, {1: status(4)}, status(5, phase="saving"), "Hint.")
    told = describe_lost_ranks(lost, PEERS, {1: status(4, failure="KeyError: 'a'")}, status(5, phase="saving"), "Hint.")
    assert told == message.replace("it exited with status 1", "KeyError: 'a'")
    assert message == (
        "LaunchError: rank 1 (process 101 on a) is lost: it exited with status 1. Last seen in backward of step 7, at "
        "x.py:1. rank 2 (process 102 on b) is lost: killed by SIGKILL. The rank that reports this is in saving of step "
        "7, at x.py:1. Hint."
    )


@pytest.mark.parametrize(
    ("seconds", "read_after", "store_failed", "over"),
    [
        (2.9, True, False, False),
        (3.1, True, False, True),
        (3.1, False, False, False),
        (3.1, False, True, True),
        (6.1, False, False, True),
    ],
)
def test_grace_time_is_doubled_until_the_last_reports_are_read(seconds, read_after, store_failed, over):
    lost = {1: LostRank(since=100.0, cause="killed"), 3: LostRank(since=101.0, cause="killed")}
    read_at = 100.5 if read_after else 99.5
    failed_at = 102.0 if store_failed else None
    assert grace_is_over(lost, now=100.0 + seconds, read_at=read_at, store_failed_at=failed_at) is over
