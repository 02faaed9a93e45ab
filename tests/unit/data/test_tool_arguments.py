"""Arguments of tool calls as objects or as JSON texts, whichever a template takes."""

from __future__ import annotations

import copy

import pytest

from minimind.data.template import ChatTemplate, TemplateInput
from minimind.data.tool_arguments import fit_arguments

USER = {"role": "user", "content": "Weather?"}
OBJECT, TEXT = {"city": "Zürich", "days": [1, 2]}, '{"city": "Zürich", "days": [1, 2]}'


def call(arguments: object, **rest: object) -> dict:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}], **rest}


def flat_call(arguments: object) -> dict:
    return {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": arguments}]}


LOOP = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
END = "{% endfor %}{% endfor %}"
# Name -> how the template writes the arguments.
TEMPLATES = {
    "as JSON": LOOP + "{{ c.function.arguments | tojson }}" + END,
    "concatenated": LOOP + "{{ '```' + c.function.arguments }}" + END,
    "as Python writes them": LOOP + "{{ c.function.arguments }}" + END,
    "entry by entry": LOOP + "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }} {% endfor %}" + END,
}


@pytest.fixture
def fit(tokenizer):
    def run(source: str, messages: list[dict]) -> list[dict]:
        changed = copy.deepcopy(tokenizer)
        changed.chat_template = source
        return fit_arguments(messages, ChatTemplate(changed), TemplateInput())

    return run


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("as JSON", OBJECT),
        ("concatenated", TEXT),
        ("as Python writes them", TEXT),
        ("entry by entry", OBJECT),
    ],
)
def test_form_that_the_template_takes(fit, name, expected):
    messages = [USER, call(OBJECT)]
    before = copy.deepcopy(messages)
    assert fit(TEMPLATES[name], messages) == [USER, call(expected)]
    assert messages == before


def test_calls_without_a_function_object(fit):
    source = TEMPLATES["concatenated"].replace("c.function", "c")
    assert fit(source, [USER, flat_call(OBJECT)]) == [USER, flat_call(TEXT)]


def test_messages_without_arguments_are_not_rendered(fit):
    source = "{{ raise_exception('not rendered') }}"
    for messages in ([USER], [USER, call({})], [USER, call(None)], [{**USER, "tool_calls": "weather"}]):
        assert fit(source, messages) is messages


def test_other_messages_are_the_same_objects(fit):
    answer = {"role": "assistant", "content": "Rain."}
    fitted = fit(TEMPLATES["concatenated"], [USER, call(OBJECT), answer])
    assert fitted[1] == call(TEXT)
    assert fitted[0] is USER
    assert fitted[2] is answer


def test_a_template_that_takes_neither_gets_the_objects(fit):
    """It rejects the row when the row is rendered, and says why."""
    source = "{% set a = messages[1].tool_calls[0].function.arguments %}{{ raise_exception('got ' + a | tojson) }}"
    assert fit(source, [USER, call({"n": 1})]) == [USER, call({"n": 1})]


def test_a_result_that_repeats_the_arguments_as_python_writes_them_changes_nothing(fit):
    messages = [USER, call({"zone": "CET"}), {"role": "tool", "content": "asked with {'zone': 'CET'}"}]
    assert fit(TEMPLATES["as JSON"], messages) == messages
