"""Options that both encoders have: the share of empty <think> blocks, and the template's variables."""

from __future__ import annotations

import pytest

from minimind.data.encoder import TurnEncoder, build_encoder
from minimind.data.encoding import EMPTY_THINK, EncodingOptions
from tests.conftest import conversation
from tests.unit.data.encoded import WORD, counted, with_template

THINKING = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + ('<think>\n\n</think>\n\n' if m.role == " + (
    "'assistant' else '') + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def keeps_think(tokenizer, ratio: float, rows: range, answer: str = "Hello!") -> list[bool]:
    encoder = TurnEncoder(with_template(tokenizer, THINKING), EncodingOptions(empty_think_ratio=ratio))
    texts = [tokenizer.decode(encoder.encode(conversation("Hi", answer), row).tokens) for row in rows]
    return [EMPTY_THINK in text for text in texts]


def test_empty_think_is_kept_with_ratio_1_and_removed_with_ratio_0(tokenizer):
    assert all(keeps_think(tokenizer, 1.0, range(50)))
    assert not any(keeps_think(tokenizer, 0.0, range(50)))


def test_empty_think_depends_on_the_row_number_only(tokenizer):
    """Deterministic, and the same for both halves of a pair."""
    first = keeps_think(tokenizer, 0.3, range(400))
    assert keeps_think(tokenizer, 0.3, range(400)) == first
    assert keeps_think(tokenizer, 0.3, range(400), answer="Go away.") == first


def test_share_of_kept_empty_thinks_is_the_ratio(tokenizer):
    """Binomial, n = 400, p = 0.3: mean 120, standard deviation 9.2; the bounds are four deviations away."""
    kept = sum(keeps_think(tokenizer, 0.3, range(400)))
    assert 83 <= kept <= 157


def test_larger_ratio_keeps_all_rows_of_a_smaller_one(tokenizer):
    few, more = keeps_think(tokenizer, 0.2, range(100)), keeps_think(tokenizer, 0.6, range(100))
    assert sum(few) < sum(more)
    assert all(m for f, m in zip(few, more, strict=True) if f)


def test_removing_an_empty_think_keeps_the_rest_of_the_text(tokenizer):
    encoder = TurnEncoder(with_template(tokenizer, THINKING), EncodingOptions(empty_think_ratio=0.0))
    assert counted(encoder, conversation("Hi", "Hello!")) == ["Hello!<|im_end|>\n"]


@pytest.mark.parametrize("mask", ["turns", "minimind"])
def test_a_row_s_own_arguments_override_those_of_the_run(tokenizer, mask):
    """The answer is written with the word that the arguments give."""
    changed = with_template(tokenizer, WORD)
    encoder = build_encoder(changed, EncodingOptions(mask=mask, template_kwargs={"word": "run "}))
    assert counted(encoder, conversation("Hi", "Hello!")) == ["run Hello!<|im_end|>\n"]
    row = encoder.encode(conversation("Hi", "Hello!"), 1, template_kwargs={"word": "row "})
    assert "row Hello!" in tokenizer.decode(row.tokens)
    assert "run" not in tokenizer.decode(row.tokens)
