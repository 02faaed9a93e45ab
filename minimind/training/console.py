"""What a person sees: a progress line in a terminal, plain lines elsewhere, and the run's own messages.

Only rank 0 prints.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

# Most important first: a narrow terminal cuts the end off.
_BAR = "step {n_fmt}/{total_fmt} {bar:16} {desc}{postfix}"


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

    def say(self, text: str = "") -> None:
        """Print a message, above the progress line if there is one."""
        if self.enabled and self._bar is not None:
            self._bar.write(text)
        elif self.enabled:
            print(text, flush=True)

    def start(self, first: int, total: int) -> None:
        """Begin to show progress: `first` of `total` steps are done already."""
        self._started, self._first, self._total = time.monotonic(), first, total
        if self.enabled and _is_terminal():
            self._bar = tqdm(total=total, initial=first, file=sys.stdout, bar_format=_BAR, dynamic_ncols=True)

    def advance(self, step: int) -> None:
        """A step is done."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def log(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """A logged step: its metrics, and how long the rest will take."""
        line = (
            f"epoch {epoch:.2f}  loss {metrics['loss']:.4f}  accuracy {metrics['rewards/accuracies']:.2f}  "
            f"margin {metrics['rewards/margins']:+.4f}  {metrics['tokens_per_second']:,.0f} tok/s  "
            f"{self._left(step)} left"
        )
        if self._bar is not None:
            self._bar.set_description_str(line)
        elif self.enabled:
            width = len(str(self._total))
            print(f"step {step:>{width}}/{self._total}  {line}", flush=True)

    def stop(self) -> None:
        """No more progress."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _left(self, step: int) -> str:
        elapsed = time.monotonic() - self._started
        seconds = elapsed / max(1, step - self._first) * (self._total - step)
        return str(datetime.timedelta(seconds=round(seconds)))


def _is_terminal() -> bool:
    """Whether lines can be rewritten; a terminal without a size (some containers have one) would show nothing."""
    try:
        return sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).lines > 0
    except (OSError, ValueError):
        return False
