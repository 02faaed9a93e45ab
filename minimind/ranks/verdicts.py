"""Verdicts about a run: which ranks are lost, whether the run is stuck, and the messages that say so.

StatusHistory of all ranks, ended processes, state of the store -> lost ranks, stuck ranks -> text of a LaunchError

Pure functions; watch.py collects the facts and ends the process. Times are seconds of this process's monotonic clock.

A run is stuck if no rank has made progress for `timeout` seconds. One rank may tokenise for an hour while the others
wait, as long as it reports ticks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from minimind.ranks.status import Peer, RankStatus, StatusHistory, name_ranks, slowest_ranks

# A rank waits so long between the loss of another rank and its own exit. The loss often raises an error in the main
# thread, which then explains more than the watch can.
GRACE_SECONDS = 3.0
# A rank without progress for so long reads the statuses of the others.
IDLE_SECONDS = 5.0
# Time that the store may take to answer.
STORE_ANSWER_SECONDS = 10.0
# A rank of another machine without a heartbeat for so long is lost, if this rank makes no progress either.
_SILENT_SECONDS = 25.0
# A message names at most so many stuck ranks one by one.
_NAMED_RANKS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class LostRank:
    """A rank that has died or does not respond.

    Attributes:
        since: when this was noticed.
        cause: how, for a message.
    """

    since: float
    cause: str


def read_interval(ranks: int) -> float:
    """Seconds between two reads of all statuses. It grows with the number of ranks, since rank 0's store serves all."""
    return max(IDLE_SECONDS, ranks / 20)


def silence_limit(ranks: int) -> float:
    """Seconds without a heartbeat after which a rank of another machine is lost."""
    return _SILENT_SECONDS + read_interval(ranks)


def notice_seconds(ranks: int) -> float:
    """Upper limit of the seconds from the loss of a rank on another machine to the watch's message about it.

    The watch starts to read after IDLE_SECONDS, gets the first heartbeat within one interval, waits for the silence
    limit (which contains a second interval), and notices the end of it within a third one.
    """
    return IDLE_SECONDS + _SILENT_SECONDS + 3 * read_interval(ranks)


def find_failed_ranks(history: StatusHistory, *, known: Collection[int], now: float) -> dict[int, LostRank]:
    """Ranks whose last report names the error that ends them; for the arguments see `find_unresponsive_ranks`."""
    return {
        # No grace time: nothing explains more than the error itself.
        rank: LostRank(since=now - GRACE_SECONDS, cause=status.failure)
        for rank, status in history.statuses.items()
        if status.failure and rank not in known
    }


def find_unresponsive_ranks(
    history: StatusHistory,
    *,
    known: Collection[int],
    now: float,
    idle: float,
    read_at: float,
    store_failed_at: float | None,
    silence: float,
) -> dict[int, LostRank]:
    """Ranks of other machines that are lost, as far as their silence shows.

    Args:
        history: statuses of all ranks.
        known: ranks whose process this rank watches directly, and ranks that are already known to be lost.
        now: the current time.
        idle: seconds since this rank itself made progress.
        read_at: when the store last answered; without an answer, when this rank last made progress.
        store_failed_at: when the connection to the store broke, if it did.
        silence: seconds without a heartbeat after which a rank is lost.
    """
    lost = {}
    if idle > silence:
        for rank in set(history.silent_ranks(read_at, silence)) - set(known):
            # No further grace time: the silence has lasted longer than that.
            lost[rank] = LostRank(since=now - GRACE_SECONDS, cause=f"no sign of life for {silence:.0f} s")
    # Rank 0 holds the store, so its silence is that of the store.
    if 0 not in {*known, *lost} and (store_failed_at or now - read_at > silence):
        lost[0] = LostRank(since=store_failed_at or now, cause="neither it nor its machine responds")
    return lost


def grace_is_over(lost: Mapping[int, LostRank], *, now: float, read_at: float, store_failed_at: float | None) -> bool:
    """Whether to exit for lost ranks now: after GRACE_SECONDS, or twice as long if their last reports are not read yet.

    Args:
        lost: at least one rank.
        now, read_at, store_failed_at: as of `find_unresponsive_ranks`.
    """
    since = min(loss.since for loss in lost.values())
    has_read = read_at > since or store_failed_at is not None
    return now - since >= (GRACE_SECONDS if has_read else 2 * GRACE_SECONDS)


def is_stuck(history: StatusHistory, *, now: float, idle: float, timeout: float) -> bool:
    """Whether no rank has made progress for `timeout` seconds; `idle` is this rank's time without progress."""
    if history.statuses:
        return min(idle, history.seconds_without_progress(now)) > timeout
    # No statuses although the store had time to answer: rank 0, which holds it, is suspended or unreachable.
    return idle > max(timeout, IDLE_SECONDS + STORE_ANSWER_SECONDS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StuckRun:
    """A run in which no rank makes progress.

    Attributes:
        statuses: latest status by rank; only this rank's if rank 0, which holds the store, does not answer.
        late: the ranks that the others wait for.
        waiting: the other ranks.
    """

    statuses: Mapping[int, RankStatus]
    late: list[int]
    waiting: list[int]

    @classmethod
    def from_statuses(cls, history: StatusHistory, rank: int, own_status: RankStatus) -> StuckRun:
        """Conclude which ranks are late; `rank` is this rank."""
        statuses = {**history.statuses, rank: own_status}
        late = slowest_ranks(statuses) if history.statuses else [0]
        return cls(statuses=statuses, late=late, waiting=sorted(set(statuses) - set(late)))

    def speaker(self, local_ranks: Collection[int]) -> int:
        """The rank of a machine that prints the message: one that is not late if there is one, since it can print."""
        return min(set(local_ranks) & set(self.waiting) or local_ranks)

    def message(self, peers: Mapping[int, Peer], timeout: float, hint: str) -> str:
        """Text of the error: late ranks with their statuses, and where the others wait."""
        details = [
            f"rank {rank} ({peers[rank]}) "
            + (f"is in {self.statuses[rank]}" if rank in self.statuses else "does not answer")
            for rank in self.late[:_NAMED_RANKS]
        ]
        if self.waiting:
            details.append(f"waiting in {self.statuses[self.waiting[0]]}: {name_ranks(self.waiting)}")
        verb = "has" if len(self.late) == 1 else "have"
        return (
            f"LaunchError: no rank has made progress for {timeout:.0f} s (--timeout); {name_ranks(self.late)} {verb} "
            f"not arrived: {'; '.join(details)}. {hint}"
        )


def describe_lost_ranks(
    lost: Mapping[int, LostRank],
    peers: Mapping[int, Peer],
    statuses: Mapping[int, RankStatus],
    own_status: RankStatus,
    hint: str,
) -> str:
    """Text of the error about lost ranks: process, cause, and last status as far as it is known."""
    sentences = []
    for rank, loss in sorted(lost.items()):
        if rank in statuses:
            last_status = f"Last seen in {statuses[rank]}."
        else:
            last_status = f"The rank that reports this is in {own_status}."
        # Of a rank of the same machine first its end is noticed, then its last report is read.
        cause = (rank in statuses and statuses[rank].failure) or loss.cause
        sentences.append(f"rank {rank} ({peers[rank]}) is lost: {cause}. {last_status}")
    return f"LaunchError: {' '.join(sentences)} {hint}"
