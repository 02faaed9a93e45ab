"""MiniMind's rule: masks by hand, and tokenizers that it does not fit."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from minimind.data.encoding import EMPTY_THINK, EncodingOptions
from minimind.data.minimind_rule import MiniMindEncoder
from minimind.errors import DataError
from tests.conftest import conversation
from tests.unit.data.encoded import counted, with_template

PLAIN = EncodingOptions()


@pytest.fixture(scope="module")
def encoder(tokenizer) -> MiniMindEncoder:
    return MiniMindEncoder(tokenizer, PLAIN)


def test_markers_of_the_demo_tokenizer(encoder, tokenizer):
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert tokenizer.decode(encoder.start) == "<|im_start|>assistant\n"
    assert encoder.start[0] == start
    assert tokenizer.decode(encoder.end) == "<|im_end|>\n"
    assert encoder.end[0] == end


# Tokens and expected mask. S is the start marker, E the end marker, a number is an ordinary token. In the expected
# mask, S is 0 for each token of a start marker, E is 1 for each token of an end marker, 0* is an end marker that does
# not count, and 1* is a start marker that does.
MASKS = {
    "one turn": ("9 9 S 5 6 E 9", "0 0 S 1 1 E 0"),
    "two turns": ("S 5 E 9 S 6 7 E", "S 1 E 0 S 1 1 E"),
    "an empty answer": ("S E 9", "S E 0"),
    "truncated before the end marker": ("9 S 5 6", "0 S 1 1"),
    "truncated after the start marker": ("9 S", "0 S"),
    "no assistant": ("9 9 E 9", "0 0 0* 0"),
    "an end marker before the start": ("E S 5 E", "0* S 1 E"),
    "a start marker inside an answer is part of it": ("S 5 S 6 E 9", "S 1 1* 1 E 0"),
    "two answers in a row": ("S 5 E S 6 E", "S 1 E S 1 E"),
    "no token": ("", ""),
}


@pytest.mark.parametrize("name", MASKS)
def test_mask_by_hand(encoder, name):
    start, end = encoder.start, encoder.end
    spelled = {"S": start, "E": end}
    expected = {"S": [0] * len(start), "E": [1] * len(end), "0*": [0] * len(end), "1*": [1] * len(start)}
    tokens = [token for word in MASKS[name][0].split() for token in spelled.get(word) or [1000 + int(word)]]
    mask = [bit for word in MASKS[name][1].split() for bit in expected.get(word) or [int(word)]]
    assert encoder.mask(tokens) == mask


def test_truncated_start_marker_masks_nothing(encoder):
    assert len(encoder.start) > 1
    tokens = [1000, *encoder.start[:-1]]
    assert encoder.mask(tokens) == [0] * len(tokens)


def test_truncated_end_marker_counts_as_part_of_the_answer(encoder):
    assert len(encoder.end) > 1
    tokens = [*encoder.start, 1000, *encoder.end[:-1]]
    assert encoder.mask(tokens) == [0] * len(encoder.start) + [1] * len(encoder.end)


def test_marker_is_found_after_a_repeated_first_token(encoder):
    """<bos><bos>assistant: the marker starts at the second <bos>."""
    tokens = [encoder.start[0], *encoder.start, 1000]
    assert encoder.mask(tokens) == [0] * (1 + len(encoder.start)) + [1]


def test_encode_masks_answers_with_their_end_markers(encoder):
    messages = [{"role": "system", "content": "Be kind."}, *conversation("Hi", "Hello!", "assistant", "Yes?")]
    assert counted(encoder, messages) == ["Hello!<|im_end|>\n", "Yes?<|im_end|>\n"]


@pytest.mark.parametrize("length", [2, 9, 20])
def test_mask_of_a_truncated_row_is_the_truncated_mask(encoder, length):
    """MiniMind truncates before it searches for markers; here rows are truncated afterwards."""
    whole = encoder.encode(conversation("Tell me about the sea.", "It is wide, blue and full of fish."), 1)
    assert len(whole.tokens) > 20
    assert encoder.mask(whole.tokens[:length]) == whole.mask[:length]


@pytest.mark.parametrize("name", ["minimind2", "minimind3"])
def test_markers_of_the_public_tokenizers(shared, name):
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
    encoder = MiniMindEncoder(tokenizer, PLAIN)
    assert tokenizer.decode(encoder.start) == "<|im_start|>assistant\n"
    assert tokenizer.decode(encoder.end) == "<|im_end|>\n"
    think = EMPTY_THINK if name == "minimind3" else ""
    assert counted(encoder, conversation("Hi", "Hello!")) == [f"{think}Hello!<|im_end|>\n"]


def test_last_turn_only(tokenizer):
    encoder = MiniMindEncoder(tokenizer, EncodingOptions(last_turn_only=True))
    assert counted(encoder, conversation("Hi", "Hello!", "assistant", "Yes?")) == ["Yes?<|im_end|>\n"]


def test_a_template_without_minimind_s_markers_is_refused(tokenizer):
    other = with_template(tokenizer, "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}")
    with pytest.raises(DataError, match=r"MiniMind's rule needs .* '<\|im_start\|>assistant\\n' before .*--mask turns"):
        MiniMindEncoder(other, PLAIN)
