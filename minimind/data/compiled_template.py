"""Renders messages of texts by the program that transformers compiles from a chat template.

source, special tokens -> direct_program -> messages -> text

`render_jinja_template` copies and converts every value for each rendering, and its sandbox asks anew what an attribute
of a type is. Texts need no conversion, and the answer depends on type and name alone, so it is kept. What is rendered
first is compared with what `render_jinja_template` gives; a difference means that the program is not used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, Template
from jinja2.runtime import LoopContext
from jinja2.sandbox import SandboxedEnvironment
from jinja2.utils import Namespace
from transformers.utils import chat_template_utils

# Keys of a message for which transformers adds no further ones.
_KEYS = frozenset({"role", "content"})
# Types whose attributes are the same for all values, and names that such a value does not have.
_PLAIN = frozenset({str, list, dict, tuple, int, float, bool, type(None)})
_OF_DICTS = frozenset(dir(dict))
# What a template gets from jinja itself, with values as attributes.
_HOLDERS = (Namespace, LoopContext)
# Methods that the sandbox replaces.
_REPLACED = frozenset({"format", "format_map"})


def takes(messages: list[dict[str, Any]]) -> bool:
    """Whether a program gives for messages of texts what `render_jinja_template` does."""
    return all(message.keys() <= _KEYS for message in messages)


class DirectProgram:
    """A template's program.

    Args:
        source: the template.
        variables: special tokens by name.

    Raises:
        Exception: whatever compiling the template raises.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self._template, self._variables = _compiled(source), variables
        self._is_compared = False

    def text(self, messages: list[dict[str, Any]], generation_prompt: bool, slowly: Callable[[], str]) -> str:
        """The text of messages that `takes` accepts.

        Args:
            generation_prompt: append what the template writes before an answer that is to be generated.
            slowly: renders the same by `render_jinja_template`.

        Raises:
            Exception: whatever the template raises.
        """
        if self._template is None:
            return slowly()
        if self._is_compared:
            return self._render(self._template, messages, generation_prompt)
        text, self._is_compared = slowly(), True
        try:
            is_same = self._render(self._template, messages, generation_prompt) == text
        except Exception:  # noqa: BLE001 - a template may raise anything
            is_same = False
        if not is_same:
            self._template = None
        return text

    def _render(self, template: Template, messages: list[dict[str, Any]], generation_prompt: bool) -> str:
        return template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=generation_prompt,
            **self._variables,
        )


@functools.lru_cache(maxsize=8)
def direct_program(source: str, variables: tuple[tuple[str, str], ...]) -> DirectProgram:
    """As `DirectProgram`, kept: special tokens as pairs of name and text."""
    return DirectProgram(source, dict(variables))


def _compiled(source: str) -> Template | None:
    """A template in an environment that remembers; None where this version of transformers has other names."""
    compile_template = getattr(chat_template_utils, "_compile_jinja_template", None)
    environment = getattr(compile_template(source), "environment", None) if compile_template else None
    # What other environments check is not known.
    if not isinstance(environment, SandboxedEnvironment):
        return None
    own = environment.overlay()
    # Of this environment alone; programs look it up for each attribute.
    vars(own)["getattr"] = _remembering(own)
    return own.from_string(source)


def _remembering(environment: Environment) -> Callable[[Any, str], Any]:
    """`SandboxedEnvironment.getattr` of an environment, which keeps what it finds out about types."""
    whole = environment.getattr
    known: dict[tuple[type, str], bool] = {}

    def is_safe(value: Any, name: str, found: Any) -> bool:
        kind = type(value)
        if (safe := known.get((kind, name))) is None:
            safe = known[kind, name] = environment.is_safe_attribute(value, name, found)  # type: ignore[attr-defined]
        return safe

    def get(value: Any, name: str) -> Any:
        kind = type(value)
        if kind is dict and name not in _OF_DICTS:
            if name in value:
                return value[name]
        elif (kind in _PLAIN and name not in _REPLACED) or isinstance(value, _HOLDERS):
            try:
                found = getattr(value, name)
            except AttributeError:
                return whole(value, name)
            # A namespace may keep a method that the sandbox replaces.
            if (kind in _PLAIN or type(found) in _PLAIN) and is_safe(value, name, found):
                return found
        return whole(value, name)

    return get
