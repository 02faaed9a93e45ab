"""The corpus of the chain: the demo's facts as texts, as conversations and as pairs.

the demo's cases -> write_corpus -> pretrain.jsonl, sft.jsonl, dpo.jsonl, and of each the held-out rows, *_eval.jsonl

Held-out questions are those of the demo: other wordings of facts that are trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from minimind.demo import EVAL_PATH, TRAIN_PATH
from minimind.demo.make_data import SEED, make_pairs, split_cases

# Sets of pairs over the same cases, with other words in the answers.
_SETS = 2


def write_corpus(folder: Path) -> None:
    """Write the six files."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = split_cases()
    pairs: list[dict[str, Any]] = []
    for number in range(_SETS):
        pairs += make_pairs(cases.train + cases.spare, cases.train, SEED + 200 + number)
    held_out = [json.loads(line) for line in EVAL_PATH.read_text(encoding="utf-8").splitlines()]
    for name, rows in (("", pairs), ("_eval", held_out)):
        _write(folder / f"pretrain{name}.jsonl", texts(rows))
        _write(folder / f"sft{name}.jsonl", conversations(rows))
    for source, name in ((TRAIN_PATH, "dpo.jsonl"), (EVAL_PATH, "dpo_eval.jsonl")):
        (folder / name).write_bytes(source.read_bytes())


def texts(pairs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Question and answer as a text, of both halves: the tone is left to DPO."""
    for messages in _halves(pairs):
        yield {"text": "\n".join(message["content"] for message in messages)}


def conversations(pairs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Both halves as conversations."""
    yield from ({"conversations": messages} for messages in _halves(pairs))


def _halves(pairs: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, str]]]:
    yield from (pair[half] for pair in pairs for half in ("chosen", "rejected"))


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
