"""Which pairs of a table are trained on: those that are not wrong, and of those that are too long what the user says.

    PairTable -> select_pairs, --on_bad_row, --on_long_row -> PairTable with fewer pairs selected
              -> summarize_lengths -> LengthSummary, for messages

The arrays of a table are the same under every policy, except that `cut_prompt` has arrays of its own.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from minimind.data.reasons import described
from minimind.data.scores import score_gaps, scored_apart
from minimind.data.table import PairTable
from minimind.data.tokens import END_CUT, LOST, PROMPT_CUT, UNPAIRED, WRONG
from minimind.errors import DataError

# Values of --on_bad_row and of --on_long_row.
ERROR, SKIP, KEEP, CUT, CUT_PROMPT = "error", "skip", "keep", "cut", "cut_prompt"
# Share of the pairs that the recommended --max_seq_len keeps whole.
_WHOLE_SHARE = 0.99
# Rows, or reasons, that an error lists, and reasons that it lists among others.
_SHOWN, _OF_NOTHING = 10, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthSummary:
    """How the length limit meets the pairs that are not wrong.

    Attributes:
        limit: --max_seq_len.
        pairs: number of pairs that are not wrong.
        too_long: pairs with a row above the limit.
        prompt_cut: pairs that lost turns of their prompt.
        end_cut: pairs of which a row lost its end.
        lost: pairs without a difference that counts after cutting.
        enough: smallest limit that keeps 99 % of the pairs whole, in tokens; 0 if there are no pairs.
        longest: smallest limit that keeps all pairs whole.
        items: what is counted as pairs here.
    """

    limit: int
    pairs: int
    too_long: int
    prompt_cut: int
    end_cut: int
    lost: int
    enough: int
    longest: int
    items: str = "pairs"

    @property
    def advice(self) -> str:
        """Which --max_seq_len would do; for a table with pairs that are too long."""
        # If fewer than one in a hundred is too long, 99 % are whole already.
        if self.enough <= self.limit:
            return f"--max_seq_len {self.longest} would keep all {self.items} whole"
        return f"--max_seq_len {self.enough} would keep 99 % of the {self.items} whole"


def summarize_lengths(table: PairTable) -> LengthSummary:
    """Count what the length limit did to the pairs of a table, selected or not."""
    right = ~_wrong(table)
    needed, cuts = np.sort(_needed(table)[right]), table.cuts[right]
    return LengthSummary(
        limit=table.max_length,
        pairs=len(needed),
        too_long=int((needed > table.max_length).sum()),
        prompt_cut=int((cuts & PROMPT_CUT > 0).sum()),
        end_cut=int((cuts & END_CUT > 0).sum()),
        lost=int((cuts & LOST > 0).sum()),
        enough=int(needed[math.ceil(_WHOLE_SHARE * len(needed)) - 1]) if len(needed) else 0,
        longest=int(needed[-1]) if len(needed) else 0,
        items=table.items,
    )


def select_pairs(
    table: PairTable, *, on_bad_row: str, on_long_row: str, filter_score_gap: float | None = None
) -> PairTable:
    """The table with the pairs that are trained on.

    Args:
        filter_score_gap: leave out pairs whose scores differ by less, and pairs without scores; None leaves out none.
        on_bad_row: what to do with rows that are wrong. ERROR raises an error that lists them; SKIP leaves them out;
            KEEP leaves them out, except those that are wrong only because no difference that counts is left in tokens.
        on_long_row: what to do with pairs above the length limit. ERROR raises an error that lists them; SKIP leaves
            them out; CUT and CUT_PROMPT keep those that still have a difference that counts; KEEP keeps all: as in
            MiniMind, a pair without a difference has a constant loss (ln 2 for the DPO loss) and no gradient.

    Raises:
        DataError: there are such rows under ERROR, or no pair is left.
    """
    wrong, too_long = _wrong(table), _needed(table) > table.max_length
    too_long &= ~wrong
    problems = []
    if table.bad and on_bad_row == ERROR:
        problems.append(_bad_rows_problem(table))
    if too_long.any() and on_long_row == ERROR:
        problems.append(_long_rows_problem(table, too_long))
    if problems:
        raise DataError("\n".join(problems))
    out = left_out(table, on_bad_row=on_bad_row, on_long_row=on_long_row, filter_score_gap=filter_score_gap)
    if out.all():
        raise DataError(_nothing_left(table, on_long_row, filter_score_gap))
    return dataclasses.replace(table, selected=np.flatnonzero(~out))


def left_out(
    table: PairTable, *, on_bad_row: str, on_long_row: str, filter_score_gap: float | None = None
) -> NDArray[np.bool_]:
    """Which pairs are not trained on, (n,); see `select_pairs`. Nothing is refused."""
    wrong = _wrong(table)
    out = np.zeros_like(wrong)
    if on_bad_row != KEEP:
        out |= wrong
    if on_long_row == SKIP:
        out |= ~wrong & (_needed(table) > table.max_length)
    elif on_long_row != KEEP:
        out |= table.cuts & LOST > 0
    if filter_score_gap is not None:
        out |= ~scored_apart(table, filter_score_gap)
    return out


def _wrong(table: PairTable) -> NDArray[np.bool_]:
    """Which tokenised pairs are wrong, (n,)."""
    return table.cuts & WRONG > 0


def _needed(table: PairTable) -> NDArray[np.int64]:
    """The limit that each pair needs to stay whole, (n,)."""
    return table.full_lengths.reshape(-1, 2).max(1)


def _bad_rows_problem(table: PairTable) -> str:
    reasons = "".join(f"\n  {reason}" for reason in described(table.source, table.bad, _SHOWN))
    # Where all rows are wrong, leaving them out is no help.
    remedy = "\nCorrect the rows, or omit them with --on_bad_row skip." if len(table.lines) else ""
    return f"{table.source.name}: {len(table.bad)} of {table.total_rows} rows cannot be trained on:{reasons}{remedy}"


def _long_rows_problem(table: PairTable, too_long: NDArray[np.bool_]) -> str:
    indices = np.flatnonzero(too_long)
    lengths = table.full_lengths.reshape(-1, 2)
    lines = [
        f"{table.source.row(table.lines[index])}: {lengths[index, 0]} tokens"
        + (f" chosen, {lengths[index, 1]} rejected" if table.is_pairs else "")
        for index in indices[:_SHOWN]
    ]
    summary = summarize_lengths(table)
    has_all = table.is_pairs or table.is_labelled
    others = "--on_long_row cut, cut_prompt, skip or keep" if has_all else "another --on_long_row"
    return (
        f"{table.source.name}: {len(indices)} of {summary.pairs} {table.items} are longer than --max_seq_len "
        f"{summary.limit}:\n"
        f"{_listed(lines, len(indices))}\n"
        f"Increase it ({summary.advice}), or choose {others}."
    )


def _listed(lines: list[str], number: int) -> str:
    more = [f"... and {number - len(lines)} more"] if number > len(lines) else []
    return "\n".join(f"  {line}" for line in [*lines, *more])


def _nothing_left(table: PairTable, on_long_row: str, filter_score_gap: float | None) -> str:
    """Why no pair is left to train on."""
    summary, reasons = summarize_lengths(table), []
    if unpaired := table.counts.get(UNPAIRED):
        reasons.append(f"of {unpaired} no two answers make a pair: a tie, or scores closer than --score_gap")
    if table.bad:
        reasons.append(f"{len(table.bad)} are wrong: {', '.join(described(table.source, table.bad, _OF_NOTHING))}")
    if on_long_row == SKIP and summary.too_long:
        reasons.append(f"{summary.too_long} are longer than --max_seq_len {summary.limit}; {summary.advice}")
    elif summary.lost:
        kept = "no difference" if table.is_pairs else "no token that counts"
        reasons.append(
            f"{summary.lost} keep {kept} when they are cut to --max_seq_len {summary.limit}; {summary.advice}"
        )
    if filter_score_gap is not None and len(table.lines):
        apart, unscored = scored_apart(table, filter_score_gap), np.isnan(score_gaps(table)).sum()
        reasons.append(
            f"--filter_score_gap {filter_score_gap:g} leaves out {(~apart).sum()} of {len(apart)} pairs, of which "
            f"{unscored} have no scores (columns score_chosen and score_rejected)"
        )
    return f"{table.source.name}: none of the {table.total_rows} rows can be trained on: {'; '.join(reasons)}"
