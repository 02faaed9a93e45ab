"""Tokens and masks of conversations: MiniMind's rule, the turns of a template, and that both agree on plain rows."""

from __future__ import annotations

import copy

import pytest
from transformers import AutoTokenizer

from minimind.data.encoder import EMPTY_THINK, ConversationEncoder, EncodingOptions, MiniMindEncoder, TurnEncoder
from minimind.errors import DataError
from tests.conftest import conversation

PLAIN = EncodingOptions()


def with_template(tokenizer, template: str, *special: str):
    """A copy of the tokenizer with another template, and tokens for the template's markers."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    if special:
        changed.add_tokens(list(special), special_tokens=True)
    return changed


def counted(encoder: ConversationEncoder, messages: list) -> list[str]:
    """The decoded runs of masked tokens."""
    row = encoder.encode(messages, row_number=1)
    runs: list[list[int]] = []
    for index, (token, counts) in enumerate(zip(row.tokens, row.mask, strict=True)):
        if counts:
            if index == 0 or not row.mask[index - 1]:
                runs.append([])
            runs[-1].append(token)
    return [encoder.tokenizer.decode(run) for run in runs]


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


def test_missing_template_is_an_error_that_names_the_tokenizer(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(DataError, match=r"demo/tokenizer: the tokenizer has no chat template; use a tokenizer that"):
        TurnEncoder(bare, PLAIN)


def test_exception_of_a_template_is_reported(tokenizer):
    broken = with_template(tokenizer, "{{ raise_exception('no assistants here') }}")
    for kind in (TurnEncoder, MiniMindEncoder):
        with pytest.raises(DataError, match=r"demo/tokenizer: the chat template rejects the row: no assistants here"):
            kind(broken, PLAIN)


THINKING = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + ('<think>\n\n</think>\n\n' if m.role == " + (
    "'assistant' else '') + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def keeps_think(tokenizer, ratio: float, rows: range, answer: str = "Hello!") -> list[bool]:
    encoder = TurnEncoder(with_template(tokenizer, THINKING), EncodingOptions(empty_think_ratio=ratio))
    texts = [tokenizer.decode(encoder.encode(conversation("Hi", answer), row).tokens) for row in rows]
    return [EMPTY_THINK in text for text in texts]


def test_empty_think_is_kept_with_ratio_1_and_removed_with_ratio_0(tokenizer):
    assert all(keeps_think(tokenizer, 1.0, range(50)))
    assert not any(keeps_think(tokenizer, 0.0, range(50)))


def test_empty_think_depends_on_the_row_number_only(tokenizer):
    """Deterministic, and the same for both halves of a pair."""
    first = keeps_think(tokenizer, 0.3, range(400))
    assert keeps_think(tokenizer, 0.3, range(400)) == first
    assert keeps_think(tokenizer, 0.3, range(400), answer="Go away.") == first


def test_share_of_kept_empty_thinks_is_the_ratio(tokenizer):
    """Binomial, n = 400, p = 0.3: mean 120, standard deviation 9.2; the bounds are four deviations away."""
    kept = sum(keeps_think(tokenizer, 0.3, range(400)))
    assert 83 <= kept <= 157


def test_larger_ratio_keeps_all_rows_of_a_smaller_one(tokenizer):
    few, more = keeps_think(tokenizer, 0.2, range(100)), keeps_think(tokenizer, 0.6, range(100))
    assert sum(few) < sum(more)
    assert all(m for f, m in zip(few, more, strict=True) if f)


def test_removing_an_empty_think_keeps_the_rest_of_the_text(tokenizer):
    encoder = TurnEncoder(with_template(tokenizer, THINKING), EncodingOptions(empty_think_ratio=0.0))
    assert counted(encoder, conversation("Hi", "Hello!")) == ["Hello!<|im_end|>\n"]


def test_tokenizer_that_adds_bos_adds_no_second_one(tokenizer):
    """Llama's tokenizers add <bos>, which the template has already written."""
    from tokenizers.processors import TemplateProcessing

    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    assert changed("Hi").input_ids[0] == 1
    tokens = TurnEncoder(changed, PLAIN).encode(conversation("Hi", "Hello!"), 1).tokens
    assert tokens == TurnEncoder(tokenizer, PLAIN).encode(conversation("Hi", "Hello!"), 1).tokens
