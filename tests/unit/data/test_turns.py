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
    markers = find_markers(template, PLAIN)
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
    assert turns(tokenizer, source, messages) == [f"clock|{END}", f"Twelve.|{END}"]


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


def test_a_header_inside_a_generation_block_does_not_count(tokenizer):
    block = "{% generation %}" + WRITE % "m.content" + "{% endgeneration %}"
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        + block
        + "{% else %}"
        + WRITE % "m.content"
        + ("{% endif %}{% endfor %}" + PROMPT)
    )
    assert turns(tokenizer, source, conversation("a", "b", "c", "d")) == [f"b{END}|", f"d{END}|"]


def test_generation_blocks_at_the_wrong_places_are_refused(tokenizer):
    """transformers counts characters from the start of the macro."""
    block = "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}"
    write = (
        "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        + block
        + ("{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}")
    )
    source = "{% macro one(m) %}" + write + "{% endmacro %}{% for m in messages %}{{ one(m) }}{% endfor %}"
    with pytest.raises(RowError, match="blocks of the chat template are not at the assistant's turns"):
        turns(tokenizer, source, conversation("a", "b", "c", "d"))


def test_generation_in_a_comment_marks_nothing(tokenizer):
    assert turns(tokenizer, "{# {% generation %} #}" + chatml(), conversation("a", "b")) == [f"b|{END}"]


def test_text_beside_a_tool_call_that_a_template_leaves_out_is_refused(tokenizer):
    source = chatml("(m.tool_calls[0].name if m.tool_calls else m.content)")
    call = {"role": "assistant", "content": "Let me look.", "tool_calls": [{"name": "clock"}]}
    with pytest.raises(RowError, match="does not write the text of message 1 beside its tool calls"):
        turns(tokenizer, source, [{"role": "user", "content": "a"}, call])


def test_results_that_are_written_only_behind_calls_are_not_taken_for_the_turn(tokenizer):
    """A placeholder has no calls, so the result disappears from the rendering that it is compared with."""
    source = (
        "{% for m in messages %}{% if m.role != 'tool' or messages[loop.index0 - 1].tool_calls %}"
        + WRITE % "(m.content or m.tool_calls[0].name)"
        + "{% endif %}{% endfor %}"
    )
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]},
        {"role": "tool", "content": "result"},
        {"role": "assistant", "content": "b"},
    ]
    assert turns(tokenizer, source + PROMPT, messages) == [f"clock|{END}", f"b|{END}"]
    with pytest.raises(RowError, match="assistant turn 1 of 2 cannot be located"):  # without a header to begin at
        turns(tokenizer, source, messages)


def test_a_header_is_what_the_template_writes_not_a_word_of_a_message(tokenizer):
    """The template writes no header after a system message, and the system message contains one."""
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ASSISTANT: ' }}{% elif "
        "m.role == 'assistant' %}{{ m.content + '</s>' }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    system = {"role": "system", "content": "Say ASSISTANT: hi. "}
    messages = [system, {"role": "assistant", "content": "b"}, *conversation("c", "d")]
    assert turns(tokenizer, source, messages) == ["b|</s>", "d|</s>"]


def test_many_words_like_the_placeholder_take_no_time(tokenizer):
    text = " ".join(f"Placeholder{number}q" for number in range(300))
    assert turns(tokenizer, chatml(), conversation(text, text)) == [f"{text}|{END}"]
