"""Ledgers and folders of runs that tests make."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from minimind.diagnosis import ledger
from minimind.diagnosis.ledger import TRAIN, VALUES, Ledger, LedgerSource

PAIRS = LedgerSource(name="pairs.jsonl", files=("/data/pairs.jsonl",), sizes=(10,), times=(11,), unit="line")


def made(steps, lines, margins=None, *, name=TRAIN, source=PAIRS, parts=None, prompts=None, **values) -> Ledger:
    """Rows of one set and one source; pairs are numbered by their lines, values that are not given are 0."""
    number = len(steps)
    zeros = np.zeros(number, np.int64)
    lines = np.asarray(lines, np.int64)
    given = {"margin": zeros if margins is None else margins, **values}
    return Ledger(
        sources=(source,),
        sets=(name,),
        step=np.asarray(steps, np.int64),
        set=zeros,
        source=zeros,
        line=lines,
        part=zeros if parts is None else np.asarray(parts, np.int64),
        pair=lines - 1,
        prompt_tokens=zeros if prompts is None else np.asarray(prompts, np.int64),
        values={one: np.asarray(given.get(one, zeros), np.float32) for one in VALUES},
    )


def write_pairs(path: Path, number: int) -> LedgerSource:
    """A file of pairs, half of them Chinese; the texts are hostile to a page."""
    rows = []
    for line in range(1, number + 1):
        prompt = [{"role": "user", "content": f"<script>ask({line})</script>" if line % 2 else f"问题{line}"}]
        answers = [f"good & {line}", f"bad <b>{line}</b>"] if line % 2 else [f"好{line}", f"坏{line}"]
        rows.append([[*prompt, {"role": "assistant", "content": answer}] for answer in answers])
    lines = [json.dumps({"chosen": chosen, "rejected": rejected}) for chosen, rejected in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return LedgerSource.of(path.name, [path], "line")


def made_run(folder: Path, *, pairs: int = 12, with_ledger: bool = True, **settings) -> Path:
    """A run of three logged steps that has everything; its pairs with an even line are ranked wrongly."""
    folder.mkdir(parents=True)
    values = {"guard": "warn", "beta": 0.15, "data_format": "auto", **settings}
    record = {
        "settings": {name: {"value": value, "origin": "flag"} for name, value in values.items()}
        | {"seed": {"value": 42, "origin": "default"}},
        "identity": {"data": "abc123", "pairs a step": 4},
        "versions": {"torch": "2.13.0"},
        "hardware": {"ranks": 2, "machines": 1, "device": "CPU <x>"},
    }
    (folder / "run.json").write_text(json.dumps(record))
    entries = [
        {"step": 0, "eval/loss": 0.7, "eval/rewards/accuracies": 0.5, "eval/rewards/margins": 0.0},
        *({"step": step, "loss": 0.7 / step, "pairs_per_second": 2.0, "tokens_per_second": 90.0} for step in (1, 2, 3)),
        {"step": 3, "eval/loss": 0.4, "eval/rewards/accuracies": 0.9, "eval/rewards/margins": 1.5},
    ]
    write_lines(folder / "metrics.jsonl", entries)
    finding = {"step": 3, "at": 3, "set": "", "rule": "length", "text": "longer answers win <i>", "remedy": "try rdpo"}
    write_lines(folder / "findings.jsonl", [finding])
    samples = [{"step": step, "prompt": "Hi <p>", "answer": f"answer <{step}>"} for step in (0, 2, 3)]
    write_lines(folder / "samples.jsonl", samples)
    if with_ledger:
        source = write_pairs(folder.parent / f"{folder.name}.jsonl", pairs)
        lines = np.arange(1, pairs + 1)
        margins = np.where(lines % 2, 1.0, -1.0) * lines / pairs
        options = {"source": source, "prompts": 3 * lines, "chosen_tokens": 5 + lines, "rejected_tokens": lines}
        ledger.append(folder, made(np.full(pairs, 2), lines, margins, loss=np.exp(-margins), **options))
        ledger.append(folder, made(np.full(pairs, 3), lines, margins, name="eval", **options))
    return folder


def write_lines(path: Path, entries: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
