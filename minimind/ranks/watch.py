"""A watch over the run, in threads of each rank: signals, ranks that die, ranks that do not arrive.

    main thread    enter(phase), tick()             assignments only, nothing on the step's path
    watch thread   signals, deaths on this machine  at once, through file descriptors
    mail thread    own place -> store every second; when nothing moves, every rank's place <- store

A run is stuck when no rank has moved for `timeout` seconds: while one rank tokenises and says so, the others may wait.
The threads end the process themselves, since a main thread that waits inside a collective hears nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import NoReturn

import torch.distributed as dist

from minimind.ranks.exits import PREEMPTED, describe_exit, read_exit_status
from minimind.ranks.status import Ledger, Peer, Place, behind, locate, name_ranks

# Signals that ask for a stop; the same one again, later than this after the first, ends the process at once. One
# request may arrive twice: the launcher hands on what its whole process group was sent. Another signal is no
# repetition: Slurm sends SIGTERM at the end of the time that SIGUSR1 gave notice of.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_AGAIN_SECONDS = 3.0
# A rank whose neighbour has died gets this long to end by an error of its own, which says more.
_GRACE_SECONDS = 3.0
# Standing still for so long, a rank looks where the others are.
_LOOK_SECONDS = 5.0
# How long the store may take to answer.
_UNANSWERED_SECONDS = 10.0
# A rank of another machine that gives no sign of life for so long is gone, if nothing moves here either.
_SILENT_SECONDS = 25.0
_EVER = datetime.timedelta(days=365)


class Watch:
    """One rank's watch. Before `begin` it only remembers phases, which is all that a process alone needs.

    Attributes:
        stop_reason: why the run is to stop after this step, None if it is not.
        timeout: seconds without progress after which a run is stuck.
        hint: what to do about a run that has ended so.
    """

    def __init__(self) -> None:
        self.stop_reason: str | None = None
        self.hint = "What was saved can be gone on from: --from_resume 1."
        self.timeout = float("inf")
        self._phase, self._step, self._moves, self._ticks = "starting", 0, 0, 0
        self._moved = time.monotonic()
        self._peers: Mapping[int, Peer] = {}
        self._meetings = 0
        self._can_save = False
        self._heard: dict[int, float] = {}
        self._gone: dict[int, tuple[float, str]] = {}
        self._closing = threading.Event()

    def enter(self, phase: str, step: int | None = None) -> None:
        """The main thread enters a phase. All ranks must enter the same ones in the same order."""
        self._phase = phase
        self._step = self._step if step is None else step
        self._moves += 1
        self._moved = time.monotonic()

    def tick(self) -> None:
        """The main thread gets on within its phase."""
        self._ticks += 1
        self._moved = time.monotonic()

    def can_save(self) -> None:
        """From here on a request to stop is seen by the training loop; before, it ends the process at once."""
        self._can_save = True

    def begin(
        self,
        store: dist.Store,
        own_store: dist.Store,
        peers: Mapping[int, Peer],
        rank: int,
        launchers: list[int],
        timeout: float,
    ) -> None:
        """Start watching.

        Args:
            store: the ranks' common store, for `meet`.
            own_store: another connection to it, for the mail thread alone.
            peers: every rank's process.
            rank: this rank.
            launchers: processes that must not end before this one.
            timeout: seconds without progress of any rank after which the run is stuck.
        """
        self._store, self._mail_store, self._peers, self._rank, self.timeout = store, own_store, peers, rank, timeout
        self._look = _look_seconds(len(peers))
        self._silence = _SILENT_SECONDS + self._look
        self._here = [other for other, peer in peers.items() if peer.machine == peers[rank].machine]
        self._mail: tuple[float, dict[int, Place]] | None = None
        self._store_lost: float | None = None
        self._wants_mail = threading.Event()
        self._main = threading.main_thread().ident
        self._poll = select.poll()
        self._signals = self._catch_signals()
        self._watched: dict[int, int | None] = {}
        for other in self._here:
            if other != rank:
                self._watch_process(peers[other].pid, other)
        for pid in launchers:
            self._watch_process(pid, None)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        if len(peers) > 1:
            threading.Thread(target=self._post, name="mail", daemon=True).start()

    def close(self) -> None:
        """Stop watching: the ranks are about to end. Signals are not heard any more."""
        self._closing.set()

    def meet(self) -> None:
        """Wait for all ranks, as long as any of them makes progress: unlike a collective it has no time limit."""
        if len(self._peers) < 2:
            return
        self._meetings += 1
        key = f"meeting/{self._meetings}"
        if self._store.add(key, 1) == len(self._peers):
            self._store.set(f"{key}/all", "1")
        self._store.wait([f"{key}/all"], _EVER)
        # The store may be in rank 0's process: it goes on when the others have heard.
        if self._store.add(f"{key}/heard", 1) == len(self._peers):
            self._store.set(f"{key}/done", "1")
        if self._rank == 0:
            self._store.wait([f"{key}/done"], _EVER)

    def _catch_signals(self) -> int:
        """A file descriptor on which signals arrive, whatever the main thread is doing."""
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            signal.signal(number, lambda *_: None)
        self._poll.register(reading, select.POLLIN)
        return reading

    def _watch_process(self, pid: int, rank: int | None) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            # It has ended already, or this kernel cannot watch: its silence will tell.
            return
        self._poll.register(descriptor, select.POLLIN)
        self._watched[descriptor] = rank

    def _watch(self) -> None:
        ledger, woken = Ledger(), time.monotonic()
        while not self._closing.is_set():
            events = self._poll.poll(1000)
            if self._closing.is_set():
                return
            now = time.monotonic()
            if now - woken > _LOOK_SECONDS:
                # This process was itself suspended: that the others seem to stand still says nothing.
                ledger, self._mail, self._moved = Ledger(), None, now
            woken = now
            # Ends first: a launcher signals those who are left.
            for descriptor, _ in sorted(events, key=lambda event: event[0] == self._signals):
                if descriptor == self._signals:
                    for number in os.read(descriptor, 64):
                        self._hear(signal.Signals(number), now)
                else:
                    self._see_end(descriptor, now)
            ledger = self._judge(ledger, now)

    def _hear(self, number: signal.Signals, now: float) -> None:
        if number not in _STOP_SIGNALS or self._gone:
            return  # with a rank gone it is the launcher that ends the others: who is gone must still be said
        if now - self._heard.setdefault(number, now) > _AGAIN_SECONDS:
            self._leave(128 + number, f"{number.name} again: ends at once, with what was saved before")
        if self.stop_reason is None:
            self._ask_to_stop(number.name)

    def _ask_to_stop(self, reason: str) -> None:
        if not self._can_save:
            self._leave(PREEMPTED, f"{reason} in {self._phase}: ends with nothing to save")
        self.stop_reason = reason

    def _see_end(self, descriptor: int, now: float) -> None:
        """A process of this machine has ended: a rank, or the launcher."""
        self._poll.unregister(descriptor)
        os.close(descriptor)
        rank = self._watched.pop(descriptor)
        if rank is not None:
            status = read_exit_status(self._peers[rank].pid)
            if status == PREEMPTED and not self._can_save:
                self._ask_to_stop(f"{name_ranks([rank])} was told to stop")
            self._gone[rank] = (now, describe_exit(status))
        elif self.stop_reason is None:
            self._ask_to_stop("the launcher is gone")

    def _judge(self, ledger: Ledger, now: float) -> Ledger:
        """End the process if ranks are gone or stuck; returns the ledger to go on with."""
        still = now - self._moved
        if self._gone or still > _LOOK_SECONDS:
            self._wants_mail.set()
        else:
            self._wants_mail.clear()
            self._mail = None
            return Ledger()
        heard = now - still  # when the store last answered
        if self._mail is not None:
            heard, places = self._mail
            ledger.note(places, heard)
        if still > self._silence:
            for rank in set(ledger.silent(heard, self._silence)) - set(self._here) - set(self._gone):
                self._gone[rank] = (now - _GRACE_SECONDS, f"no sign of life for {self._silence:.0f} s")
        if 0 not in self._gone and 0 not in self._here and (self._store_lost or now - heard > self._silence):
            self._gone[0] = (self._store_lost or now, "it, or its machine, does not answer")
        if self._gone and now - min(since for since, _ in self._gone.values()) >= _GRACE_SECONDS:
            self._end_gone(ledger)
        # Without a letter for some time it is rank 0 that does not answer: the letters are in its store.
        told = bool(ledger.places) or still > _LOOK_SECONDS + _UNANSWERED_SECONDS
        if told and min(still, ledger.quiet(now) if ledger.places else still) > self.timeout:
            self._end_stuck(ledger)
        return ledger

    def _end_gone(self, ledger: Ledger) -> NoReturn:
        told = []
        for rank, (_, how) in sorted(self._gone.items()):
            known = rank in ledger.places
            where = f" Last seen in {ledger.places[rank]}." if known else f" This rank was in {self._place(0)}."
            told.append(f"rank {rank} ({self._peers[rank]}) is gone: {how}.{where}")
        speaks = self._rank == min(set(self._here) - set(self._gone))
        self._leave(1, f"LaunchError: {' '.join(told)} {self.hint}" if speaks else None)

    def _end_stuck(self, ledger: Ledger) -> NoReturn:
        places = {**ledger.places, self._rank: self._place(0)}
        late = behind(places) if ledger.places else [0]
        told = [
            f"rank {rank} ({self._peers[rank]}) {f'is in {places[rank]}' if rank in places else 'does not answer'}"
            for rank in late[:8]
        ]
        others = sorted(set(places) - set(late))
        if others:
            told.append(f"waiting in {places[others[0]]}: {name_ranks(others)}")
        what = "has" if len(late) == 1 else "have"
        # One rank a machine speaks, if it can one that is not late.
        speaker = min({*self._here} & {*others} or self._here)
        text = (
            f"LaunchError: no rank has made progress for {self.timeout:.0f} s (--timeout); {name_ranks(late)} {what} "
            f"not arrived: {'; '.join(told)}. {self.hint}"
        )
        if speaker != self._rank and self._ends(speaker, 2 * self._look):
            self._leave(1, None)
        self._say(text)
        for descriptor, rank in self._watched.items():
            if rank in late:  # what hangs may not hear the launcher, which would wait half a minute for it
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        self._leave(1, None)

    def _ends(self, rank: int, seconds: float) -> bool:
        """Whether a rank of this machine ends within a time: it comes to the same verdict, perhaps a little later."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for descriptor, _ in self._poll.poll(200):
                if descriptor == self._signals:
                    os.read(descriptor, 64)
                elif self._watched[descriptor] == rank:
                    return True
                else:
                    self._poll.unregister(descriptor)
        return False

    def _say(self, text: str | None) -> None:
        with contextlib.suppress(OSError, ValueError):  # whoever read it may be gone too
            if text is not None:
                print(f"\n{text}", file=sys.stderr, flush=True)

    def _leave(self, status: int, text: str | None) -> NoReturn:
        self._say(text)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)

    def _place(self, beat: int) -> Place:
        line, waits = locate(sys._current_frames().get(self._main or 0))
        return Place(
            beat=beat,
            moves=self._moves,
            ticks=self._ticks,
            phase=self._phase,
            step=self._step,
            seconds=time.monotonic() - self._moved,
            line=line,
            waits=waits,
        )

    def _post(self) -> None:
        """Mail: the store of a rank 0 that is gone may never answer, which must not stop the watch itself."""
        keys = [f"place/{rank}" for rank in self._peers]
        beat, looked = 0, 0.0
        try:
            self._mail_store.set(keys[self._rank], self._place(0).to_json())
            while not self._closing.wait(1.0) and 0 not in self._gone:
                beat += 1
                self._mail_store.set(keys[self._rank], self._place(beat).to_json())
                now = time.monotonic()
                if (
                    self._wants_mail.is_set()
                    and (self._gone or now - looked > self._look)
                    and self._mail_store.check(keys)
                ):
                    letters = self._mail_store.multi_get(keys)
                    self._mail = (now, {rank: Place.from_json(text) for rank, text in enumerate(letters)})
                    looked = now
        except RuntimeError:
            self._store_lost = time.monotonic()


def _look_seconds(ranks: int) -> float:
    """How often a rank looks where the others are. All ask rank 0's store: the more they are, the less often."""
    return max(_LOOK_SECONDS, ranks / 20)


def notice_seconds(ranks: int) -> float:
    """How long it may take at most until a watch has noticed, and said, that a rank of another machine is gone."""
    return _LOOK_SECONDS + _SILENT_SECONDS + 3 * _look_seconds(ranks)
