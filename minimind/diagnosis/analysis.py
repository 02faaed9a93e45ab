"""What a ledger shows of a run's pairs: accuracy by group, margin against length, and the lists of single pairs.

    RunFiles.rows -> analyse -> PairAnalysis                          texts of the listed pairs: texts.py

Judged are the held-out pairs at their last evaluation; without any, the training pairs as they were met last.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from minimind.config.data import DataConfig
from minimind.data.rows import PreferenceRow
from minimind.data.scripts import script_of
from minimind.diagnosis.ledger import TRAIN, Ledger, joined
from minimind.diagnosis.pair_signals import Values, correlation
from minimind.diagnosis.pairs import PairHistories, hardest, most_moved, most_suspicious, pair_histories
from minimind.diagnosis.texts import Obstacle, Place, data_flags, obstacle, places_of, read_pairs

# Pairs of a list, dots of the cloud, and texts that are read to tell their languages.
LISTED, _DOTS, _READ = 20, 1200, 2000
# Groups by length have about the same number of pairs.
_PARTS = 4
HARDEST, MOVED, SUSPICIOUS = "hardest", "moved", "suspicious"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Pairs of a kind.

    Attributes:
        name: of the group, e.g. a source or "12-40".
        pairs: their number.
        accuracy, margin: share that is ranked rightly, and mean margin.
    """

    name: str
    pairs: int
    accuracy: float
    margin: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedPair:
    """One pair of a list.

    Attributes:
        source, unit, line: where it is from; the line is counted in the unit, "line" or "row".
        times: how often it was met.
        margin, loss: when it was met last; `before`, its first margin.
        confidence: mean probability of its label.
        moved: as in `PairHistories`.
        row: its messages; None if they cannot be read any more.
    """

    source: str
    unit: str
    line: int
    times: int
    before: float
    margin: float
    loss: float
    confidence: float
    moved: float
    row: PreferenceRow | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairAnalysis:
    """What a ledger shows.

    Attributes:
        judged: the sets whose pairs are judged.
        step: of the last of these rows.
        pairs: number of these pairs.
        dots: (difference of lengths, margin) of some of them.
        correlation: of the two over all of them; NaN if one does not vary.
        groups: "prompt", "answer", "source" or "language" -> groups of the judged pairs.
        lists: HARDEST, MOVED, SUSPICIOUS -> pairs of training, or without any of those judged.
        listed_set: the set that the lists are of.
        obstacles: why texts cannot be shown.
    """

    judged: tuple[str, ...]
    step: int
    pairs: int
    dots: Sequence[tuple[float, float]]
    correlation: float
    groups: Mapping[str, Sequence[Group]]
    lists: Mapping[str, Sequence[ListedPair]]
    listed_set: str
    obstacles: Sequence[Obstacle]


def analyse(rows: Ledger, settings: Mapping[str, Mapping[str, object]], *, texts: bool = True) -> PairAnalysis | None:
    """Analyse a ledger; None if its loss has no margins, or if it is empty.

    Args:
        settings: of run.json.
        texts: read the rows' texts, too; without them there are no languages.
    """
    sets = rows.evaluated or (TRAIN,)
    histories = {name: pair_histories(rows.of_set(name)) for name in dict.fromkeys((*sets, TRAIN))}
    judged = joined([_latest(name, histories[name].last) for name in sets])
    # A loss without margins writes NaN there.
    judged = judged.where(np.isfinite(judged.values["margin"]))
    if not len(judged):
        return None
    # A label can be mended where it trains; of held-out pairs only a run without training rows in its ledger lists any.
    listed_set = TRAIN if len(histories[TRAIN]) else sets[0]
    data = data_flags(settings) if texts else None
    margins, differences = _margins(judged), _differences(judged)
    some = _spread(len(judged), _DOTS)
    return PairAnalysis(
        judged=sets,
        step=int(judged.step.max()),
        pairs=len(judged),
        dots=list(zip(differences[some].tolist(), margins[some].tolist(), strict=True)),
        correlation=correlation(margins, differences),
        groups=_groups(judged, data),
        lists=_lists(rows, histories[listed_set], data),
        listed_set=listed_set,
        obstacles=[] if data is None else [found for one in rows.sources if (found := obstacle(one, data))],
    )


