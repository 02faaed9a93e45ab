"""Tables, pairs and a whole report whose numbers are known."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from minimind.data.entries import TEXT
from minimind.data.sources.source import LINE, Source
from minimind.data.table import PairTable
from minimind.inspection.answers import AnswerReport, Refusal
from minimind.inspection.cost import Cost, Memory
from minimind.inspection.equal_pairs import EqualPairs, Found
from minimind.inspection.items import ITEMS
from minimind.inspection.lengths import Distribution, LengthBias, LimitEffect
from minimind.inspection.packing import Packing
from minimind.inspection.pairs import PairArrays, gather, right
from minimind.inspection.report import NOTE, STOPS, WARNING, Finding, Report
from minimind.inspection.rows import RefusedRows, SourceReport
from minimind.inspection.scores import GapEffect, ScoreReport
from minimind.inspection.texts import ItemTexts, Run
from minimind.pages.charts import Histogram
from tests.unit.data.tables import table_of

# A text that would run a program, close the page's elements or leave an attribute.
HOSTILE = "</div></pre><script>alert(1)</script>\"onload='x' &lt; \x1b[31m"


def made_table(
    *pairs: tuple[int, int, int],
    least: list[int] | None = None,
    identities: list[tuple[int, int, int]] | None = None,
    name: str = "pairs.jsonl",
    **given,
) -> PairTable:
    """A table of pairs in lines 1, 2, ..., given as tokens of the prompt, of the chosen and of the rejected answer."""
    table = table_of(*((prompt + chosen, prompt + rejected, 0) for prompt, chosen, rejected in pairs), **given)
    return dataclasses.replace(
        table,
        source=Source(name=name, files=(Path(name),), unit=LINE),
        prompt_lengths=np.array([prompt for prompt, _, _ in pairs], np.int64),
        least_limits=np.array(least if least is not None else [prompt + 1 for prompt, _, _ in pairs], np.int64),
        identities=table.identities if identities is None else np.array(identities, np.uint64).ravel(),
    )


def made_texts(*lengths: int, limit: int | None = None) -> PairTable:
    """A table of texts in lines 1, 2, ..., given as their tokens, in rows of at most `limit` tokens."""
    pieces = [
        (line, piece, min(limit or length, length - start))
        for line, length in enumerate(lengths, start=1)
        for piece, start in enumerate(range(0, max(1, length - 1), (limit or max(2, length)) - 1))
    ]
    table = made_table(*((1, tokens - 1, 0) for _, _, tokens in pieces), lines=[line for line, _, _ in pieces])
    return dataclasses.replace(
        table,
        labels=np.full(len(pieces), TEXT, np.uint8),
        identities=np.array([(line, line, piece) for line, piece, _ in pieces], np.uint64).ravel(),
    )


def made_pairs(*identities: tuple[int, int, int], name: str = "pairs.jsonl") -> PairArrays:
    """Pairs of which only prompt, chosen and rejected answer matter, given as numbers."""
    return gather([made_table(*((1, 1, 1) for _ in identities), identities=list(identities), name=name)], right)


def made_report(text: str = "text", **changes) -> Report:
    """A report with a text of a user in every place that has one."""
    histogram = Histogram(start=0, width=10, counts=(3, 1, 0, 2))
    lengths = Distribution(mean=12.5, median=11, p90=40, p99=50, longest=64, histogram=histogram)
    found = Found(pairs=2, places=(f"{text}, line 3",))
    runs = (Run(text=f"{text} asks", counts=False), Run(text=f"{text} says", counts=True))
    source = SourceReport(
        name=text,
        rows=10,
        pairs=8,
        selected=6,
        shapes={"MiniMind's": 10},
        refused=(RefusedRows(reason=f"bad {text}", rows=2, first="lines 1, 2", excerpt=f"row {text}"),),
        refused_rows=2,
        unpaired=0,
        unused={f"column {text}": 3},
        messages=(f"not used: {text}",),
    )
    report = Report(
        items="pairs",
        sources=(source,),
        eval_sources=(dataclasses.replace(source, rows=4, refused=(), messages=()),),
        pairs=6,
        eval_pairs=4,
        max_seq_len=128,
        on_long_row="cut",
        enough_limit=256,
        whole_limit=300,
        lengths={"prompt": lengths, "chosen": lengths, "rejected": lengths},
        limits=(
            LimitEffect(limit=128, whole=5, cut=2, lost=1, kept=0.75),
            LimitEffect(limit=512, whole=8, cut=0, lost=0, kept=1.0),
        ),
        bias=LengthBias(
            mean_difference=-3.25,
            median_difference=-1,
            longer=2,
            equal=1,
            shorter=5,
            rule=0.3125,
            differences=Histogram(start=-20, width=10, counts=(4, 1, 2, 1)),
        ),
        scores=ScoreReport(
            pairs=8,
            scored=6,
            mean=1.25,
            median=1,
            worse=2,
            equal=1,
            histogram=Histogram(start=-0.5, width=0.5, counts=(2, 1, 3), whole=False),
            effects=(GapEffect(gap=0, left=4), GapEffect(gap=0.5, left=3)),
        ),
        equal=EqualPairs(
            pairs=6,
            prompts=5,
            duplicates=found,
            contradictions=found,
            leaked_prompts=found,
            leaked_pairs=Found(pairs=0, places=()),
            eval_prompts=4,
        ),
        answers=AnswerReport(
            pairs=6,
            scripts={"Latin": (4, 5), "Chinese": (2, 1)},
            other_script=1,
            empty=(0, 1),
            one_word=(2, 0),
            refusals=(1, 3),
            examples=(Refusal(place=f"{text}, line 5", text=f"I cannot {text}"),),
        ),
        packing=Packing(steps=2, micro_batches=4, packed=50, unpadded=60, padded=100, padded_to_limit=508, largest=70),
        cost=Cost(
            ranks=2,
            global_batch=4,
            epochs=1,
            steps=3,
            tokens=300,
            row_tokens=400,
            memory=Memory(peak=2**30, peak_at_limit=2**31, available=2**34, device="main memory"),
            no_memory="",
            seconds=None,
        ),
        examples=(
            ItemTexts(
                place=f"{text}, line 1",
                parts={"prompt": runs, "chosen": runs, "rejected": runs},
                tokens={"chosen": 9, "rejected": 8},
            ),
        )
        * 2,
        findings=tuple(Finding(kind=kind, text=f"{kind}: {text}") for kind in (STOPS, WARNING, NOTE)),
        command=f"    deepspeed --data_path '{text}'",
    )
    return dataclasses.replace(report, **changes)


def made_report_of(items: str, text: str = "text") -> Report:
    """The same of conversations or texts: what they do not have is None."""
    made, kind = made_report(text), ITEMS[items]
    (length, *_), runs = made.lengths.values(), made.examples[0].parts["chosen"]
    return dataclasses.replace(
        made,
        items=items,
        lengths={one.name: length for one in kind.lengths},
        limits=made.limits if kind.replies else (LimitEffect(limit=128, whole=5, cut=3, lost=0, rows=12, kept=1.0),),
        bias=None,
        scores=None,
        equal=dataclasses.replace(
            made.equal, contradictions=None, leaked_prompts=made.equal.leaked_prompts if kind.has_prompts else None
        ),
        answers=dataclasses.replace(
            made.answers,
            scripts={"Latin": (4,), "Chinese": (2,)},
            other_script=None,
            empty=(1,),
            one_word=(2,),
            refusals=(3,) if kind.replies else (),
            examples=made.answers.examples if kind.replies else (),
        ),
        packing=dataclasses.replace(made.packing, unpadded=made.packing.packed),
        examples=(ItemTexts(place=f"{text}, line 1", parts={kind.item: runs}, tokens={kind.item: 9}),),
    )


class Page(HTMLParser):
    """A parsed page: its texts, its elements, and its attributes; elements that are not closed in order are errors."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.elements: list[str] = []
        self.attributes: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag not in ("meta", "br", "hr"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
