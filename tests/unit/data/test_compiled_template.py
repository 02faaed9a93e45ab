"""Programs of templates: the same text and the same refusals as transformers' own way."""

from __future__ import annotations

import pytest
from jinja2 import TemplateError
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from minimind.data import compiled_template
from minimind.data.compiled_template import DirectProgram, direct_program, takes
from tests.conftest import conversation

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = conversation("Hi {x}", "Hello!")


def slowly(source: str, messages: list, generation_prompt: bool = False) -> str:
    texts, _ = render_jinja_template(
        conversations=[messages], chat_template=source, add_generation_prompt=generation_prompt, **TOKENS
    )
    return texts[0]


def never() -> str:
    raise AssertionError("the program was not used")


def text_of(source: str, messages: list = MESSAGES) -> str:
    """A text of the program, which was compared before."""
    program = DirectProgram(source, TOKENS)
    program.text(messages, False, lambda: slowly(source, messages))
    return program.text(messages, False, never)


@pytest.mark.parametrize(
    "source",
    [
        "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ tools is none }}"
        "{{ documents is none }}{{ messages | tojson }}",
        "{% for m in messages %}{{ m.role }}{{ m['content'] }}{{ m.items() | list }}{{ m.missing }}{{ m.get('role') }}"
        "{{ loop.first }}{{ loop.index0 }}{{ loop.previtem }}{{ loop.none }}{% endfor %}",
        "{% set ns = namespace(a=1, b='x') %}{% set ns.a = 'y {}' %}{{ ns.a.format(2) }}{{ ns.b.upper() }}{{ ns.c }}",
        "{% set ns = namespace(f='{}'.format) %}{{ ns.f(3) }}{{ '{0[role]}'.format(messages[0]) }}",
        "{{ messages[0].content.split(' ')[0].strip().real }}{{ (1).real }}{{ messages.index(messages[1]) }}",
        "{{ messages | map(attribute='content') | join }}{{ messages[0].__class__ }}",
    ],
    ids=["variables", "keys and loops", "namespaces", "formats", "methods", "filters"],
)
def test_the_text_is_that_of_transformers(source):
    assert text_of(source) == slowly(source, MESSAGES)
    assert text_of(source, conversation("", "{}")) == slowly(source, conversation("", "{}"))


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ messages[0].content.__class__.mro() }}",
        "{{ messages[0].__class__.mro() }}",
        "{{ '{0.__class__.mro}'.format(messages)() }}",
        "{% set ns = namespace(f='{0.__class__.mro}'.format) %}{{ ns.f(messages)() }}",
        "{{ messages[0].missing.more }}",
        "{{ raise_exception('no') }}",
    ],
)
def test_what_the_sandbox_refuses_is_refused(source):
    guarded = "{% if messages[0].content == 'go' %}" + source + "{% endif %}"
    program, go = DirectProgram(guarded, TOKENS), conversation("go", "no")
    program.text(MESSAGES, False, lambda: slowly(guarded, MESSAGES))
    # Refused again and again: what is kept of a type is no answer for another one.
    for _ in range(2):
        with pytest.raises(TemplateError) as refused:
            program.text(go, False, never)
        with pytest.raises(type(refused.value)) as expected:
            slowly(guarded, go)
        assert str(refused.value) == str(expected.value)


def test_the_generation_prompt_reaches_the_program():
    program = DirectProgram("{{ add_generation_prompt }}", TOKENS)
    program.text(MESSAGES, True, lambda: "True")
    assert program.text(MESSAGES, False, never) == "False"


@pytest.mark.parametrize("source", ["{{ bos_token }}", "{{ raise_exception('no') }}"], ids=["other", "rejected"])
def test_a_program_that_once_gives_another_text_is_not_used(source):
    program = DirectProgram(source, TOKENS)
    assert [program.text(MESSAGES, False, lambda: "mine") for _ in range(3)] == ["mine"] * 3


def test_other_versions_of_transformers_are_asked_each_time(monkeypatch):
    monkeypatch.delattr(chat_template_utils, "_compile_jinja_template")
    program = DirectProgram("{{ bos_token }}", TOKENS)
    texts = iter("ab")
    assert [program.text(MESSAGES, False, lambda: next(texts)) for _ in range(2)] == ["a", "b"]
    assert compiled_template._compiled("{{ bos_token }}") is None


def test_messages_with_further_keys_are_not_taken():
    assert takes(MESSAGES)
    assert not takes([*MESSAGES, {"role": "assistant", "content": "", "reasoning": "transformers adds other names"}])


def test_a_program_is_kept():
    assert direct_program("{{ 1 }}", (("bos_token", "a"),)) is direct_program("{{ 1 }}", (("bos_token", "a"),))
    assert direct_program("{{ 1 }}", (("bos_token", "b"),)) is not direct_program("{{ 1 }}", (("bos_token", "a"),))
