"""A rule of the guard: a pure function of curves, with the words for what it sees.

    Curves -> judge -> Seen, or None -> Rule -> Finding, in English
    values of a finding -> Rule.texts and Rule.remedy -> the same words in the report's language

The words are templates, so that findings.jsonl keeps numbers and every reader says them in its own language.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from minimind.diagnosis.curves import Curves, Finding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What a rule sees where something goes wrong.

    Attributes:
        step: global step of the numbers.
        values: name of a number in the rule's words -> number, or numbers that are a text in every language.
        form: which of the rule's texts says it.
    """

    step: int
    values: Mapping[str, float | str]
    form: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule; called with curves it returns its finding, or None.

    Attributes:
        name: in findings.jsonl.
        title: what goes wrong, in a few words.
        texts: form -> template of what is seen.
        remedy: template of what to try.
        judge: sees what goes wrong; its docstring names the source.
    """

    name: str
    title: str
    texts: Mapping[str, str]
    remedy: str
    judge: Callable[[Curves], Seen | None]

    def __call__(self, curves: Curves) -> Finding | None:
        seen = self.judge(curves)
        if seen is None:
            return None
        return Finding(
            rule=self.name,
            step=seen.step,
            text=self.texts[seen.form].format(**seen.values),
            remedy=self.remedy.format(**seen.values),
            form=seen.form,
            values=seen.values,
        )


def rule(
    name: str, *, title: str, text: str | Mapping[str, str], remedy: str
) -> Callable[[Callable[[Curves], Seen | None]], Rule]:
    """Make a rule of the function below it; the arguments are as in `Rule`, `text` perhaps the only one."""
    texts = {"": text} if isinstance(text, str) else text
    return lambda judge: Rule(name=name, title=title, texts=texts, remedy=remedy, judge=judge)
