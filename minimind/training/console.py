"""Output for a person: a progress line in a terminal, plain lines elsewhere, and messages.

Only rank 0 prints.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

# The most important part comes first, because a narrow terminal cuts off the end.
_BAR = "step {n_fmt}/{total_fmt} {bar:16} {desc}{postfix}"
_WORK_BAR = "{desc} {bar:16}"
# Seconds of other work until it is shown, and between two lines of it in a log.
_SHOWN_AFTER, _LINE_SECONDS = 5, 30


class Console:
    """Progress and messages of a run.

    Args:
        enabled: whether this process prints.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._bar: tqdm | None = None
        self._started = 0.0
        self._first = self._total = 0
        # Of work that is shown by `show`.
        self._show_after: float | None = None
        self._was_shown = False

    def say(self, text: str = "") -> None:
        """Print a message, above the progress line if there is one."""
        if self.enabled and self._bar is not None:
            self._bar.write(text)
        elif self.enabled:
            _print(text)

    def start(self, first: int, total: int) -> None:
        """Show progress from now on; `first` of `total` steps are done already."""
        self._started, self._first, self._total = time.monotonic(), first, total
        if self.enabled and _is_terminal():
            self._bar = tqdm(total=total, initial=first, file=sys.stdout, bar_format=_BAR, dynamic_ncols=True)

    def advance(self, step: int) -> None:
        """Show that a step is done."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def log(self, step: int, parts: Sequence[str]) -> None:
        """Show a logged step: its values as text, and an estimate of the remaining time."""
        line = "  ".join((*parts, f"{self._remaining(step)} left"))
        if self._bar is not None:
            self._bar.set_description_str(line)
        elif self.enabled:
            width = len(str(self._total))
            _print(f"step {step:>{width}}/{self._total}  {line}")

    def show(self, line: str, share: float) -> None:
        """Show how far work other than steps is, if it takes long.

        Args:
            share: of the work, in [0, 1].
        """
        now = time.monotonic()
        if self._show_after is None:
            self._show_after = now + _SHOWN_AFTER
        if not self.enabled or now < self._show_after:
            return
        self._was_shown = True
        if self._bar is None and _is_terminal():
            self._bar = tqdm(total=1.0, file=sys.stdout, bar_format=_WORK_BAR, dynamic_ncols=True, leave=False)
        if self._bar is not None:
            self._bar.set_description_str(line, refresh=False)
            self._bar.update(share - self._bar.n)
        else:
            print(line, flush=True)
            self._show_after = now + _LINE_SECONDS

    def end_show(self, line: str) -> None:
        """The work has ended: print a line about it if it was shown."""
        self.stop()
        if self._was_shown:
            self.say(line)
        self._show_after, self._was_shown = None, False

    def stop(self) -> None:
        """Remove the progress line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _remaining(self, step: int) -> str:
        # Includes saves and evaluations, which the rest of the run will have too.
        elapsed = time.monotonic() - self._started
        seconds = elapsed / max(1, step - self._first) * (self._total - step)
        return str(datetime.timedelta(seconds=round(seconds)))


def _print(line: str) -> None:
    # The output may be a file on a full disk, or a pipe whose reader has ended: training goes on without it.
    with contextlib.suppress(OSError):
        print(line, flush=True)


def _is_terminal() -> bool:
    """Whether a line can be rewritten. Some containers have a terminal without a size, which would show nothing."""
    try:
        return sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).lines > 0
    except (OSError, ValueError):
        return False
