"""What a model sees of a conversation."""

from __future__ import annotations

import pytest

from minimind.chat.conversation import Conversation, thinking_options
from minimind.errors import ConfigError, DataError


def rendered(tokenizer, *texts, system=None, **options):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    start = [{"role": "system", "content": system}] if system else []
    text = tokenizer.apply_chat_template([*start, *messages], tokenize=False, add_generation_prompt=True, **options)
    return tokenizer(text, add_special_tokens=False).input_ids


def test_a_prompt_has_the_system_message_and_all_turns(tokenizer):
    talk = Conversation(tokenizer, 1000, system="Be brief.")
    assert talk.prompt("Hi") == rendered(tokenizer, "Hi", system="Be brief.")
    talk.add("Hi", "Hello")
    assert talk.prompt("Bye") == rendered(tokenizer, "Hi", "Hello", "Bye", system="Be brief.")
    talk.clear()
    assert talk.prompt("Bye") == rendered(tokenizer, "Bye", system="Be brief.")


def test_the_oldest_turns_are_forgotten_when_they_do_not_fit(tokenizer):
    said = []
    room = len(rendered(tokenizer, "two", "2", "three"))
    talk = Conversation(tokenizer, room, say=said.append)
    talk.add("one", "1")
    talk.add("two", "2")
    assert talk.prompt("three") == rendered(tokenizer, "two", "2", "three")
    assert len(said) == 1
    assert "1 of the oldest turns" in said[0]
    talk.prompt("three")
    assert len(said) == 1  # forgotten once
    with pytest.raises(DataError, match=f"and the model has room for {room}"):
        talk.prompt("horses " * 100)


def test_raw_text_is_continued_without_history(tokenizer):
    talk = Conversation(tokenizer, 100, raw=True)
    talk.add("a", "b")
    assert talk.prompt("Horses eat") == tokenizer("<|im_start|>Horses eat", add_special_tokens=False).input_ids


def test_a_tokenizer_without_a_template_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ConfigError, match=r"no chat template; .* --raw 1"):
        Conversation(tokenizer, 100)
    Conversation(tokenizer, 100, raw=True)


def test_a_template_that_fails_is_an_error(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system here') }}")
    with pytest.raises(DataError, match=r"cannot render the conversation .*no system here"):
        Conversation(tokenizer, 100).prompt("Hi")


@pytest.mark.parametrize("generation", [2, 3])
def test_thinking_is_turned_on_and_off_for_minimind_s_tokenizers(generation, shared):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / f"tokenizers/minimind{generation}")
    empty, texts = "<think>\n\n</think>", []
    for thinking in (True, False):
        options = thinking_options(tokenizer.chat_template, thinking)
        texts.append(tokenizer.decode(Conversation(tokenizer, 1000, options=options).prompt("Hi")))
    assert (empty in texts[0], empty in texts[1]) == (False, True)


def test_a_template_without_thinking_is_said(tokenizer):
    with pytest.raises(ConfigError, match="knows no thinking"):
        thinking_options(tokenizer.chat_template, True)
