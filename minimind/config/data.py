"""Flags about the preference pairs: where they are, how rows become tokens, and their order."""

from __future__ import annotations

import dataclasses

from minimind.config.fields import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Preference files, tokenizer and the order of pairs. None of a path means that it was not given."""

    data_path: str | None = flag(None, "JSON Lines file of preference pairs; without it the bundled demo runs")
    eval_data_path: str | None = flag(
        None, "held-out pairs, evaluated at the start, every eval_interval global steps and at the end"
    )
    tokenizer_path: str | None = flag(
        None, "tokenizer folder; not needed for a Hugging Face folder, which contains its own"
    )
    max_seq_len: int = flag(1024, "longest row in tokens; the rest of a longer row is cut off", low=2)
    on_bad_row: str = flag(
        "error",
        "error: list the bad rows and stop; skip: leave bad rows out and count them; keep: like skip, but keep rows "
        "whose answer was cut off, with a loss of ln 2 and no gradient, as MiniMind does",
        choices=("error", "skip", "keep"),
    )
    empty_think_ratio: float = flag(
        1.0, "share of pairs that keep their empty <think> block (MiniMind-3 drops most of them at random)", low=0
    )
    shuffle: bool = flag(True, "1: shuffle the pairs anew in every epoch; 0: keep the order of the file")
    seed: int = flag(42, "random seed of the order of pairs, of dropout and of new weights", low=0)
    num_workers: int = flag(8, "number of tokenising processes, at most one per CPU core", low=0)
    cache_dir: str | None = flag(
        None, "folder of tokenised data and cached reference log-probs; without it $XDG_CACHE_HOME/minimind"
    )
