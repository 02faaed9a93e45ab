"""Places from lengths of tokens are those that the tokenizers library gives, or there are none."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors

from minimind.data.byte_places import BytePlaces, byte_lengths, is_normal
from minimind.data.control_tokens import special_tokens
from minimind.data.text_pieces import TextPieces
from minimind.data.token_places import TokenizedText, places_of

TEXT = (
    "<|im_start|>user\nWhy? 为什么 é 😀\r\n\n<|im_end|>\n<|im_start|>assistant\n  Weil.\n\n 因为 👩‍👩‍👧 \t<|im_end|>\n"
)


def changed(tokenizer, **parts):
    other = copy.deepcopy(tokenizer)
    for name, part in parts.items():
        setattr(other.backend_tokenizer, name, part)
    return other


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"normalizer": normalizers.NFC()},
        {"post_processor": processors.ByteLevel(trim_offsets=True)},
        {
            "pre_tokenizer": pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(True),
                    pre_tokenizers.Split(Regex(r"\s+"), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        },
    ],
    ids=str,
)
def test_marks_are_those_of_the_library_s_offsets(tokenizer, parts):
    """For every place of a turn in the text, also within characters of several tokens."""
    pieces = TextPieces(changed(tokenizer, **parts), special_tokens(tokenizer))
    ids, ends = pieces.encode_bytes(TEXT)
    # A pipeline whose offsets are not trimmed.
    whole = changed(tokenizer, **{**parts, "post_processor": tokenizer.backend_tokenizer.post_processor})
    encoded = whole(TEXT, add_special_tokens=False, return_offsets_mapping=True)
    assert ids == encoded["input_ids"]
    controls = whole.convert_tokens_to_ids(special_tokens(whole))
    oracle = places_of(ids, encoded["offset_mapping"], TEXT, np.isin(ids, controls))
    assert isinstance(oracle, TokenizedText)
    found = BytePlaces(ids=ids, ends=ends, text=TEXT)
    for start in range(len(TEXT)):
        for text_end in range(start, len(TEXT) + 1, 3):
            for end in {text_end, min(text_end + 2, len(TEXT)), len(TEXT)}:
                masks = np.zeros((2, len(ids)), np.uint8)
                oracle.mark(masks[0], start, text_end, end)
                found.mark(masks[1], start, text_end, end)
                assert masks[0].tolist() == masks[1].tolist(), (start, text_end, end)


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": normalizers.NFKC()},
        {"normalizer": normalizers.Lowercase()},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.Whitespace()},
        {"pre_tokenizer": pre_tokenizers.Metaspace()},
    ],
    ids=str,
)
def test_a_pipeline_that_changes_texts_has_no_lengths(tokenizer, parts):
    assert byte_lengths(tokenizer) is not None
    assert byte_lengths(changed(tokenizer, **parts)) is None


def test_a_token_that_takes_the_space_beside_it_has_no_lengths(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens([AddedToken("<stop>", rstrip=True)])
    assert byte_lengths(other) is None


def test_a_text_of_which_the_pipeline_drops_something_has_no_places(tokenizer):
    cut = pre_tokenizers.Split(Regex("x"), "removed")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = TextPieces(changed(tokenizer, pre_tokenizer=pre_tokenizers.Sequence([cut, level])), [])
    assert pieces.encode_bytes("a x b") is None
    assert pieces.encode_bytes("a b") is not None


def test_a_text_that_would_be_composed_has_no_places(tokenizer):
    pieces = TextPieces(changed(tokenizer, normalizer=normalizers.NFC()), [])
    assert not is_normal("e\u0301")
    assert pieces.encode_bytes("e\u0301") is None
    assert pieces.encode_bytes("\u00e9") is not None
    # Without a normaliser nothing is composed.
    assert TextPieces(tokenizer, []).encode_bytes("e\u0301") is not None


def test_a_token_that_is_added_later_has_no_length(tokenizer):
    other = copy.deepcopy(tokenizer)
    pieces = TextPieces(other, [])
    other.add_tokens(["<later>", "<even_later>"])
    assert pieces.encode_bytes("a <even_later>") is None
