"""Markers of assistant turns, found by what a template writes around known words."""

from __future__ import annotations

import copy

import pytest

from minimind.data.sources import RowError
from minimind.data.template import ChatTemplate, TemplateInput
from minimind.data.turn_markers import TurnMarkers, find_markers

LOOP, LAST = "{% for m in messages %}", "{% endfor %}"
PROMPT = "{% if add_generation_prompt %}"
# Name -> template, header, end of an earlier turn, end of the last turn.
TEMPLATES = {
    "ChatML": (
        LOOP + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}" + LAST + PROMPT + "{{ '<|im_start|>"
        "assistant\n' }}{% endif %}",
        ("<|im_start|>assistant\n", "<|im_end|>\n", "<|im_end|>\n"),
    ),
    "a reasoning block in the generation prompt": (
        LOOP + "{{ '<|im_start|>' + m.role + '\n' + ('<think>\n\n</think>\n\n' if m.role == 'assistant' and loop.last "
        "else '') + m.content + '<|im_end|>\n' }}"
        + LAST
        + PROMPT
        + "{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
        ("<|im_start|>assistant\n", "<|im_end|>\n", "<|im_end|>\n"),
    ),
    "markers that are no special tokens": (
        LOOP
        + "{{ '<turn>' + m.role + '\n' + m.content + '<end>\n' }}"
        + LAST
        + PROMPT
        + "<turn>assistant\n{% endif %}",
        ("<turn>assistant\n", "<end>\n", "<end>\n"),
    ),
    "an end of text after the last turn": (
        LOOP + "{{ '<' + m.role + '>\n' + m.content + '<end>\n' }}" + LAST + PROMPT + "<assistant>\n{% else %}<eos>"
        "{% endif %}",
        ("<assistant>\n", "<end>\n", "<end>\n"),
    ),
    "another end of the last turn": (
        LOOP
        + "{{ '<start>' + m.role + '<message>' + m.content + ('<return>' if loop.last else '<end>') }}"
        + LAST
        + PROMPT
        + "<start>assistant{% endif %}",
        ("<start>assistant", "<end>", "<return>"),
    ),
    "no end": (
        "<sop>" + LOOP + "{{ '<' + m.role + '>\n' + m.content }}" + LAST + PROMPT + "<assistant>{% endif %}",
        ("<assistant>", "", ""),
    ),
    "an end of the last turn only": (
        "<sop>"
        + LOOP
        + "{{ '<' + m.role + '>' + m.content + ('<eos>' if loop.last and m.role == 'assistant' else '') }}"
        + LAST
        + PROMPT
        + "<assistant>{% endif %}",
        ("<assistant>", "", "<eos>"),
    ),
    "no header": (
        LOOP + "{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + '</s>' }}" + LAST,
        ("", "</s>", "</s>"),
    ),
    "plain words": (
        LOOP
        + "{{ 'USER: ' + m.content + ' ' if m.role == 'user' else 'ASSISTANT: ' + m.content + '</s>' }}"
        + LAST
        + PROMPT
        + "ASSISTANT:{% endif %}",
        ("ASSISTANT:", "</s>", "</s>"),
    ),
    "an end between turns only": (
        LOOP
        + "{{ '<|im_start|>' + m.role + '\n' + m.content }}{% if not loop.last %}{{ '<|im_end|>\n' }}{% endif %}"
        + LAST
        + PROMPT
        + "{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>assistant\n", "<|im_end|>\n", ""),
    ),
    "a newline after each turn, an end of text after the last": (
        LOOP
        + "{{ '<' + m.role + '>\n' + m.content + '\n' }}"
        + LAST
        + PROMPT
        + "<assistant>\n{% else %}<eos>{% endif %}",
        ("<assistant>\n", "\n", "\n<eos>"),
    ),
    "a generation prompt with more white space than answers have": (
        LOOP + "{{ '### ' + m.role + ':\n' + m.content + '<end>' }}" + LAST + PROMPT + "### assistant:\n\n{% endif %}",
        ("### assistant:\n", "<end>", "<end>"),
    ),
    "a generation prompt that is not written before answers": (
        LOOP + "{{ '<' + m.role + '>' + m.content + '<end>' }}" + LAST + PROMPT + "<bot>{% endif %}",
        ("", "<end>", "<end>"),
    ),
}


def markers(tokenizer, source: str, **arguments) -> TurnMarkers:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = source
    return find_markers(ChatTemplate(changed), TemplateInput(arguments=arguments))


@pytest.mark.parametrize("name", TEMPLATES)
def test_markers_of_a_template(tokenizer, name):
    source, (header, end, last_end) = TEMPLATES[name]
    found = markers(tokenizer, source)
    assert (found.header, found.end, found.last_end) == (header, end, last_end)


def test_arguments_may_change_the_markers(tokenizer):
    source = LOOP + "{{ '<' + (name if m.role == 'assistant' else 'user') + '>' + m.content + '<end>' }}" + LAST
    source += PROMPT + "{{ '<' + name + '>' }}{% endif %}"
    assert markers(tokenizer, source, name="bot").header == "<bot>"
    assert markers(tokenizer, source, name="model").header == "<model>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[-1].content }}",
        LOOP + "{{ m.content + m.content }}" + LAST,
        "{% for m in messages[::-1] %}{{ m.content }}" + LAST,
    ],
    ids=["messages left out", "messages twice", "another order"],
)
def test_a_template_that_does_not_write_each_message_once_is_refused(tokenizer, source):
    with pytest.raises(RowError, match="does not write each message of a sample conversation once"):
        markers(tokenizer, source)


def test_a_prompt_after_every_conversation_is_refused(tokenizer):
    source = LOOP + "{{ '<' + m.role + '>' + m.content + '<end>' }}" + LAST + "<assistant>"
    with pytest.raises(RowError, match="writes a generation prompt after every conversation"):
        markers(tokenizer, source)


def test_the_rest_of_the_prompt_and_the_blocks_before_answers_are_known(tokenizer):
    found = markers(tokenizer, TEMPLATES["a reasoning block in the generation prompt"][0])
    assert found.prompt_rest == "<think>\n"
    assert found.blocks == {"", "<think>\n\n</think>\n\n"}
