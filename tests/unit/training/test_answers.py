"""Answers of weights on disk."""

from __future__ import annotations

from minimind import demo
from minimind.training.answers import answers, source_answers
from minimind.weights.construction import model_from_tensors
from minimind.weights.sources import open_weights, tensors

PROMPT = "What do horses eat?"


def test_the_answer_is_that_of_the_model_in_memory(tokenizer):
    source = open_weights(demo.WEIGHT_PATH, {})
    model = model_from_tensors(source.config, {name: tensor.float() for name, tensor in tensors(source)})
    (answer,) = source_answers(source, tokenizer, [PROMPT])
    assert answer
    assert answers(model, tokenizer, [PROMPT]) == [answer]
    assert answers(model, tokenizer, [PROMPT], max_new_tokens=2) != [answer]
