"""Tables of losses and of their options, made of the registry and of the losses' docstrings.

docstring: "TITLE (PAPER).", formula, when to take it -> LossRow -> loss_table, option_table -> Markdown
"""

from __future__ import annotations

import dataclasses
import inspect
import re

from minimind.objective.losses import Need, PreferenceLoss, loss_class, loss_names
from minimind.objective.losses.options import options_of
from tests.docs.language import Language

_NEEDS = {
    Need.REFERENCE: "reference",
    Need.PER_TOKEN: "single tokens, so `--reference live`",
    Need.GLOBAL_BATCH: "the global batch",
    Need.COLLISIONS: "distributions of all tokens",
    Need.LABELS: "answers with labels",
    Need.MISMATCHED: "answers to other prompts, of the global batch",
    Need.SCORES: "scores in the data",
    Need.SCORE_GAPS: "chosen with the higher score",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossRow:
    """One loss as the table shows it.

    Attributes:
        log_probs: which log-probs of a row it takes.
        needs: inputs besides the policy's row log-probs.
        when: when to take it.
    """

    name: str
    title: str
    paper: str
    formula: str
    log_probs: str
    needs: tuple[str, ...]
    when: str


def loss_rows() -> list[LossRow]:
    """All losses, those with the same needs together, those without a reference last."""
    rows = [_row(loss_class(name)) for name in loss_names()]
    return sorted(rows, key=lambda row: (not row.needs, row.needs, row.name))


def _row(loss: type[PreferenceLoss]) -> LossRow:
    opening, formula, when, *_ = (inspect.getdoc(loss) or "").split("\n\n")
    title = re.fullmatch(r"([^(]+) \((.+)\)\.", opening)
    assert title is not None, f"{loss.name}: {opening!r} is not `Title (paper).`"
    assert formula.startswith("    "), f"{loss.name}: the formula is not indented"
    default = "mean" if loss.average_log_prob else "sum"
    return LossRow(
        name=loss.name,
        title=title[1],
        paper=title[2],
        formula=" ".join(formula.split()),
        log_probs="mean or sum" if "average_log_prob" in options_of(loss) else default,
        needs=tuple(text for need, text in _NEEDS.items() if need in loss.needs),
        when=" ".join(when.split()),
    )


def loss_table(language: Language) -> list[str]:
    """Lines of Markdown: one row per loss."""
    lines = _header(("loss", "method", "formula", "log-probs", "needs", "when to take it"), language)
    for row in loss_rows():
        needs = language.comma.join(language.of(need) for need in row.needs) or language.of("no reference")
        cells = (
            f"`{row.name}`",
            f"{row.title} ({row.paper})",
            f"`{row.formula}`",
            language.of(row.log_probs),
            needs,
            language.of(row.when),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def option_table(language: Language) -> list[str]:
    """Lines of Markdown: one row per option and meaning, with the losses that have it and their defaults."""
    found: dict[tuple[str, str], list[str]] = {}
    for loss in map(loss_class, loss_names()):
        for option in options_of(loss).values():
            # This option has its own column in the table of losses.
            if option.name != "average_log_prob":
                found.setdefault((option.name, option.meaning), []).append(f"`{loss.name}` {option.default:g}")
    lines = _header(("option", "meaning", "losses with their defaults"), language)
    for (name, meaning), losses in sorted(found.items()):
        lines.append(f"| `{name}` | {language.of(meaning)} | {language.comma.join(losses)} |")
    return lines


def texts() -> list[str]:
    """All texts that need a translation."""
    rows = loss_rows()
    meanings = [option.meaning for name in loss_names() for option in options_of(loss_class(name)).values()]
    return [*(row.when for row in rows), *(row.log_probs for row in rows), *_NEEDS.values(), "no reference", *meanings]


def _header(words: tuple[str, ...], language: Language) -> list[str]:
    return [f"| {' | '.join(language.of(word) for word in words)} |", "| --- " * len(words) + "|"]
