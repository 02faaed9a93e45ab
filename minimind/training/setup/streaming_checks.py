"""Checks of the flags of --streaming 1: what needs all data before the first step is not given beside it.

Draft -> every function of STREAMING_CHECKS -> errors
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minimind.config.rows import streams
from minimind.data.selection import ERROR
from minimind.errors import ConfigError, MiniMindError
from minimind.training.setup.draft import Check, Draft

_OF_STREAMING = ("shard_tokens", "window_tokens", "keep_windows")


def streaming_is_on(draft: Draft) -> Iterator[MiniMindError]:
    """Flags about shards and windows are not given without --streaming 1."""
    settings = draft.settings
    given = [f"--{name}" for name in _OF_STREAMING if settings.explicit(name)]
    if given and not streams(settings.config.data):
        yield ConfigError(f"{' and '.join(given)}: only for --streaming 1")


def streaming_has_an_end(draft: Draft) -> Iterator[MiniMindError]:
    """How many rows there are is not known, so the run ends after a number of steps."""
    settings = draft.settings
    if not streams(settings.config.data):
        return
    if not settings.config.optimisation.max_steps:
        yield ConfigError("--streaming 1 needs --max_steps: how many rows the data have is not known before the end")
    if settings.explicit("epochs"):
        yield ConfigError("--epochs: under --streaming 1 the run ends after --max_steps, and the data begin anew")


def streaming_knows_no_later_row(draft: Draft) -> Iterator[MiniMindError]:
    """Nothing depends on rows that are tokenised later."""
    data = draft.settings.config.data
    if not streams(data):
        return
    if data.dedup:
        yield ConfigError("--dedup 1: compares all rows, which --streaming 1 does not have at once; drop one of them")
    if data.limit:
        yield ConfigError("--limit: under --streaming 1 the run takes the first rows that --max_steps needs; drop it")
    for name in ("on_bad_row", "on_long_row"):
        if getattr(data, name) == ERROR:
            yield ConfigError(
                f"--{name} error: under --streaming 1 such a row may be found after days of training; give "
                f"--{name} skip, which counts these rows and leaves them out"
            )


STREAMING_CHECKS: Sequence[Check] = (streaming_is_on, streaming_has_an_end, streaming_knows_no_later_row)
