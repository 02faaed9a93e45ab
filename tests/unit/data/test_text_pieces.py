"""Texts tokenised in pieces have the tokens and places of whole texts; what comes again is tokenised once."""

from __future__ import annotations

import copy

import pytest
from tokenizers import AddedToken

from minimind.data.control_tokens import special_tokens
from minimind.data.text_pieces import TextPieces

LONG = "What is the colour of the sky on a clear day in the middle of summer? 你好吗? " * 2
TEXTS = [
    f"<|im_start|>user\n{LONG}<|im_end|>\n<|im_start|>assistant\n  {end}<|im_end|>\n"
    for end in ("Blue. 😀", "\n\nRed", "")
]


def pieces_of(tokenizer) -> TextPieces:
    return TextPieces(tokenizer, special_tokens(tokenizer))


@pytest.mark.parametrize("text", [*TEXTS, LONG, "", " <|im_start|> " * 20, LONG + "<|im_end|>" * 3 + LONG])
def test_pieces_have_the_tokens_of_the_whole_text(tokenizer, text):
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = pieces_of(tokenizer).encode(text)
    assert ids == whole["input_ids"]
    assert [tuple(place) for place in offsets.tolist()] == whole["offset_mapping"]


@pytest.mark.parametrize("foreseen", [False, True])
@pytest.mark.parametrize("text", [*TEXTS, LONG, "", " <|im_start|> " * 20, LONG + "<|im_end|>" * 3 + LONG])
def test_bytes_end_where_the_characters_of_the_whole_text_do(tokenizer, text, foreseen):
    pieces = pieces_of(tokenizer)
    if foreseen:
        pieces.foresee([*TEXTS, text])
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, ends = pieces.encode_bytes(text)
    assert ids == whole["input_ids"]
    inside = [(end, place) for end, (_, place) in zip(ends.tolist(), whole["offset_mapping"], strict=True)]
    # A token that ends within a character reaches up to its end by the library's account.
    assert all(end <= len(text[:place].encode()) < end + 4 for end, place in inside)
    assert (ends[-1] if ids else 0) == len(text.encode())


def test_settings_of_earlier_calls_are_not_used(tokenizer):
    other = copy.deepcopy(tokenizer)
    other(LONG, truncation=True, max_length=5, padding="max_length")
    other.backend_tokenizer.encode_special_tokens = True
    expected = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    assert pieces_of(other).encode_bytes(TEXTS[0])[0] == expected
    other(LONG, truncation=True, max_length=5, padding="max_length")
    assert pieces_of(other).encode(TEXTS[0])[0] == expected


def test_a_class_that_does_more_when_it_is_called_is_called(tokenizer):
    class Shouting(type(tokenizer)):
        def __call__(self, text, **options):
            return super().__call__(text.upper(), **options)

    other = copy.deepcopy(tokenizer)
    other.__class__ = Shouting
    pieces = pieces_of(other)
    assert pieces.encode_bytes("abc") is None
    assert pieces.encode("abc")[0] == tokenizer("ABC", add_special_tokens=False)["input_ids"]


def test_a_shared_prompt_is_tokenised_once(tokenizer):
    seen = []

    class Counted:
        added_tokens_decoder = tokenizer.added_tokens_decoder

        def __call__(self, text, **options):
            seen.append(text)
            return tokenizer(text, **options)

    pieces = TextPieces(Counted(), special_tokens(tokenizer))
    for text in TEXTS:
        pieces.encode(text)
    assert sum(LONG in text for text in seen) == 1


@pytest.mark.parametrize(
    "token", [AddedToken("<|im_start|>", lstrip=True), AddedToken("?<|im_start|>"), AddedToken("\n<|")], ids=str
)
def test_a_tokenizer_whose_added_tokens_reach_beyond_their_text_gets_whole_texts(tokenizer, token):
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens([token], special_tokens=True)
    for text in (TEXTS[0], LONG + " <|im_start|>" + LONG, LONG.strip() + "<|im_start|>" + LONG):
        whole = changed(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = pieces_of(changed).encode(text)
        assert ids == whole["input_ids"]
        assert [tuple(place) for place in offsets.tolist()] == whole["offset_mapping"]
