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


def test_messages_of_texts_are_rendered_as_the_tokenizer_does(tokenizer):
    source = (
        "{{ bos_token }}{{ tools is none }}{{ documents is none }}{{ messages | tojson }}{{ add_generation_prompt }}"
        "{% for m in messages %}{{ m.thinking }}{{ m.name is defined }}{% endfor %}"
    )
    template = template_of(tokenizer, source)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No.", "reasoning_content": "hm"}]
    for prompt in (False, True):
        expected = template.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert "hm" in expected
        assert template.render(tuple(messages), generation_prompt=prompt) == expected


def test_a_class_that_renders_in_its_own_way_is_asked(tokenizer):
    class Shouting(type(tokenizer)):
        def apply_chat_template(self, conversation, **options):
            return super().apply_chat_template(conversation, **options).upper()

    changed = copy.deepcopy(tokenizer)
    changed.__class__, changed.chat_template = Shouting, "{{ messages[0].content }}"
    assert ChatTemplate(changed).render(conversation("Hi", "Hello!")) == "HI"


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
