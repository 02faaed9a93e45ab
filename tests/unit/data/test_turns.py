"""Places of assistant turns in rendered conversations, and rows whose turns cannot be located."""

from __future__ import annotations

import copy

import pytest

from minimind.data.sources import RowError
from minimind.data.template import PLAIN, ChatTemplate
from minimind.data.turn_markers import find_markers
from minimind.data.turns import find_turns
from tests.conftest import conversation

HEADER, END = "<|im_start|>assistant\n", "<|im_end|>\n"
WRITE = "{{ '<|im_start|>' + m.role + '\n' + %s + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def chatml(content: str = "m.content") -> str:
    """A template in the style of ChatML that writes an expression for each message."""
    return "{% for m in messages %}" + WRITE % content + "{% endfor %}" + PROMPT


def turns(tokenizer, source: str, messages: list) -> list[str]:
    """The texts of the turns, with their ends behind a bar."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = source
    template = ChatTemplate(changed)
    markers = None if template.marks_generation() else find_markers(template, PLAIN)
    text, found = find_turns(template, markers, messages, PLAIN)
    return [f"{text[turn.start : turn.text_end]}|{text[turn.text_end : turn.end]}" for turn in found]


@pytest.mark.parametrize(
    ("content", "answers", "expected"),
    [
        ("m.content", ["\n\nHello!\n", "Yes"], ["\n\nHello!\n", "Yes"]),
        ("m.content | trim", ["\n\nHello!\n", " Yes "], ["Hello!", "Yes"]),
        ("m.content.split('</think>')[-1]", ["a</think>b", "c"], ["b", "c"]),
        ("(m.content | upper if m.content | length == 1 else m.content)", ["a", "b"], ["A", "B"]),
        ("m.content", ["same", "same"], ["same", "same"]),
        ("m.content", [f"x{END}{HEADER}y", "z"], [f"x{END}{HEADER}y", "z"]),
        ("m.content", ["", ""], ["", ""]),
        ("m.content", ["Placeholder0q", "Placeholder"], ["Placeholder0q", "Placeholder"]),
    ],
    ids=["as it is", "trimmed", "split", "upper case", "equal", "markers inside", "empty", "words of the search"],
)
def test_answers_are_found_however_they_are_written(tokenizer, content, answers, expected):
    found = turns(tokenizer, chatml(content), conversation("Hi", answers[0], f"{HEADER}Hi{END}", answers[1]))
    assert found == [f"{text}|{END}" for text in expected]


def test_a_reasoning_block_in_front_belongs_to_the_turn(tokenizer):
    source = chatml("('<think></think>' if loop.last else '') + m.content")
    assert turns(tokenizer, source, conversation("a", "b", "c", "d")) == [f"b|{END}", f"<think></think>d|{END}"]


def test_a_template_may_rewrite_earlier_turns(tokenizer):
    source = chatml("(m.content if loop.last else m.content.split('!')[0])")
    assert turns(tokenizer, source, conversation("a", "b!c", "d", "e!f")) == [f"b|{END}", f"e!f|{END}"]


def test_reasoning_and_tool_calls_belong_to_the_turn(tokenizer):
    source = chatml("(m.reasoning | default('')) + (m.content or '') + (m.tool_calls[0].name if m.tool_calls else '')")
    messages = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "reasoning": "Ask. ", "tool_calls": [{"name": "clock"}]},
        {"role": "tool", "content": "12"},
        {"role": "assistant", "content": "Twelve."},
    ]
    assert turns(tokenizer, source, messages) == [f"Ask. clock|{END}", f"Twelve.|{END}"]


def test_a_template_that_needs_the_call_before_a_result(tokenizer):
    called = "messages[loop.index0 - 1].tool_calls"
    needs = "{% if m.role == 'tool' and not " + called + " %}{{ raise_exception('no call') }}{% endif %}"
    source = "{% for m in messages %}" + needs + WRITE % "(m.content or m.tool_calls[0].name)" + "{% endfor %}" + PROMPT
    messages = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]},
        {"role": "tool", "content": "12"},
        {"role": "assistant", "content": "Twelve."},
    ]
    # The end is part of what the conversation up to the turn adds.
    assert turns(tokenizer, source, messages) == [f"clock{END}|", f"Twelve.|{END}"]


def test_tool_calls_that_a_template_leaves_out_are_refused(tokenizer):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "x", "tool_calls": [{"name": "clock"}]},
    ]
    with pytest.raises(RowError, match="does not write the tool calls of message 1"):
        turns(tokenizer, chatml(), messages)


def test_a_turn_that_a_template_leaves_out_is_named(tokenizer):
    source = (
        "{% for m in messages %}{% if loop.index0 != 3 or messages | length == 4 %}"
        + WRITE % "m.content"
        + ("{% endif %}{% endfor %}" + PROMPT)
    )
    with pytest.raises(RowError, match="3 assistant turns, 2 found in the rendering of the chat template"):
        turns(tokenizer, source, conversation("a", "b", "c", "d", "e", "f"))


def test_generation_blocks_are_the_turns(tokenizer):
    block = "{% generation %}{{ m.content + '.' }}{% endgeneration %}"
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        + block
        + "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert turns(tokenizer, source, conversation("a", "b", "c", "d")) == ["b.|", "d.|"]
    once = source.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    with pytest.raises(RowError, match="2 assistant turns, 1 found"):
        turns(tokenizer, once, conversation("a", "b", "c", "d"))


def test_a_conversation_that_ends_with_a_question(tokenizer):
    assert turns(tokenizer, chatml(), conversation("a", "b", "c")) == [f"b|{END}"]
