"""Control tokens come from the template alone; every character belongs to a token."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from minimind.data.control_tokens import ControlTokens, special_tokens
from minimind.data.sources import RowError
from minimind.errors import DataError

START, END = "<|im_start|>", "<|im_end|>"


@pytest.fixture(scope="module")
def controls(tokenizer) -> ControlTokens:
    return ControlTokens(tokenizer)


@pytest.fixture(scope="module")
def unigram() -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece makes them: scores instead of merges, and a mark for a space before the text."""
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz_|/"]
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), *letters, ("<", -3.0), (">", -3.0)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_messages_without_special_tokens_are_not_changed(controls):
    messages = [{"role": "user", "content": "a < b"}]
    assert controls.shield(messages) == (messages, False)


def test_special_tokens_of_messages_become_text(controls, tokenizer):
    """The template writes the first and the last token; the message contains the other two."""
    start, end = tokenizer.convert_tokens_to_ids([START, END])
    messages, shielded = controls.shield([{"role": "user", "content": f"x{START}y{END}"}])
    assert shielded
    text = f"{START}user\n{messages[0]['content']}{END}"
    tokens = controls.tokenize(text, shielded)
    assert [token for token in tokens.ids if token in (start, end)] == [start, end]
    assert (tokens.ids[0], tokens.ids[-1]) == (start, end)
    assert tokenizer.decode(tokens.ids) == f"{START}user\nx{START}y{END}{END}"


def test_a_unigram_tokenizer_is_shielded_too(unigram):
    controls = ControlTokens(unigram)
    messages, shielded = controls.shield([{"role": "user", "content": "a</s>b"}])
    tokens = controls.tokenize(f"<s>{messages[0]['content']}</s>", shielded)
    special = unigram.convert_tokens_to_ids(["<s>", "</s>"])
    assert [token for token in tokens.ids if token in special] == special
    assert unigram.decode(tokens.ids[1:-1]) == "a</s>b"


def test_shielded_text_without_special_tokens_has_the_same_tokens(controls, tokenizer):
    """The renamed copy of the tokenizer differs in nothing but the texts of special tokens."""
    text = f"{START}user\n你好，the sea is  blue.\n<think>\n{END}\n"
    one, other = controls.tokenize(text, shielded=False), controls.tokenize(text, shielded=True)
    assert one.ids == other.ids
    assert one.starts.tolist() == other.starts.tolist()
    assert one.ends.tolist() == other.ends.tolist()


@pytest.mark.parametrize("key", ["content", "reasoning_content"])
def test_every_text_of_a_message_is_shielded_except_roles(controls, key):
    nested = {"function": {"name": "f", "arguments": {"text": [END]}}}
    message = {"role": START, key: END, "tool_calls": [nested]}
    (changed,), shielded = controls.shield([message])
    assert shielded
    assert changed["role"] == START
    assert END not in changed[key]
    assert END not in changed["tool_calls"][0]["function"]["arguments"]["text"][0]
    assert message[key] == END  # the row itself is not changed


def test_private_characters_beside_special_tokens_are_refused(controls):
    with pytest.raises(RowError, match="private characters"):
        controls.shield([{"role": "user", "content": f"{END}\U000f0000"}])
    assert not controls.shield([{"role": "user", "content": "\U000f0000"}])[1]


def test_messages_that_are_nested_too_deeply_are_refused(controls):
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RowError, match="nested too deeply"):
        controls.shield([{"role": "user", "content": "x", "extra": deep}])


def test_places_cover_the_text_where_a_tokenizer_trims_spaces(tokenizer):
    trimming = copy.deepcopy(tokenizer)
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    text = f"{START}user\n a  b \n\n{END}\n"
    tokens = ControlTokens(trimming).tokenize(text, shielded=False)
    assert tokens.starts[0] == 0
    assert tokens.ends[-1] == len(text)
    assert (tokens.starts[1:] <= tokens.ends[:-1]).all()  # no gap
    assert tokens.ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_character_of_several_tokens_belongs_to_each(controls):
    tokens = controls.tokenize("𓀀", shielded=False)
    assert len(tokens.ids) > 1
    assert set(zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True)) == {(0, 1)}


def test_longer_special_tokens_come_first(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["<|im_end|>more"], special_tokens=True)
    found = special_tokens(changed)
    assert found.index("<|im_end|>more") < found.index(END)


def test_a_tokenizer_without_places_is_refused():
    class Slow:
        is_fast, name_or_path = False, "folder"

    with pytest.raises(DataError, match=r"folder: .*use a tokenizer with a tokenizer\.json, or --mask minimind"):
        ControlTokens(Slow())


def test_text_of_no_token(controls):
    tokens = controls.tokenize("", shielded=False)
    assert tokens.ids == []
    assert tokens.starts.dtype == np.int64
