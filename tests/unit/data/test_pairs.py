"""One pair in tokens: full lengths, cutting at the end, shortening the prompt, and rows without a difference."""

from __future__ import annotations

import itertools

import pytest

from minimind.data.encoder import build_encoder
from minimind.data.encoding import EncodingOptions
from minimind.data.pairs import EncodedPair, LengthLimit, encode_pair
from minimind.data.rows import PreferenceRow, checked_row
from tests.conftest import conversation, pair

SYSTEM = {"role": "system", "content": "Be kind."}
TURNS = conversation(
    "Where is Rome?", "In Italy.", "Where is Paris?", "In France.", "Where is Bern?", "In Switzerland."
)
BAD = {"role": "assistant", "content": "Look at a map."}
LONG = PreferenceRow(chosen=[SYSTEM, *TURNS], rejected=[SYSTEM, *TURNS[:-1], BAD])


@pytest.fixture
def encoder(tokenizer):
    return build_encoder(tokenizer, EncodingOptions())


@pytest.fixture
def length(tokenizer):
    """Number of tokens of a conversation, from the tokenizer alone."""

    def of(messages):
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return of


@pytest.fixture
def cut(encoder, tokenizer):
    """A pair under a limit, and the texts of its halves."""

    def run(row: PreferenceRow, max_length: int, cut_prompt: bool = False) -> tuple[EncodedPair, list[str]]:
        encoded = encode_pair(row, 1, encoder, LengthLimit(max_length=max_length, cut_prompt=cut_prompt))
        return encoded, [tokenizer.decode(half.tokens) for half in (encoded.chosen, encoded.rejected)]

    return run


def rendered(tokenizer, messages) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_pair_that_fits_is_whole(cut, tokenizer, length):
    encoded, texts = cut(LONG, 1000)
    assert texts == [rendered(tokenizer, LONG.chosen), rendered(tokenizer, LONG.rejected)]
    assert encoded.lengths == (length(LONG.chosen), length(LONG.rejected))
    assert encoded.problem is None
    assert (encoded.prompt_cut, encoded.end_cut, encoded.is_lost, encoded.other_mask) == (False,) * 4
    shared = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*encoded_tokens(encoded), strict=False)))
    assert encoded.prefix == len(shared)


def encoded_tokens(encoded: EncodedPair) -> tuple[list[int], list[int]]:
    return encoded.chosen.tokens, encoded.rejected.tokens


def test_the_limit_itself_fits(cut, length):
    longest = max(length(LONG.chosen), length(LONG.rejected))
    assert not cut(LONG, longest)[0].end_cut
    assert cut(LONG, longest - 1)[0].end_cut


def test_prompt_and_least_limit_are_those_of_the_full_length(cut, length, tokenizer):
    whole, texts = cut(LONG, 1000)
    prompt = tokenizer.decode(whole.chosen.tokens[: whole.prompt_length])
    assert texts[0].removeprefix(prompt) == "In Switzerland.<|im_end|>\n"
    assert texts[1].removeprefix(prompt) == "Look at a map.<|im_end|>\n"
    limits = range(2, length(LONG.chosen))
    assert min(limit for limit in limits if not cut(LONG, limit)[0].is_lost) == whole.least_limit
    for cut_prompt in (False, True):
        encoded, _ = cut(LONG, 24, cut_prompt)
        assert (encoded.prompt_length, encoded.least_limit) == (whole.prompt_length, whole.least_limit)


def test_a_long_pair_is_cut_at_the_end(cut, length):
    whole, _ = cut(LONG, 1000)
    limit = whole.prefix + 2
    encoded, _ = cut(LONG, limit)
    assert encoded.chosen == (whole.chosen.tokens[:limit], whole.chosen.mask[:limit])
    assert encoded.rejected == (whole.rejected.tokens[:limit], whole.rejected.mask[:limit])
    assert encoded.lengths == (length(LONG.chosen), length(LONG.rejected))
    assert (encoded.end_cut, encoded.is_lost, encoded.problem, encoded.prefix) == (True, False, None, whole.prefix)


def test_a_cut_before_the_difference_loses_the_pair(cut):
    """Earlier answers still count in both halves, but they are the same."""
    whole, _ = cut(LONG, 1000)
    encoded, texts = cut(LONG, whole.prefix)
    assert texts[0] == texts[1]
    assert any(encoded.chosen.mask)
    assert (encoded.end_cut, encoded.is_lost, encoded.problem) == (True, True, None)
    assert encoded.prefix == whole.prefix == len(encoded.chosen.tokens)


