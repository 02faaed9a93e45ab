"""Makes the demo's preference pairs: `python -m minimind.demo.make_data [--out DIR]`.

    topics -> split_cases(): cases (language, topic, fact, wording) -> make_pairs() -> JSON lines

The chosen answer is right, kind and in the asker's language; the rejected one brushes the asker off. Which
of the two is longer is left to a coin, so that length says nothing. Each fact is trained on in three of its
five wordings; the held-out questions ask for some of the same facts in another one. Everything is drawn
from a seed, so that a second run writes the same bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from minimind.demo.chinese import CHINESE
from minimind.demo.english import ENGLISH
from minimind.demo.topics import Fact, Language, Topic

SEED = 20240
LANGUAGES = (ENGLISH, CHINESE)

_TRAIN_WORDINGS = 3
_HELD_OUT_PER_TOPIC = 5
# Shares of the pairs that have a system turn, and an earlier exchange.
_WITH_SYSTEM = 0.2
_WITH_HISTORY = 0.25

Message = dict[str, str]
Pair = dict[str, list[Message]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One question that can be asked: a fact in one wording."""

    language: Language
    topic: Topic
    fact: Fact
    wording: str

    def fill(self, template: str) -> str:
        """Put the fact into a template (see `topics.py`)."""
        asked, answer = self.fact.asked, self.fact.answer
        return template.format(
            x=asked,
            y=answer,
            X=asked[:1].upper() + asked[1:],
            Y=answer[:1].upper() + answer[1:],
            about=self.topic.about.format(x=asked),
        )

    @property
    def question(self) -> str:
        return self.fill(self.wording)

    def kind_answer(self, rng: Random) -> str:
        """What a helpful assistant says: a friendly word, the answer, and at times another friendly word."""
        sentences = [rng.choice(self.language.openers), self.fill(rng.choice(self.topic.answers))]
        if rng.random() < 0.5:
            sentences.append(rng.choice(self.language.closers))
        return self.language.space.join(sentences)

    def rude_answer(self, rng: Random) -> str:
        """What an assistant should not say: a refusal, often with a taunt or two after it."""
        sentences = [rng.choice(self.language.refusals), *rng.sample(self.language.taunts, rng.randint(0, 2))]
        return self.language.space.join(self.fill(sentence) for sentence in sentences)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Every case once: those of the train file, those of the eval file, and those of neither."""

    train: tuple[Case, ...]
    held_out: tuple[Case, ...]
    spare: tuple[Case, ...]


def split_cases() -> Split:
    """Train and eval ask for the same facts, but for no fact in the same wording."""
    rng = Random(SEED)
    train: list[Case] = []
    held_out: list[Case] = []
    spare: list[Case] = []
    for language in LANGUAGES:
        for topic in language.topics:
            held_out_facts = rng.sample(topic.facts, _HELD_OUT_PER_TOPIC)
            for fact in topic.facts:
                wordings = rng.sample(topic.questions, len(topic.questions))
                cases = [Case(language=language, topic=topic, fact=fact, wording=wording) for wording in wordings]
                train += cases[:_TRAIN_WORDINGS]
                rest = cases[_TRAIN_WORDINGS:]
                if fact in held_out_facts:
                    held_out.append(rest.pop())
                spare += rest
    for cases in (train, held_out, spare):
        rng.shuffle(cases)
    return Split(train=tuple(train), held_out=tuple(held_out), spare=tuple(spare))


def make_pair(case: Case, history: Sequence[Case], rng: Random) -> Pair:
    """One preference pair.

    Args:
        case: the question that is answered in two ways.
        history: cases to draw an earlier exchange from, if there is one.
        rng: decides on everything else.
    """
    prompt = []
    if rng.random() < _WITH_SYSTEM:
        prompt.append(_message("system", rng.choice(case.language.systems)))
    if rng.random() < _WITH_HISTORY:
        prompt += _earlier_exchange(case, history, rng)
    prompt.append(_message("user", case.question))
    chosen, rejected = _answers(case, rng)
    return {
        "chosen": [*prompt, _message("assistant", chosen)],
        "rejected": [*prompt, _message("assistant", rejected)],
    }


def make_pairs(cases: Sequence[Case], history: Sequence[Case], seed: int) -> list[Pair]:
    """A pair per case; earlier exchanges are drawn from `history`, which must hold no held-out case."""
    rng = Random(seed)
    return [make_pair(case, history, rng) for case in cases]


def write_jsonl(pairs: Sequence[Pair], path: Path) -> None:
    """Write one pair per line."""
    lines = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _earlier_exchange(case: Case, history: Sequence[Case], rng: Random) -> list[Message]:
    """A greeting, or another question with its kind answer, in the language of the case."""
    if rng.random() < 0.5:
        user, assistant = rng.choice(case.language.greetings)
    else:
        earlier = rng.choice([c for c in history if c.language is case.language and c.fact != case.fact])
        user, assistant = earlier.question, earlier.kind_answer(rng)
    return [_message("user", user), _message("assistant", assistant)]


def _answers(case: Case, rng: Random) -> tuple[str, str]:
    """A kind and a rude answer; a coin says which is longer.

    Length is counted in UTF-8 bytes, since an answer may be in either language. A few answers are so short
    or long that the coin cannot be obeyed; the tries are bounded for them.
    """
    kind_is_longer = rng.random() < 0.5
    for _ in range(20):
        kind, rude = case.kind_answer(rng), case.rude_answer(rng)
        if (len(kind.encode()) > len(rude.encode())) == kind_is_longer:
            break
    return kind, rude


def main() -> None:
    """Write train.jsonl and eval.jsonl."""
    parser = argparse.ArgumentParser(description="Make the demo's preference pairs.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    out: Path = parser.parse_args().out
    cases = split_cases()
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(make_pairs(cases.train, cases.train, SEED + 1), out / "train.jsonl")
    write_jsonl(make_pairs(cases.held_out, cases.train, SEED + 2), out / "eval.jsonl")


if __name__ == "__main__":
    main()