def _margins(rows: Ledger) -> Values:
    return rows.values["margin"].astype(np.float64)


def _differences(rows: Ledger) -> Values:
    return (rows.values["chosen_tokens"] - rows.values["rejected_tokens"]).astype(np.float64)


def _latest(name: str, last: Ledger) -> Ledger:
    """Of held-out pairs those of the last evaluation: a resumed run may have other files, and their pairs are counted
    from 0 too."""
    return last if name == TRAIN or not len(last) else last.where(last.step == last.step.max())


def _spread(number: int, most: int) -> NDArray[np.int64]:
    """Up to `most` places, at equal distances."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).astype(np.int64))


def _groups(rows: Ledger, data: DataConfig | None) -> dict[str, list[Group]]:
    margins = _margins(rows)
    longest = np.maximum(rows.values["chosen_tokens"], rows.values["rejected_tokens"]).astype(np.int64)
    groups = {"prompt": _by_length(rows.prompt_tokens, margins), "answer": _by_length(longest, margins)}
    names = [source.name for source in rows.sources]
    groups["source"] = [_group(name, margins[rows.source == place]) for place, name in enumerate(names)]
    if data is not None:
        some = _spread(len(rows), _READ)
        places = places_of(rows.where(some))
        found = read_pairs(rows.sources, places, data)
        scripts = np.array([_script(found.get(place)) for place in places])
        groups["language"] = [_group(name, margins[some][scripts == name]) for name in dict.fromkeys(scripts) if name]
    return {name: [group for group in some_groups if group.pairs] for name, some_groups in groups.items()}


def _script(row: PreferenceRow | None) -> str:
    return "" if row is None else script_of(str(row.chosen[-1].get("content") or ""))


def _by_length(lengths: NDArray[np.int64], margins: Values) -> list[Group]:
    """Groups of about the same number of pairs; equal lengths are never in two."""
    # Where many lengths are equal, quantiles coincide; there are fewer groups then.
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, _PARTS + 1)).astype(np.int64))
    starts = [int(lengths.min()), *(int(edge) + 1 for edge in edges[1:-1])]
    ends = [*(int(edge) for edge in edges[1:-1]), int(lengths.max())]
    found = []
    for start, end in zip(starts, ends, strict=True):
        inside = lengths[(lengths >= start) & (lengths <= end)]
        if len(inside):
            low, high = int(inside.min()), int(inside.max())
            name = str(low) if low == high else f"{low}-{high}"
            found.append(_group(name, margins[(lengths >= start) & (lengths <= end)]))
    return found


def _group(name: str, margins: Values) -> Group:
    right = (margins > 0) + (margins == 0) / 2
    none = not len(margins)
    return Group(
        name=name,
        pairs=len(margins),
        accuracy=math.nan if none else float(right.mean()),
        margin=math.nan if none else float(margins.mean()),
    )


def _lists(rows: Ledger, pairs: PairHistories, data: DataConfig | None) -> dict[str, list[ListedPair]]:
    orders = {
        HARDEST: hardest(pairs, LISTED),
        MOVED: most_moved(pairs, LISTED),
        SUSPICIOUS: most_suspicious(pairs, LISTED),
    }
    places = {key: places_of(pairs.last.where(order)) for key, order in orders.items()}
    wanted = list(dict.fromkeys(place for some in places.values() for place in some))
    texts: Mapping[Place, PreferenceRow] = {} if data is None else read_pairs(rows.sources, wanted, data)

    def listed(index: int, place: Place) -> ListedPair:
        return ListedPair(
            source=rows.sources[place[0]].name,
            unit=rows.sources[place[0]].unit,
            line=place[1],
            times=int(pairs.times[index]),
            before=float(pairs.first_margins[index]),
            margin=float(pairs.margins[index]),
            loss=float(pairs.last.values["loss"][index]),
            confidence=float(pairs.confidence[index]),
            moved=float(pairs.moved[index]),
            row=texts.get(place),
        )

    return {
        key: [listed(index, place) for index, place in zip(order.tolist(), places[key], strict=True)]
        for key, order in orders.items()
    }
