"""Flags for the preference pairs: files, tokenisation and order."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from minimind.config.fields import flag


def held_out_flag(items: str) -> Any:
    """The field of --eval_data_path of a job on these items."""
    return flag(
        (),
        f"held-out {items}, like --data_path; evaluated at the start, every eval_interval global steps, and at the "
        "end; NAME=file: a set with metrics of its own, e.g. zh=a.jsonl en=b.jsonl",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Preference files, tokenizer and order of pairs. A path that was not given is None."""

    # What a row is, for entries of LLaMA-Factory's dataset_info.json: a key of `dataset_info.KINDS`.
    described_as: ClassVar[str] = "pairs"

    data_path: tuple[str, ...] = flag(
        (),
        "preference pairs: files, patterns, folders or data sets in the hub's cache, each with a weight if needed, "
        "e.g. a.jsonl:2 'b/*.parquet' folder:train owner/name (see the table of files); without it the bundled demo "
        "runs",
    )
    data_format: str = flag(
        "auto",
        "shape of the rows, see the table of shapes; auto: each row is recognised by its columns",
        choices=(
            "auto",
            "minimind",
            "trl",
            "sharegpt",
            "alpaca",
            "hh",
            "ultrafeedback",
            "answers",
            "openai",
            "swift",
            "comparison",
            "unpaired",
        ),
    )
    dataset_info: str | None = flag(
        None, "LLaMA-Factory's dataset_info.json with an entry for the data file; without it the one beside the file"
    )
    pairing: str = flag(
        "best_worst",
        "pairs of a row with several answers; best_worst: the best with the worst; all: each with each worse one; "
        "adjacent: each with the next in order",
        choices=("best_worst", "all", "adjacent"),
    )
    score_gap: float = flag(
        0.0, "least difference between the scores, or ranks, of such a pair; equal ones never make a pair", low=0
    )
    filter_score_gap: float | None = flag(
        None,
        "leave out pairs whose chosen score is not at least this much above the rejected one, and pairs without scores",
        zero_is_a_value=True,
    )
    eval_data_path: tuple[str, ...] = held_out_flag("pairs")
    tokenizer_path: str | None = flag(
        None, "tokenizer folder; not needed for a Hugging Face folder, which contains its own"
    )
    chat_template: str | None = flag(None, "file with a Jinja chat template to use instead of the tokenizer's own")
    template_kwargs: str | None = flag(
        None, """further variables of the chat template, a JSON object, e.g. '{"enable_thinking": false}'"""
    )
    mask: str = flag(
        "turns",
        "turns: the assistant's turns as the template renders them; minimind: MiniMind's rule to the letter, which "
        "searches for the markers of a turn in the tokens",
        choices=("turns", "minimind"),
    )
    last_turn_only: bool = flag(False, "1: only the assistant's last turn counts; 0: all its turns count")
    max_seq_len: int = flag(1024, "maximum length of a row in tokens; --on_long_row is for longer rows", low=2)
    on_long_row: str = flag(
        "cut",
        "pairs with a row above max_seq_len: cut: cut rows at their end, and leave out pairs that keep no difference; "
        "keep: cut and leave out none, as MiniMind does; skip: leave out all of them; error: list them and stop; "
        "cut_prompt: leave out the oldest turns of the prompt until both rows fit, then like cut",
        choices=("cut", "keep", "skip", "error", "cut_prompt"),
    )
    on_bad_row: str = flag(
        "error",
        "rows that are wrong: error: list them and stop; skip: count them and leave them out; keep: like skip, with "
        "--on_long_row keep",
        choices=("error", "skip", "keep"),
    )
    empty_think_ratio: float = flag(
        1.0,
        "share of pairs that keep their empty <think> block, chosen at random; 0.2 for MiniMind generation 3",
        low=0,
    )
    dedup: bool = flag(False, "1: take equal pairs once, and equal held-out pairs once")
    limit: int | None = flag(
        None, "train on the first pairs only: so many, of each source in proportion; 0: all pairs", low=0
    )
    shuffle: bool = flag(True, "1: shuffle the pairs anew in every epoch; 0: keep the order of the file")
    seed: int = flag(42, "random seed for the order of pairs, dropout and new weights", low=0)
    num_workers: int = flag(8, "number of tokenising processes; never more than CPU cores", low=0)
    cache_dir: str | None = flag(
        None, "folder of tokenised data and cached reference log-probs; without it $XDG_CACHE_HOME/minimind"
    )
