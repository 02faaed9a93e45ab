"""Seconds that a step spends in each of its phases, without a wait for the device.

    CPU: mark -> host's clock                      -> seconds of each phase
    GPU: mark -> an event in the stream of kernels -> read in a later step, when the device has passed it

On a GPU the host runs ahead of the device, so that its own clock says how long kernels took to enqueue. Events carry
the device's time. They are read when that waits for nothing, and are used again.
"""

from __future__ import annotations

import collections
import time
from typing import Any

import torch


class PhaseClock:
    """Sums seconds by phase.

    Args:
        device: where the phases compute.

    Attributes:
        seconds: phase -> seconds so far, of the marks that have been read.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        # Marks that have not been read, in order: the phase that begins, None for the time between steps, and when.
        self._marks: collections.deque[tuple[str | None, Any]] = collections.deque()
        self._unused: list[torch.cuda.Event] = []
        self.seconds: dict[str, float] = {}

    def mark(self, phase: str | None) -> None:
        """A phase begins, and ends the one before; None: no phase."""
        if not self._on_gpu:
            self._marks.append((phase, time.perf_counter()))
            self.read()
            return
        event = self._unused.pop() if self._unused else torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((phase, event))

    def read(self) -> None:
        """Add up the phases that the device has finished."""
        marks = self._marks
        # A phase ends where the next one begins, so the last mark stays until another follows it.
        while len(marks) > 1 and (not self._on_gpu or marks[1][1].query()):
            phase, began = marks.popleft()
            ended = marks[0][1]
            spent = began.elapsed_time(ended) / 1000 if self._on_gpu else ended - began
            # Time between steps belongs to no phase: saves and evaluations are in it.
            if phase is not None:
                self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
            if self._on_gpu:
                self._unused.append(began)

    def reset(self) -> None:
        """Begin sums anew."""
        self.seconds = {}
