"""Rendering with a chat template: its input, its exceptions, and its {% generation %} blocks."""

from __future__ import annotations

import copy

import pytest

from minimind.data.sources import RowError
from minimind.data.template import ChatTemplate, TemplateInput
from minimind.errors import DataError
from tests.conftest import conversation


def template_of(tokenizer, source: str) -> ChatTemplate:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = source
    return ChatTemplate(changed)


def test_tools_and_arguments_reach_the_template(tokenizer):
    template = template_of(tokenizer, "{{ tools[0].name }} {{ mood }} {{ messages[0].content }}")
    given = TemplateInput(tools=[{"name": "clock"}], arguments={"mood": "calm"})
    assert template.render(conversation("Hi", "Hello!"), given) == "clock calm Hi"


def test_the_generation_prompt_cannot_be_changed_by_an_argument(tokenizer):
    template = template_of(tokenizer, "{{ 'answer:' if add_generation_prompt }}")
    given = TemplateInput(arguments={"add_generation_prompt": True})
    assert template.render(conversation("Hi", "Hello!"), given) == ""
    assert template.render(conversation("Hi", "Hello!"), given, generation_prompt=True) == "answer:"


@pytest.mark.parametrize("source", ["{{ raise_exception('no Hi') }}", "{{ messages[0].nothing.more }}", "{{ 1 / 0 }}"])
def test_any_exception_of_a_template_is_an_error_of_the_row(tokenizer, source):
    with pytest.raises(RowError, match="the chat template rejects the row: "):
        template_of(tokenizer, source).render(conversation("Hi", "Hello!"))
    with pytest.raises(RowError, match="the chat template rejects the row: "):
        template_of(tokenizer, source).render_generation(conversation("Hi", "Hello!"))


def test_generation_blocks_give_the_places_of_their_texts(tokenizer):
    template = template_of(
        tokenizer,
        "{% for m in messages %}{{ m.role[0] + ':' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '.' }}{% endgeneration %}{% else %}{{ m.content }}{% endif %};{% endfor %}",
    )
    assert template.marks_generation()
    text, spans = template.render_generation(conversation("Hi", "Hello", "Q", "Yes"))
    assert text == "u:Hi;a:Hello.;u:Q;a:Yes.;"
    assert [text[start:end] for start, end in spans] == ["Hello.", "Yes."]
    assert not ChatTemplate(tokenizer).marks_generation()


def test_missing_template_is_an_error_that_names_the_tokenizer_and_the_remedy(tokenizer):
    with pytest.raises(DataError, match=r"demo/tokenizer: the tokenizer has no chat template; .*--chat_template"):
        template_of(tokenizer, "")
