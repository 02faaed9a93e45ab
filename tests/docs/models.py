"""The table of model families: what trains packed, what padded, what is refused, and why.

tests/parity/families.json -> model_table -> Markdown: one line for each verdict and reason, with the model types
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from tests.docs.language import Language

_EXPECTED = Path(__file__).resolve().parents[1] / "parity" / "families.json"
# In the order of the table. `tests/parity/verdicts.py` says what they mean.
VERDICTS = ("packed", "padded", "refused", "not built")
# A reason of one family -> the reason that families share.
_SHARED: tuple[tuple[str, str], ...] = (
    (r"\w+ does not use transformers' attention interface.*", "it does not use transformers' attention interface"),
    (r"it has layers of the kind .*", "it has layers with other than full or sliding attention"),
    (r"it transforms its logits .*", "it transforms its logits (a factor or soft capping)"),
    (r"its attention takes 's_aux'.*", "its attention has sinks"),
    (r"its layers make an attention mask of their own", "its layers make an attention mask of their own"),
    (r"its layers do not pass the pack on .*", "its layers do not pass the pack on to the attention function"),
    (r"its output head is not a linear layer .*", "its output head is more than a linear layer"),
    (r"it attends over a sliding window .*", "its sliding window is shorter than the longest row"),
    (r"it is not causal .*", "it is not causal: an encoder, or `is_decoder` is false in its `config.json`"),
    (r".* in train mode differ .*", "its train mode computes something else than its eval mode"),
)
_FAILS = {
    "padded": "its forward fails on a pack",
    "refused": "its own forward fails on one row or on padded rows",
    "not built": "transformers makes no small model of its default configuration",
}


def shared_reason(verdict: str, reason: str) -> str:
    """The reason of a family in the words of the table; empty for packed families."""
    if not reason:
        return ""
    found = (text for pattern, text in _SHARED if re.fullmatch(pattern, reason))
    return next(found, _FAILS[verdict]) if "raises" not in reason else _FAILS[verdict]


def groups() -> Mapping[tuple[str, str], list[str]]:
    """(verdict, reason) -> names of cases, in the order of the table."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, row in json.loads(_EXPECTED.read_text(encoding="utf-8")).items():
        verdict = row["verdict"]
        found.setdefault((verdict, shared_reason(verdict, row.get("reason", ""))), []).append(name)
    order = sorted(found, key=lambda key: (VERDICTS.index(key[0]), -len(found[key])))
    return {key: found[key] for key in order}


def reasons() -> list[str]:
    """Every text of the table that has a translation."""
    return [*dict.fromkeys(reason for _, reason in groups() if reason), *VERDICTS]


def model_table(language: Language) -> list[str]:
    """Lines of Markdown."""
    header = " | ".join(language.of(word) for word in ("layout", "reason", "model types"))
    lines = [f"| {header} |", "| --- | --- | --- |"]
    for (verdict, reason), names in groups().items():
        shown = language.of(reason) if reason else ""
        # A narrow case has a limit below the length of the rows.
        listed = ", ".join(name.replace(", narrow", "\\*") for name in names)
        lines.append(f"| {language.of(verdict)} ({len(names)}) | {shown} | {listed} |")
    return lines
