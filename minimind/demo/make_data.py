"""Writes the demo's preference pairs: `python -m minimind.demo.make_data [--out DIR]`.

    topics -> split_cases(): cases (language, topic, fact, wording) -> make_pairs() -> JSON lines

The chosen answer is correct, friendly and in the language of the question; the rejected answer is rude. Which of the
two is longer is random, so that length does not predict the preference. The training data has each fact in three of its
five wordings; the held-out questions ask for some of the same facts in another wording. All random choices come from
one seed, so every run writes the same bytes.
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
# Share of the pairs with a system turn, and share with an earlier exchange (question and answer).
_WITH_SYSTEM = 0.2
_WITH_HISTORY = 0.25

Message = dict[str, str]
Pair = dict[str, list[Message]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One question: a fact in one wording."""

    language: Language
    topic: Topic
    fact: Fact
    wording: str

    def fill(self, template: str) -> str:
        """Insert the fact into a template (see `topics.py`)."""
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
        """The text of the question."""
        return self.fill(self.wording)

    def kind_answer(self, rng: Random) -> str:
        """A friendly opening, the answer, and in half of the cases a friendly closing."""
        sentences = [rng.choice(self.language.openers), self.fill(rng.choice(self.topic.answers))]
        if rng.random() < 0.5:
            sentences.append(rng.choice(self.language.closers))
        return self.language.space.join(sentences)

    def rude_answer(self, rng: Random) -> str:
        """A refusal, followed by up to two taunts."""
        sentences = [rng.choice(self.language.refusals), *rng.sample(self.language.taunts, rng.randint(0, 2))]
        return self.language.space.join(self.fill(sentence) for sentence in sentences)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """All cases: those of the train file, those of the eval file, and those in neither file."""

    train: tuple[Case, ...]
    held_out: tuple[Case, ...]
    spare: tuple[Case, ...]


def split_cases() -> Split:
    """Split the cases. Train and held-out cases share facts, but no wording of a fact."""
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
    """Make one preference pair.

    Args:
        case: the question of both halves.
        history: cases from which an earlier exchange is drawn, if the pair has one.
        rng: source of all random choices.
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
    """Make one pair per case. Earlier exchanges are drawn from `history`, which must not contain held-out cases."""
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
    """A friendly and a rude answer; which one is longer is random.

    Length is in UTF-8 bytes, because the two answers may be in different languages.
    """
    kind_is_longer = rng.random() < 0.5
    # Some answers are so short or so long that no attempt gives the wanted order, so the attempts are limited.
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
