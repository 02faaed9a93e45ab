"""Tokenizers with other templates, and the masked tokens of a conversation as text."""

from __future__ import annotations

import copy

from minimind.data.encoding import ConversationEncoder

# ChatML in which the template's variable `word` begins every message.
WORD = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (word | default('')) + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def with_template(tokenizer, template: str, *special: str):
    """A copy of the tokenizer with another template, and tokens for the template's markers."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    if special:
        changed.add_tokens(list(special), special_tokens=True)
    return changed


def counted(encoder: ConversationEncoder, messages: list) -> list[str]:
    """The decoded runs of masked tokens."""
    row = encoder.encode(messages, row_number=1)
    runs: list[list[int]] = []
    for index, (token, counts) in enumerate(zip(row.tokens, row.mask, strict=True)):
        if counts:
            if index == 0 or not row.mask[index - 1]:
                runs.append([])
            runs[-1].append(token)
    return [encoder.tokenizer.decode(run) for run in runs]