def test_a_pair_without_a_difference_has_a_problem_and_is_not_lost(cut):
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "same", "score": 1}]
    for limit in (1000, 5):
        encoded, _ = cut(PreferenceRow(chosen=turns, rejected=[turns[0], {**turns[1], "score": 2}]), limit)
        assert encoded.problem is not None
        assert "differ only in 'score'" in encoded.problem
        assert not encoded.is_lost
        assert encoded.least_limit == 0


def test_one_continues_the_other_up_to_a_user_turn(cut, length):
    """What is left of the longer half behind the shorter one is a user's words."""
    row = PreferenceRow(chosen=TURNS[:2], rejected=TURNS[:4])
    assert not cut(row, 1000)[0].is_lost
    assert cut(row, length(TURNS[:3]))[0].is_lost


def test_cut_prompt_leaves_out_the_oldest_turns(cut, tokenizer, length):
    """Without the first question and its answer both halves fit; the system message stays."""
    kept = [[SYSTEM, *TURNS[2:]], [SYSTEM, *TURNS[2:-1], BAD]]
    limit = max(map(length, kept))
    encoded, texts = cut(LONG, limit, cut_prompt=True)
    assert texts == [rendered(tokenizer, messages) for messages in kept]
    assert encoded.lengths == (length(LONG.chosen), length(LONG.rejected))
    assert (encoded.prompt_cut, encoded.end_cut, encoded.is_lost) == (True, False, False)
    assert encoded.prefix == len(encoded.chosen.tokens) - tokens_behind(tokenizer, "In Switzerland.")


def tokens_behind(tokenizer, answer: str) -> int:
    return len(tokenizer(f"{answer}<|im_end|>\n", add_special_tokens=False)["input_ids"])


def test_cut_prompt_is_the_same_for_both_halves(cut, tokenizer, length):
    """Only the rejected half is too long, and the chosen one loses the same turns."""
    long_answer = {"role": "assistant", "content": "Look at a map. " * 20}
    row = PreferenceRow(chosen=TURNS, rejected=[*TURNS[:-1], long_answer])
    kept = [TURNS[4:], [TURNS[4], long_answer]]
    limit = length(kept[1])
    assert length(TURNS) < limit
    encoded, texts = cut(row, limit, cut_prompt=True)
    assert texts == [rendered(tokenizer, messages) for messages in kept]
    assert (encoded.prompt_cut, encoded.end_cut) == (True, False)


def test_cut_prompt_keeps_the_last_question_and_then_cuts_the_end(cut, tokenizer):
    encoded, texts = cut(LONG, 24, cut_prompt=True)
    whole = rendered(tokenizer, [SYSTEM, *TURNS[4:]])
    assert whole.startswith(texts[0])
    assert len(encoded.chosen.tokens) == 24
    assert (encoded.prompt_cut, encoded.end_cut) == (True, True)


def test_cut_prompt_begins_with_a_user_turn(cut, tokenizer, length):
    """An assistant's greeting goes with the turns before it; a tool's result is not the beginning."""
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "where", "arguments": {}}]}
    prompt = [TURNS[0], call, {"role": "tool", "content": "Italy"}, TURNS[1], TURNS[2]]
    row = PreferenceRow(chosen=[*prompt, TURNS[3]], rejected=[*prompt, BAD])
    limit = length(row.chosen) - 1
    _, texts = cut(row, limit, cut_prompt=True)
    assert texts == [rendered(tokenizer, [TURNS[2], TURNS[3]]), rendered(tokenizer, [TURNS[2], BAD])]


def test_cut_prompt_leaves_a_prompt_of_one_turn_alone(cut):
    row = checked_row(**pair("Where is Rome? " * 30, "In Italy.", "Look."))
    encoded, _ = cut(row, 40, cut_prompt=True)
    assert encoded == cut(row, 40)[0]
    assert (encoded.prompt_cut, encoded.end_cut, encoded.is_lost) == (False, True, True)


def test_a_pair_that_fits_keeps_its_prompt(cut):
    assert cut(LONG, 1000, cut_prompt=True) == cut(LONG, 1000)


def test_tools_and_variables_reach_the_template(encoder, tokenizer):
    tools = [{"name": "where"}]
    row = PreferenceRow(chosen=TURNS[:2], rejected=[TURNS[0], BAD], tools=tools)
    encoded = encode_pair(row, 1, encoder, LengthLimit(max_length=1000))
    expected = tokenizer.apply_chat_template(TURNS[:2], tools=tools, tokenize=False)
    assert '{"name": "where"}' in expected
    assert tokenizer.decode(encoded.chosen.tokens) == expected
