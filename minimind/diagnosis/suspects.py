"""Pairs that are probably mislabelled, as rows that training can read again (`launch/report.py RUN --suspects FILE`).

    Ledger -> pair_histories of training pairs -> most_suspicious -> rows of the data, with file, line and score

The rows are ranked: the first is the most suspicious. What they show is the policy's opinion, and hard pairs are among
them, so they are to be looked at, swapped or left out by a person.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from minimind.config.data import DataConfig
from minimind.data.rows import PreferenceRow
from minimind.diagnosis.ledger import TRAIN, Ledger
from minimind.diagnosis.pairs import most_suspicious, pair_histories
from minimind.diagnosis.texts import obstacle, places_of, read_pairs
from minimind.errors import DataError


def write_suspects(rows: Ledger, data: DataConfig, path: Path) -> int:
    """Write the suspicious training pairs into a file of JSON lines, and return their number.

    A row has the messages of both halves, what the template gets beside them, and

        file, line    where the pair is from
        times         how often it was met
        score         suspicion, 1 minus the mean probability of its label: above 0.5, at most 1

    Raises:
        DataError: there are no margins, a file of the run is not there any more or has changed, or the new file cannot
            be written.
    """
    pairs = pair_histories(rows.of_set(TRAIN))
    if not len(pairs) or not (pairs.confidence == pairs.confidence).any():
        raise DataError("the ledger has no margins of training pairs: --loss sft has none, or the run took no step")
    order = most_suspicious(pairs)
    # Of a row of several pairs some of which could not be tokenised: which pair it is is not known.
    order = order[pairs.last.part[order] >= 0]
    chosen = pairs.last.where(order)
    for number in sorted(set(chosen.source.tolist())):
        if problem := obstacle(rows.sources[number], data):
            raise DataError(f"--suspects: {problem}; put the run's file back")
    places = places_of(chosen)
    found = read_pairs(rows.sources, places, data)
    lines = []
    for index, place in zip(order.tolist(), places, strict=True):
        where = rows.sources[place[0]]
        if place not in found:
            raise DataError(f"--suspects: {where.place(place[1])} cannot be read")
        values = {
            **_row(found[place]),
            "file": where.name,
            "line": place[1],
            "times": int(pairs.times[index]),
            "score": round(1 - float(pairs.confidence[index]), 6),
        }
        lines.append(json.dumps(values, ensure_ascii=False) + "\n")
    try:
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"--suspects {path}: cannot be written ({error})") from error
    return len(order)


def _row(row: PreferenceRow) -> dict[str, Any]:
    """A row in MiniMind's shape, with the columns of columns.py that it has."""
    extra: dict[str, Any] = {} if row.tools is None else {"tools": row.tools}
    if row.template_kwargs:
        extra["chat_template_kwargs"] = dict(row.template_kwargs)
    if not any(map(math.isnan, row.scores)):
        extra |= dict(zip(("score_chosen", "score_rejected"), row.scores, strict=True))
    return {"chosen": row.chosen, "rejected": row.rejected, **extra}
