"""Control tokens come from the template alone; every character belongs to a token."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minimind.data.control_tokens import ControlTokens, special_tokens
from minimind.data.sources import RowError
from minimind.data.template import TemplateInput
from minimind.errors import DataError

START, END = "<|im_start|>", "<|im_end|>"


def shield(controls, messages, tools=None, **own):
    """The messages of a shielded conversation, and the number of replaced tokens."""
    shielded = controls.shield(messages, TemplateInput(tools=tools, arguments=own), own)
    return shielded.messages, shielded.number


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
    assert shield(controls, messages) == (messages, 0)


def test_special_tokens_of_messages_become_text(controls, tokenizer):
    """The template writes the first and the last token; the message contains the other two."""
    start, end = tokenizer.convert_tokens_to_ids([START, END])
    messages, shielded = shield(controls, [{"role": "user", "content": f"x{START}y{END}"}])
    assert shielded
    text = f"{START}user\n{messages[0]['content']}{END}"
    tokens = controls.tokenize(text, shielded=shielded > 0)
    assert [token for token in tokens.ids if token in (start, end)] == [start, end]
    assert (tokens.ids[0], tokens.ids[-1]) == (start, end)
    assert tokenizer.decode(tokens.ids) == f"{START}user\nx{START}y{END}{END}"


def test_a_unigram_tokenizer_is_shielded_too(unigram):
    controls = ControlTokens(unigram)
    messages, shielded = shield(controls, [{"role": "user", "content": "a</s>b"}])
    tokens = controls.tokenize(f"<s>{messages[0]['content']}</s>", shielded=shielded > 0)
    special = unigram.convert_tokens_to_ids(["<s>", "</s>"])
    assert [token for token in tokens.ids if token in special] == special
    assert unigram.decode(tokens.ids[1:-1]) == "a</s>b"


def test_shielded_text_without_special_tokens_has_the_same_tokens(controls, tokenizer):
    """The renamed copy of the tokenizer differs in nothing but the texts of special tokens."""
    text = f"{START}user\n你好，the sea is  blue.\n<think>\n{END}\n"
    one, other = controls.tokenize(text, shielded=False), controls.tokenize(text, shielded=True)
    assert one.ids == other.ids
    for start in range(len(text)):
        masks = np.zeros((2, len(one.ids)), np.uint8)
        for mask, found in zip(masks, (one, other), strict=True):
            found.mark(mask, start, min(start + 4, len(text)), min(start + 7, len(text)))
        assert masks[0].tolist() == masks[1].tolist()


@pytest.mark.parametrize("key", ["content", "reasoning_content"])
def test_every_text_of_a_message_is_shielded_except_roles(controls, key):
    nested = {"function": {"name": "f", "arguments": {"text": [END]}}}
    message = {"role": START, key: END, "tool_calls": [nested]}
    (changed,), shielded = shield(controls, [message])
    assert shielded
    assert changed["role"] == START
    assert END not in changed[key]
    assert END not in changed["tool_calls"][0]["function"]["arguments"]["text"][0]
    assert message[key] == END  # the row itself is not changed


def test_private_characters_beside_special_tokens_are_refused(controls):
    with pytest.raises(RowError, match="private characters"):
        shield(controls, [{"role": "user", "content": f"{END}\U000f0000"}])
    assert not shield(controls, [{"role": "user", "content": "\U000f0000"}])[1]


def test_messages_that_are_nested_too_deeply_are_refused(controls):
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RowError, match="nested too deeply"):
        shield(controls, [{"role": "user", "content": "x", "extra": deep}])


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


@pytest.mark.parametrize("where", ["a key", "a key named role", "an argument of the row", "a tool"])
def test_control_tokens_are_shielded_wherever_a_row_has_them(controls, where):
    message = {"role": "user", "content": "x", "extra": {END: 1} if where == "a key" else {"role": END}}
    if where not in ("a key", "a key named role"):
        message["extra"] = None
    tools = [{"name": END}] if where == "a tool" else None
    own = {"mood": END} if where == "an argument of the row" else {}
    shielded = controls.shield([message], TemplateInput(tools=tools, arguments={**own, "run": END}), own)
    assert shielded.number == 1
    assert END not in str(shielded.messages) + str(shielded.given.tools) + str(shielded.given.arguments.get("mood"))
    assert shielded.given.arguments["run"] == END  # the user's own --template_kwargs may name control tokens


def test_a_template_that_escapes_a_shielded_token_is_refused(controls):
    shielded = controls.shield([{"role": "user", "content": END}], TemplateInput(), {})
    controls.check_written(shielded.messages[0]["content"], shielded)
    for text in (
        repr(shielded.messages[0]["content"].encode("unicode_escape")),
        "",
        shielded.messages[0]["content"] * 2,
    ):
        with pytest.raises(RowError, match="does not write a special token inside a message as the text"):
            controls.check_written(text, shielded)


def test_parts_of_control_tokens_are_found(controls):
    """A template that deletes the word between the parts would make a control token."""
    messages, given = controls.neutral([{"role": "user", "content": "a<|im_WORDend|>b"}], TemplateInput())
    assert messages == [{"role": "user", "content": "a...m_WORDen...b"}]
    assert given == TemplateInput(arguments={})
    assert controls.neutral([{"role": "user", "content": "a < b | c > d"}], TemplateInput()) is None


def test_reasoning_tags_are_not_shielded_even_if_they_are_special(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["<think>"], special_tokens=True)
    assert shield(ControlTokens(changed), [{"role": "assistant", "content": "<think>x"}])[1] == 0


def test_added_tokens_in_markers_are_shielded_even_if_they_are_not_special(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["<turn>"])
    messages = [{"role": "user", "content": "<turn>"}]
    assert shield(ControlTokens(changed), messages)[1] == 0
    assert shield(ControlTokens(changed, ["<turn>assistant"]), messages)[1] == 1


def test_text_that_is_normalised_to_a_control_token_is_refused(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.normalizer = normalizers.NFKC()
    changed.add_tokens([AddedToken("<|turn|>", special=True, normalized=True)], special_tokens=True)
    controls = ControlTokens(changed)
    with pytest.raises(RowError, match="normalises to a special token"):
        shield(controls, [{"role": "user", "content": "＜|turn|＞"}])
    assert shield(controls, [{"role": "user", "content": "ｘ"}])[1] == 0


def test_a_special_token_that_is_only_named_is_text():
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    named = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    named.special_tokens_map["bos_token"] = "<b>"
    assert ControlTokens(named).tokenize("a", shielded=False).ids == [0]


def test_a_character_that_the_tokenizer_would_leave_out_is_refused():
    """A byte-pair encoding without a token for unknown text drops it, and its offsets are wrong from there on."""
    backend = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    controls = ControlTokens(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert controls.tokenize("abba", shielded=False).ids == [0, 1, 1, 0]
    with pytest.raises(RowError, match="the tokenizer has no token for the character 'é'"):
        controls.tokenize("abéa", shielded=False)


def test_text_that_the_tokenizer_rejects_is_an_error_of_the_row(controls):
    with pytest.raises(RowError, match="the tokenizer rejects the text"):
        controls.tokenize("\ud800", shielded=False)


def test_a_control_token_that_is_also_a_merge_is_kept_apart():
    vocabulary = {letter: number for number, letter in enumerate("<>sx/")}
    merges = [("<", "s"), ("<s", ">")]
    backend = Tokenizer(models.BPE({**vocabulary, "<s": 5, "<s>": 6}, merges))
    backend.add_special_tokens(["<s>"])
    controls = ControlTokens(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>"))
    messages, number = shield(controls, [{"role": "user", "content": "x<s>x"}])
    ids = controls.tokenize(f"<s>{messages[0]['content']}", shielded=number > 0).ids
    assert ids == [6, vocabulary["x"], 5, vocabulary[">"], vocabulary["x"]]
