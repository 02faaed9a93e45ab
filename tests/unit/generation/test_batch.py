"""Answers in a batch are those of each prompt alone."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM, TextStreamer

from minimind import demo
from minimind.generation.batch import ends_of, generate, takes_padding
from minimind.generation.decoding import Decoding
from minimind.training.answers import answers
from minimind.weights.construction import model_from_tensors
from minimind.weights.sources import open_weights
from tests.unit.conversion.made import made

GREEDY, SAMPLED = Decoding(max_new_tokens=24), Decoding(max_new_tokens=24, temperature=1.0, top_p=0.95)


@pytest.fixture(scope="module")
def model():
    source = open_weights(demo.WEIGHT_PATH, {})
    return model_from_tensors(source.config, {name: source.read(name).float() for name in source.shapes()})


@pytest.fixture(scope="module")
def prompts(tokenizer):
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in (*demo.SAMPLE_PROMPTS, "What do horses eat? " * 5)
    ]
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def test_greedy_answers_are_those_of_each_prompt_alone(model, tokenizer, prompts):
    found = generate(model, tokenizer, prompts, GREEDY)
    assert len({len(prompt) for prompt in prompts}) > 2
    for prompt, answer in zip(prompts, found, strict=True):
        assert generate(model, tokenizer, [prompt], GREEDY) == [answer]
    assert [one.text.strip() for one in found[:4]] == answers(model, tokenizer, demo.SAMPLE_PROMPTS, 24)


def test_the_cache_changes_no_answer(model, tokenizer, prompts):
    """The oracle: the whole row is computed anew for each token."""
    for prompt, answer in zip(prompts, generate(model, tokenizer, prompts, GREEDY), strict=True):
        row = list(prompt)
        for _ in answer.ids:
            with torch.no_grad():
                row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
        assert row[len(prompt) :] == answer.ids


def test_each_token_is_reported(model, tokenizer, prompts):
    calls = []
    found = generate(model, tokenizer, prompts, GREEDY, on_token=lambda: calls.append(1))
    assert found == generate(model, tokenizer, prompts, GREEDY)
    assert len(calls) == max(len(answer.ids) for answer in found)


def test_recurrent_models_generate_row_by_row_without_padding(model, tokenizer):
    assert takes_padding(model)
    config = MambaConfig(vocab_size=640, hidden_size=16, num_hidden_layers=1, state_size=4, eos_token_id=None)
    torch.manual_seed(0)
    recurrent, prompts = MambaForCausalLM(config).eval(), [[5, 6, 7], [8] * 9]
    decoding = Decoding(max_new_tokens=4, temperature=1.0)
    found = generate(recurrent, tokenizer, prompts, decoding, seeds=[3, 4])
    assert not takes_padding(recurrent)
    assert found == [
        generate(recurrent, tokenizer, [prompt], decoding, seeds=[seed])[0]
        for prompt, seed in zip(prompts, (3, 4), strict=True)
    ]


@pytest.mark.parametrize("kind", ["llama untied, YaRN", "qwen3_moe top 2, YaRN"])
def test_every_kind_of_model_generates_in_batches(kind, tokenizer):
    tiny, prompts = made(kind), [[5, 6, 7], [8] * 9, [9, 10]]
    decoding = Decoding(max_new_tokens=6)
    found = generate(tiny, tokenizer, prompts, decoding)
    assert found == [generate(tiny, tokenizer, [prompt], decoding)[0] for prompt in prompts]


def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(model, tokenizer, prompts):
    found = generate(model, tokenizer, prompts, SAMPLED, seeds=[7] * len(prompts))
    assert generate(model, tokenizer, prompts[1:2], SAMPLED, seeds=[7]) == found[1:2]
    others = [generate(model, tokenizer, prompts[1:2], SAMPLED, seeds=[seed])[0].ids for seed in range(6)]
    assert len({tuple(ids) for ids in others}) > 1


def test_an_answer_ends_at_its_end_or_at_the_limit(model, tokenizer, prompts):
    (whole,) = generate(model, tokenizer, prompts[:1], GREEDY)
    assert whole.ended
    assert whole.ids[-1] == tokenizer.eos_token_id
    assert "<|im_end|>" not in whole.text
    (cut,) = generate(model, tokenizer, prompts[:1], Decoding(max_new_tokens=3))
    assert not cut.ended
    assert cut.ids == whole.ids[:3]


def test_a_folder_s_own_way_of_generating_is_not_used(model, tokenizer, prompts, monkeypatch):
    expected = generate(model, tokenizer, prompts[:1], GREEDY)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(do_sample=True, temperature=5.0, max_new_tokens=2))
    assert generate(model, tokenizer, prompts[:1], GREEDY) == expected


def test_tokens_are_streamed(model, tokenizer, prompts, capsys):
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    (answer,) = generate(model, tokenizer, prompts[:1], GREEDY, streamer=streamer)
    assert capsys.readouterr().out.strip() == answer.text.strip()


def test_ends_are_the_tokenizer_s_or_the_model_s(tokenizer, monkeypatch):
    assert ends_of(made(eos_token_id=9), tokenizer) == [2]
    assert ends_of(made(eos_token_id=[9, 2, 11]), tokenizer) == [2, 9, 11]
    monkeypatch.setattr(type(tokenizer), "eos_token_id", None, raising=False)
    assert ends_of(made(eos_token_id=9), tokenizer) == [9]
