"""Watch of one rank: notices signals, ranks that die, and runs that are stuck, and ends the process.

    main thread     enter(phase), tick()            two or three assignments, so that a step loses no time
    watch thread    signals, ended processes        at once, through file descriptors
                    verdicts about the run          once a second (verdicts.py)
    status thread   exchange of rank statuses       once a second (status_store.py)

The threads end the process themselves: a main thread that is blocked inside a collective runs no Python code.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch.distributed as dist

from minimind.ranks.exits import FAILED, PREEMPTED, describe_exit, leave, read_exit_status, say
from minimind.ranks.meeting import Meetings
from minimind.ranks.signals import STOP_SIGNALS, DeepspeedCommand, Repeats, catch_signals, read_signals
from minimind.ranks.status import Peer, RankStatus, StatusHistory, locate, name_ranks
from minimind.ranks.status_store import StatusExchange
from minimind.ranks.verdicts import (
    IDLE_SECONDS,
    LostRank,
    StuckRun,
    describe_lost_ranks,
    find_failed_ranks,
    find_unresponsive_ranks,
    grace_is_over,
    is_stuck,
    read_interval,
    silence_limit,
)

_POLL_MS = 1000
_TELL_SECONDS = 5.0


class Watch:
    """The watch of one rank. Without `listen` it only records phases, which is enough for a process without peers.

    Attributes:
        stop_reason: why the run must stop after the current step; None if it continues.
        timeout: seconds without progress of any rank after which the run is stuck.
        hint: advice to the user, printed with every message that ends the run.
    """

    def __init__(self) -> None:
        self.stop_reason: str | None = None
        self.hint = "To continue from the last checkpoint: --from_resume 1."
        self.timeout = float("inf")
        self._phase, self._step, self._phases, self._ticks, self._failure = "starting", 0, 0, 0, ""
        self._progress_at = time.monotonic()
        self._peers: Mapping[int, Peer] = {}
        self._meetings: Meetings | None = None
        self._can_save = self._speaks = False
        self._repeats = Repeats()
        self._lost: dict[int, LostRank] = {}
        self._history = StatusHistory()
        self._exchange: StatusExchange | None = None
        self._closing = threading.Event()

    def enter(self, phase: str, step: int | None = None) -> None:
        """Record that the main thread enters a phase. All ranks must enter the same phases in the same order."""
        self._phase = phase
        self._step = self._step if step is None else step
        self._phases += 1
        self._progress_at = time.monotonic()

    def tick(self) -> None:
        """Record that the main thread makes progress within its phase."""
        self._ticks += 1
        self._progress_at = time.monotonic()

    def can_save(self) -> None:
        """Declare that the training loop now reads `stop_reason`. Before, a request to stop ends the process."""
        self._can_save = True

    def listen(self, local_rank: int, launchers: Sequence[int]) -> None:
        """Start the watch thread: signals and the end of the launcher from here on, ranks from `begin` on.

        Args:
            local_rank: number of this rank on its machine; number 0 prints the messages about signals.
            launchers: process ids of the launcher, the rank's parent first; the run stops when one of them ends.
        """
        self._speaks = local_rank == 0
        self._main_thread = threading.main_thread().ident
        self._poll = select.poll()
        self._signal_pipe = catch_signals()
        self._poll.register(self._signal_pipe, select.POLLIN)
        self._command = DeepspeedCommand(launchers)
        # Descriptor of a watched process -> its rank; None for a launcher.
        self._processes: dict[int, int | None] = {}
        for pid in launchers:
            self._watch_process(pid, None)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def begin(
        self, store: dist.Store, status_store: dist.Store, peers: Mapping[int, Peer], rank: int, timeout: float
    ) -> None:
        """Watch the other ranks too, and start the status thread; `listen` comes first.

        Args:
            store: the ranks' common store, for `meet`.
            status_store: another connection to it, for the status thread alone.
            peers: every rank's process.
            rank: this rank.
            timeout: seconds without progress of any rank after which the run is stuck.
        """
        self._peers, self._rank, self.timeout = peers, rank, timeout
        self._local_ranks = [other for other, peer in peers.items() if peer.machine == peers[rank].machine]
        for other in self._local_ranks:
            if other != rank:
                self._watch_process(peers[other].pid, other)
        # Last, because the watch thread looks at the other ranks as soon as it is there.
        self._exchange = StatusExchange(status_store, rank, len(peers), read_interval(len(peers)), self._status)
        if len(peers) > 1:
            self._meetings = Meetings(store, rank, len(peers))
            self._exchange.start()

    def fail(self, error: str) -> None:
        """Tell the other ranks the error that is about to end this process, if the store answers within seconds."""
        self._failure = error
        if self._exchange is not None and len(self._peers) > 1:
            self._exchange.report_now(_TELL_SECONDS)

    def close(self) -> None:
        """Stop the threads, because the ranks are about to end. Signals have no effect any more."""
        self._closing.set()
        if self._exchange is not None:
            self._exchange.stop()

    def meet(self) -> None:
        """Wait until all ranks have called it, without a time limit. The watch ends the run if it is stuck."""
        if self._meetings is not None:
            self._meetings.meet()

    def _watch_process(self, pid: int, rank: int | None) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            # The process has already ended, or the kernel has no pidfd: its missing heartbeat will show it.
            return
        self._processes[descriptor] = rank
        self._poll.register(descriptor, select.POLLIN)

    def _watch(self) -> None:
        woken_at = time.monotonic()
        while not self._closing.is_set():
            events = self._poll.poll(_POLL_MS)
            if self._closing.is_set():
                return
            now = time.monotonic()
            if now - woken_at > IDLE_SECONDS:
                self._forget_statuses(now)
            woken_at = now
            # Ended processes first: a launcher that loses one rank sends SIGTERM to the others, and the lost rank must
            # be known before that signal is handled.
            for descriptor, _ in sorted(events, key=lambda event: event[0] == self._signal_pipe):
                if descriptor == self._signal_pipe:
                    for number in read_signals(descriptor):
                        self._handle_signal(number, now)
                else:
                    self._handle_process_end(descriptor, now)
            self._check_run(now)

    def _forget_statuses(self, now: float) -> None:
        """Discard the statuses after this process was suspended: they would make the other ranks look stuck."""
        self._history, self._progress_at = StatusHistory(), now
        if self._exchange is not None:
            self._exchange.discard()

    def _handle_signal(self, number: signal.Signals, now: float) -> None:
        if number == signal.SIGINT:
            self._command.end()
        # If a rank is lost the launcher ends the others by signals. They must still report the lost rank.
        if number not in STOP_SIGNALS or self._lost:
            return
        if self._repeats.again(number, now):
            self._exit_at_once(number)
        if self.stop_reason is None:
            self._request_stop(number.name)
            if self._speaks:
                again = f"a second one (kill -{number.name.removeprefix('SIG')} {os.getpid()})"
                say(f"{number.name}: the run saves after this step and exits; {again} ends it at once")

    def _exit_at_once(self, number: signal.Signals) -> NoReturn:
        message = f"{number.name} again: exiting at once; only earlier checkpoints are kept"
        leave(128 + number, message if self._speaks else None)

    def _request_stop(self, reason: str) -> None:
        if not self._can_save:
            self._exit_unsaved(reason)
        self.stop_reason = reason

    def _exit_unsaved(self, reason: str) -> NoReturn:
        message = f"{reason} in phase {self._phase}: exiting; there is nothing to save yet"
        leave(PREEMPTED, message if self._speaks else None)

    def _handle_process_end(self, descriptor: int, now: float) -> None:
        """A rank of this machine, or the launcher, has ended."""
        self._poll.unregister(descriptor)
        os.close(descriptor)
        rank = self._processes.pop(descriptor)
        if rank is not None:
            status = read_exit_status(self._peers[rank].pid)
            if status == PREEMPTED:
                # It was not yet in the loop; after a save all ranks meet before they end.
                self._exit_unsaved(f"{name_ranks([rank])} was asked to stop")
            for number in STOP_SIGNALS:
                if status == 128 + number:
                    self._exit_at_once(number)
            self._lost[rank] = LostRank(since=now, cause=describe_exit(status))
        elif self.stop_reason is None:
            self._request_stop("the launcher has exited")

    def _check_run(self, now: float) -> None:
        """End the process if a rank is lost or no rank makes progress."""
        if self._exchange is None:
            return  # the ranks have not come together yet
        idle = now - self._progress_at
        if not self._lost and idle <= IDLE_SECONDS:
            self._exchange.cancel()
            self._history = StatusHistory()
            return
        self._exchange.request(urgent=bool(self._lost))
        reply, read_at = self._exchange.reply, now - idle
        if reply is not None:
            read_at = reply.time
            self._history.record(reply.statuses, read_at)
        self._lost |= find_failed_ranks(self._history, known={*self._local_ranks, *self._lost}, now=now)
        self._lost |= find_unresponsive_ranks(
            self._history,
            known={*self._local_ranks, *self._lost},
            now=now,
            idle=idle,
            read_at=read_at,
            store_failed_at=self._exchange.failed_at,
            silence=silence_limit(len(self._peers)),
        )
        if 0 in self._lost:
            self._exchange.stop()
        if self._lost and grace_is_over(self._lost, now=now, read_at=read_at, store_failed_at=self._exchange.failed_at):
            self._exit_for_lost_ranks()
        if is_stuck(self._history, now=now, idle=idle, timeout=self.timeout):
            self._exit_for_stuck_run()

    def _exit_for_lost_ranks(self) -> NoReturn:
        message = describe_lost_ranks(self._lost, self._peers, self._history.statuses, self._status(0), self.hint)
        # One message per machine.
        speaks = self._rank == min(set(self._local_ranks) - set(self._lost))
        leave(FAILED, message if speaks else None)

    def _exit_for_stuck_run(self) -> NoReturn:
        stuck = StuckRun.from_statuses(self._history, self._rank, self._status(0))
        speaker = stuck.speaker(self._local_ranks)
        if speaker != self._rank and self._ends_within(speaker, 2 * read_interval(len(self._peers))):
            leave(FAILED, None)
        say(stuck.message(self._peers, self.timeout, self.hint))
        for descriptor, rank in self._processes.items():
            # A rank that hangs may ignore SIGTERM, and deepspeed's launcher would wait half a minute for it.
            if rank in stuck.late:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        leave(FAILED, None)

    def _ends_within(self, rank: int, seconds: float) -> bool:
        """Whether a rank of this machine ends within a time: it reaches the same verdict, perhaps a little later."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for descriptor, _ in self._poll.poll(200):
                if descriptor == self._signal_pipe:
                    os.read(descriptor, 64)
                elif self._processes[descriptor] == rank:
                    return True
                else:
                    self._poll.unregister(descriptor)
        return False

    def _status(self, heartbeat: int) -> RankStatus:
        """This rank's status, with the line at which the main thread is now."""
        line, waits = locate(sys._current_frames().get(self._main_thread or 0))
        return RankStatus(
            heartbeat=heartbeat,
            phases=self._phases,
            ticks=self._ticks,
            phase=self._phase,
            step=self._step,
            seconds=time.monotonic() - self._progress_at,
            line=line,
            waits=waits,
            failure=self._failure,
        )
