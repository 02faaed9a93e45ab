"""Samples: answers of the policy to a few prompts, while it trains.

SamplePrompt (setup/) -> listeners/sampling.py -> Sample -> Sampled -> metrics, samples.jsonl, TensorBoard, console
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from minimind.diagnosis.run_files import SAMPLES_FILE, read_entries

# Number of held-out prompts where nothing says how many.
DEFAULT_NUMBER = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplePrompt:
    """A prompt.

    Attributes:
        ids: its tokens, up to where the answer begins.
        text: for people.
        expected: the answer in the data, of a pair the chosen one; empty if there is none.
        place: where it is from: "eval.jsonl, line 7".
    """

    ids: tuple[int, ...]
    text: str
    expected: str
    place: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """An answer.

    Attributes:
        start: the answer before the first step, with which the policy is its reference; None if it is not known.
        answer: without special tokens.
        ids: its tokens, with the one that ends it.
        ended: the model ended it; False: it was cut at the limit.
    """

    prompt: SamplePrompt
    start: str | None
    answer: str
    ids: tuple[int, ...]
    ended: bool

    def entry(self, step: int) -> dict[str, object]:
        """Its line of `SAMPLES_FILE`."""
        return {
            "step": step,
            "prompt": self.prompt.text,
            "expected": self.prompt.expected,
            "start": self.start,
            "answer": self.answer,
            "tokens": len(self.ids),
            "ended": self.ended,
            "place": self.prompt.place,
        }


def read_start(folder: Path, prompts: Sequence[SamplePrompt]) -> list[str | None]:
    """Answers to these prompts before the first step, from an earlier part of the run; None for those without one.

    Raises:
        DataError: they cannot be read.
    """
    known = {
        (entry.get("place"), entry.get("prompt")): entry.get("answer")
        for entry in read_entries(folder / SAMPLES_FILE)
        if entry["step"] == 0
    }
    return [known.get((prompt.place, prompt.text)) for prompt in prompts]
