"""What weights of a stage know, and which stages have added to it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from minimind import demo
from minimind.chain.standing import HEADER, Standing, good_rows, look_at, shortfalls
from minimind.weights.construction import model_from_tensors
from minimind.weights.sources import open_weights


@pytest.fixture(scope="module")
def model():
    source = open_weights(demo.WEIGHT_PATH, {})
    return model_from_tensors(source.config, {name: source.read(name).float() for name in source.shapes()})


def test_rows_are_the_good_answers_of_the_held_out_pairs(tokenizer):
    rows = good_rows(tokenizer)
    assert len(rows) == len(demo.EVAL_PATH.read_text(encoding="utf-8").splitlines())
    said = tokenizer.decode([token for token, counts in zip(*rows[0], strict=True) if counts])
    assert said == "好的！2加6的结果是8。<|im_end|>\n"


def test_perplexity_and_accuracy_are_those_of_the_model_s_own_loss(model, tokenizer):
    row = good_rows(tokenizer)[0]
    standing = look_at("demo", model, tokenizer, [row])
    labels = torch.tensor([[token if counts else -100 for token, counts in zip(*row, strict=True)]])
    with torch.no_grad():
        out = model(torch.tensor([row.tokens]), labels=labels)
    assert math.log(standing.perplexity) == pytest.approx(float(out.loss), rel=1e-5)
    likeliest = out.logits[0, :-1].argmax(-1)
    right = [bool(one == label) for one, label in zip(likeliest, labels[0, 1:], strict=True) if label >= 0]
    assert standing.answer_accuracy == pytest.approx(sum(right) / len(right))
    assert len(standing.answers) == len(demo.SAMPLE_PROMPTS)


def test_every_stage_must_add_to_every_metric():
    first = Standing(name="new weights", perplexity=100.0, answer_accuracy=0.1)
    second = Standing(name="sft", perplexity=10.0, answer_accuracy=0.4)
    third = Standing(name="dpo", perplexity=9.0, answer_accuracy=0.5, reward_accuracy=0.9)
    assert shortfalls([first, second, third]) == []
    assert shortfalls([second, first]) == [
        "new weights: held-out perplexity 10 -> 100",
        "new weights: answer accuracy 0.400 -> 0.100",
    ]
    (missed,) = shortfalls([second, dataclasses.replace(third, reward_accuracy=0.5)])
    assert missed == "dpo: reward accuracy 0.500, where 0.5 is chance"
    # Weights of numbers that are not finite have learned nothing.
    assert len(shortfalls([first, dataclasses.replace(second, perplexity=math.nan)])) == 1


def test_a_row_of_the_table_has_the_columns_of_its_header():
    third = Standing(name="dpo", perplexity=9.0, answer_accuracy=0.5, reward_accuracy=0.9)
    assert third.describe() == "dpo                 9.00            0.500            0.900"
    assert len(third.describe()) == len(HEADER)
    assert dataclasses.replace(third, reward_accuracy=None).describe().endswith(" -")
