"""What a template leaves out: messages, tools and calls are errors, columns and keys are named."""

from __future__ import annotations

import copy

import pytest

from minimind.data.left_out import check_rendered, not_used, words_of
from minimind.data.rows import PreferenceRow
from minimind.data.sources import RowError
from minimind.data.template import ChatTemplate, TemplateInput
from tests.conftest import conversation

QUESTION, ANSWER = conversation("Where is Rome?", "In Italy.")
LONG_QUESTION = {"role": "user", "content": "Where is Rome, and where is Paris?"}
BAD = {**ANSWER, "content": "Look."}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "where", "arguments": {"city": "Rome"}}}],
}
RESULT = {"role": "tool", "content": "Italy"}
TOOLS = [{"type": "function", "function": {"name": "where"}}]

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "?"}}, "required": ["city"]}

# Only users and assistants, and only their contents.
PLAIN = "{% for m in messages if m.role in ('user', 'assistant') %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
# A system message of "/short" is a switch.
SWITCH = "{% set s = messages[0].content if messages[0].role == 'system' else '' %}{{ '!' if s == '/short' }}" + PLAIN
# Tool results as JSON texts.
QUOTED = "{% for m in messages %}<{{ m.role }}>{{ m.content | tojson }}{% endfor %}"
STRICT = "{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}{% endif %}" + QUOTED


@pytest.fixture
def check(tokenizer):
    """Checks a row with a template of this source, or with the demo's."""

    changed = copy.deepcopy(tokenizer)

    def run(row: PreferenceRow, source: str | None = None) -> None:
        changed.chat_template = source or tokenizer.chat_template
        check_rendered(row, ChatTemplate(changed), TemplateInput(tools=row.tools, arguments=row.template_kwargs))

    return run


def row_of(*prompt: dict, tools: list | None = None) -> PreferenceRow:
    return PreferenceRow(chosen=[*prompt, ANSWER], rejected=[*prompt, BAD], tools=tools)


def system(content: str) -> dict:
    return {"role": "system", "content": content}


FULL = row_of(system("Be kind."), QUESTION, CALL, RESULT, tools=TOOLS)


def test_a_template_that_renders_everything(check):
    check(FULL)


def test_a_row_without_such_parts_is_not_rendered(check):
    check(row_of(QUESTION), "{{ raise_exception('not rendered') }}")


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (row_of(system("Be kind."), QUESTION), "a system message of 'chosen'"),
        (row_of(QUESTION, RESULT), "a tool message of 'chosen'"),
        (row_of(QUESTION, CALL), "the tool calls of 'chosen'"),
        (row_of(QUESTION, tools=TOOLS), "the column 'tools'"),
        (PreferenceRow(chosen=[QUESTION, ANSWER], rejected=[QUESTION, CALL]), "the tool calls of 'rejected'"),
        # The text is in the rendering, but in another part: a tool's, a short and a long system message's.
        (row_of(QUESTION, tools=[{"name": "Rome"}]), "the column 'tools'"),
        (row_of(system("assistant"), QUESTION), "a system message of 'chosen'"),
        (row_of(system(LONG_QUESTION["content"]), LONG_QUESTION), "a system message of 'chosen'"),
    ],
)
def test_a_part_that_is_left_out_is_an_error(check, row, part):
    with pytest.raises(RowError) as caught:
        check(row, PLAIN)
    assert str(caught.value) == (
        f"the chat template leaves out {part}; use a template that renders it (--chat_template), or remove it from the "
        "row"
    )


def test_a_message_that_is_written_in_another_way_is_rendered(check):
    check(row_of(QUESTION, {"role": "tool", "content": 'a "quoted" text\nof two lines'}), QUOTED)


def test_a_message_that_switches_something_is_used(check):
    check(row_of(system("/short"), QUESTION), SWITCH)
    with pytest.raises(RowError, match="leaves out a system message"):
        check(row_of(system("/long"), QUESTION), SWITCH)


def test_a_long_message_in_the_text_needs_no_second_rendering(tokenizer, monkeypatch):
    template, texts = ChatTemplate(tokenizer), []
    render = ChatTemplate.render
    monkeypatch.setattr(ChatTemplate, "render", lambda *given: texts.append(render(*given)) or texts[-1])
    check_rendered(row_of(system("Be kind to everyone who asks."), QUESTION), template, TemplateInput())
    assert len(texts) == 2


def test_an_empty_message_cannot_be_left_out(check):
    check(row_of(system(" "), QUESTION, {"role": "tool", "content": ""}), PLAIN)


def test_a_part_that_the_template_cannot_miss_is_used(check):
    check(row_of(system('"'), QUESTION), STRICT)


def test_what_nothing_reads_is_named():
    chosen = [QUESTION, {**ANSWER, "score": 1, "reasoning_content": "...", "tool_calls": [], "name": "A"}]
    row = PreferenceRow(
        chosen=chosen,
        rejected=[QUESTION, {**BAD, "score": 2, "weight": 0}],
        template_kwargs={"enable_thinking": False, "style": "x"},
        unused=("id", "source"),
    )
    assert list(not_used(row, frozenset({"reasoning_content", "enable_thinking", "id"}))) == [
        "column 'id'",
        "column 'source'",
        "'style' of 'chat_template_kwargs'",
        "'score' of messages",
        "'name' of messages",
        "'weight' of messages",
    ]


def test_words_of_one_and_of_several_templates(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "{{ messages[0].content }}"
    assert words_of(ChatTemplate(changed)) == {"messages", "0", "content"}
    changed.chat_template = {"default": "{{ bos_token }}", "tool_use": "{{ tools }}"}
    assert words_of(ChatTemplate(changed)) == {"bos_token", "tools"}


# Families whose templates do not mention tools. Those of other families write them.
WITHOUT_TOOLS = {
    *("cohere", "cohere2", "deepseekv3", "gemma", "gemma3", "llama3", "phi3", "phi3_5", "qwen2_5_vl"),
}


def test_tools_and_system_messages_under_the_templates_of_real_families(check, shared):
    paths = sorted((shared / "templates").glob("*.jinja"))
    assert len(paths) >= 25
    described = [{"type": "function", "function": {"name": "where", "description": "?", "parameters": PARAMETERS}}]
    reasons = {}
    for path in paths:
        rows = {
            "tools": row_of(QUESTION, tools=described),
            "short": row_of(system("Be kind."), QUESTION),
            "long": row_of(system("Be kind to everyone who asks."), QUESTION),
        }
        for name, row in rows.items():
            if (reason := reason_of(check, row, path.read_text(encoding="utf-8"))) is not None:
                reasons[path.stem, name] = reason
    no_system = "the chat template rejects the row: System role not supported"
    assert {key: reasons.pop(key, None) for key in (("gemma", "short"), ("gemma", "long"))} == {
        ("gemma", "short"): no_system,
        ("gemma", "long"): no_system,
    }
    assert set(reasons) == {(family, "tools") for family in WITHOUT_TOOLS}
    assert all("leaves out the column 'tools'" in reason for reason in reasons.values())


def reason_of(check, row: PreferenceRow, source: str) -> str | None:
    try:
        check(row, source)
    except RowError as error:
        return str(error)
    return None
