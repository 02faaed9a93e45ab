"""The demo's pairs: the script writes the bundled bytes, and pairs have the promised properties."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from minimind.demo import EVAL_PATH, TRAIN_PATH, make_data
from minimind.demo.chinese import CHINESE
from minimind.demo.english import ENGLISH
from minimind.demo.make_data import Case, make_pair, split_cases
from minimind.demo.topics import Fact, Topic
from tests.unit.demo.files import MEGABYTE, read_pairs, run_script, user_turns

TOPIC = Topic(
    facts=(Fact(asked="snow", answer="white"),),
    questions=("What colour is {x}?",),
    answers=("{X} is {y}.",),
    about="the colour of {x}",
)
CASE = Case(language=ENGLISH, topic=TOPIC, fact=TOPIC.facts[0], wording=TOPIC.questions[0])


def test_script_writes_the_bundled_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_script(Path(make_data.__file__), tmp_path, monkeypatch)
    for path in (TRAIN_PATH, EVAL_PATH):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
        assert path.stat().st_size < 0.4 * MEGABYTE


def test_template_is_filled_with_the_fact() -> None:
    assert CASE.question == "What colour is snow?"
    assert CASE.fill("{X}, {x}, {Y}, {y}, {about}") == "Snow, snow, White, white, the colour of snow"


def test_friendly_answer_is_correct_and_the_rude_one_starts_with_a_refusal() -> None:
    refusals = [CASE.fill(refusal) for refusal in ENGLISH.refusals]
    for seed in range(20):
        friendly, rude = CASE.kind_answer(Random(seed)), CASE.rude_answer(Random(seed))
        assert "Snow is white." in friendly
        assert friendly.startswith(ENGLISH.openers)
        assert rude.startswith(tuple(refusals))


def test_pair_has_a_system_turn_and_an_earlier_exchange_at_times() -> None:
    history = [case for case in split_cases().train if case.language is CHINESE][:3]
    case = next(case for case in split_cases().train if case.language is CHINESE and case not in history)
    pairs = [make_pair(case, history, Random(seed)) for seed in range(200)]
    with_system = sum(pair["chosen"][0]["role"] == "system" for pair in pairs)
    with_history = sum(len(user_turns(pair)) == 2 for pair in pairs)
    # Binomial, n = 200: mean 40 and 50, standard deviation 5.7 and 6.1; the bounds are four deviations away.
    assert 17 <= with_system <= 63
    assert 26 <= with_history <= 74


def test_split_has_every_case_once() -> None:
    """Two languages, 10 topics of 12 facts in 5 wordings; 3 wordings of each fact train, 5 facts per topic are held
    out."""
    cases = split_cases()
    every = [
        (case.question, case.language.space) for part in (cases.train, cases.held_out, cases.spare) for case in part
    ]
    assert len(every) == 2 * 10 * 12 * 5
    assert len(cases.train) == 2 * 10 * 12 * 3
    assert len(cases.held_out) == 2 * 10 * 5
    trained = {(case.fact, case.topic.about, case.wording) for case in cases.train}
    assert not trained & {(case.fact, case.topic.about, case.wording) for case in cases.held_out + cases.spare}


@pytest.mark.parametrize("path", [TRAIN_PATH, EVAL_PATH])
def test_pairs_differ_in_the_last_answer_only(path: Path) -> None:
    for pair in read_pairs(path):
        assert set(pair) == {"chosen", "rejected"}
        chosen, rejected = pair["chosen"], pair["rejected"]
        assert chosen[:-1] == rejected[:-1]
        assert chosen[-1]["role"] == rejected[-1]["role"] == "assistant"
        assert chosen[-1]["content"] != rejected[-1]["content"]
        turns = [message["role"] for message in chosen if message["role"] != "system"]
        assert turns in (["user", "assistant"], ["user", "assistant"] * 2)
        assert all(message["content"] for message in chosen)


@pytest.mark.parametrize("path", [TRAIN_PATH, EVAL_PATH])
def test_length_does_not_predict_the_preference(path: Path) -> None:
    lengths = [
        [len(pair[half][-1]["content"].encode()) for half in ("chosen", "rejected")] for pair in read_pairs(path)
    ]
    chosen_longer = sum(chosen > rejected for chosen, rejected in lengths) / len(lengths)
    assert 0.4 < chosen_longer < 0.6
    chosen_total, rejected_total = (sum(column) for column in zip(*lengths, strict=True))
    assert 0.85 < chosen_total / rejected_total < 1.15


def test_no_held_out_question_is_trained_on() -> None:
    seen = {turn for pair in read_pairs(TRAIN_PATH) for turn in user_turns(pair)}
    held_out = [user_turns(pair)[-1] for pair in read_pairs(EVAL_PATH)]
    assert len(set(held_out)) == len(held_out) == 100
    assert not seen & set(held_out)
    # The start weights are trained on the train and spare cases.
    cases = split_cases()
    assert not {case.question for case in cases.train + cases.spare} & set(held_out)
    assert set(held_out) == {case.question for case in cases.held_out}
