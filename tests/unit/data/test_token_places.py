"""Places of tokens in a text: no gaps, and control tokens stand for themselves alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from minimind.data.control_tokens import ControlTokens
from minimind.data.token_places import alphabet_of, pipeline_of, places_of, trims_spaces

START, END = "<|im_start|>", "<|im_end|>"


@pytest.mark.parametrize(
    ("offsets", "control", "expected"),
    [
        ([(0, 2), (2, 5)], [0, 0], [(0, 2), (2, 5)]),
        ([(0, 2), (3, 5)], [0, 0], [(0, 2), (2, 5)]),  # a gap belongs to the next token
        ([(0, 2), (3, 5)], [0, 1], [(0, 3), (3, 4)]),  # ... but not to a control token
        ([(1, 2), (2, 4)], [0, 0], [(0, 2), (2, 5)]),  # at both ends of the text
        ([(0, 1), (0, 1), (1, 5)], [0, 0, 0], [(0, 1), (0, 1), (1, 5)]),  # two tokens of one character
        ([(0, 2), (2, 5)], [0, 1], [(0, 3), (3, 4)]),  # a control token without the spaces beside it
    ],
)
def test_places_by_hand(offsets, control, expected):
    tokens = places_of(list(range(len(offsets))), offsets, "ab c ", np.array(control, bool))
    assert list(zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True)) == expected


def test_text_of_no_token():
    tokens = places_of([], [], "", np.array([], bool))
    assert tokens.ids == []
    assert tokens.starts.dtype == np.int64


def marked(tokens, start, end):
    """The mask of a turn whose text is from start to end."""
    mask = np.zeros(len(tokens.ids), np.uint8)
    tokens.mark(mask, start, end, end)
    return mask.tolist()


def test_trimmed_offsets_are_not_used(tokenizer):
    """The library's default trims spaces, and a token of spaces alone seems to lie behind them."""
    trimming = copy.deepcopy(tokenizer)
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert trims_spaces(trimming)
    text = f"{START}user\n a  b \n\n{END}\n"
    one, other = (ControlTokens(each).tokenize(text, shielded=False) for each in (trimming, tokenizer))
    assert one.ids == other.ids
    for start in range(len(text)):
        for end in range(start, len(text) + 1):
            assert marked(one, start, end) == marked(other, start, end)


def test_other_post_processors_do_not_trim(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    assert not trims_spaces(plain)
    plain.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert not trims_spaces(plain)


def test_a_character_of_several_tokens_belongs_to_each(tokenizer):
    tokens = ControlTokens(tokenizer).tokenize("𓀀", shielded=False)
    assert len(tokens.ids) > 1
    assert marked(tokens, 0, 1) == [1] * len(tokens.ids)
    assert marked(tokens, 1, 1) == [0] * len(tokens.ids)


def test_only_tokenizers_that_drop_characters_have_an_alphabet(tokenizer):
    assert alphabet_of(tokenizer) is None  # bytes
    dropping = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])))
    assert alphabet_of(dropping) == {"a", "b"}
    unknown = Tokenizer(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>"))
    unknown.pre_tokenizer = pre_tokenizers.Whitespace()
    assert alphabet_of(PreTrainedTokenizerFast(tokenizer_object=unknown)) is None


def test_one_copy_of_a_tokenizer_is_kept_until_the_tokenizer_changes(tokenizer):
    changed = copy.deepcopy(tokenizer)
    first = pipeline_of(changed, {END: "\U00100000"})
    assert pipeline_of(changed, {END: "\U00100000"}) is first
    assert first.token_to_id("\U00100000") == changed.convert_tokens_to_ids(END)
    changed.add_tokens(["<one_more>"])
    assert pipeline_of(changed, {END: "\U00100000"}) is not first
