"""Texts in tokens: start and end around them, all of which count, and special tokens that they cannot forge."""

from __future__ import annotations

import copy

import pytest

from minimind.data.encoder import build_encoder
from minimind.data.encoding import TEXT, EncodingOptions
from minimind.data.text_encoder import TextEncoder
from minimind.errors import DataError


@pytest.fixture
def encoder(tokenizer):
    return build_encoder(tokenizer, EncodingOptions(mask=TEXT))


def test_a_text_is_between_start_and_end(encoder, tokenizer):
    text = "Es war einmal. 从前有一匹马。 <think> 7 + 5"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    row = encoder.encode_text(text)
    assert row.tokens == [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    assert row.mask == [1] * len(row.tokens)


def test_a_special_token_in_a_text_is_text(encoder, tokenizer):
    forged = encoder.encode_text(f"The end.{tokenizer.eos_token}Again.").tokens
    assert forged.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(forged[1:-1]) == f"The end.{tokenizer.eos_token}Again."


def test_no_chat_template_is_needed_and_an_end_token_is(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    bare.bos_token = None
    assert TextEncoder(bare, EncodingOptions(mask=TEXT)).encode_text("a").tokens[-1] == tokenizer.eos_token_id
    assert TextEncoder(bare, EncodingOptions(mask=TEXT)).start == []
    bare.eos_token = None
    with pytest.raises(DataError, match="has no end token"):
        TextEncoder(bare, EncodingOptions(mask=TEXT))


def test_the_key_names_start_and_end(encoder, tokenizer):
    assert encoder.key() == ["text", [tokenizer.bos_token_id], [tokenizer.eos_token_id]]
    assert encoder.words == frozenset()
