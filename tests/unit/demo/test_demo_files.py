"""The bundled demo files are what their scripts make, and fit together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minimind import MiniMindForCausalLM
from minimind.demo import EVAL_PATH, SAMPLE_PROMPTS, TOKENIZER_PATH, TRAIN_PATH, WEIGHT_PATH
from minimind.demo.make_data import split_cases
from minimind.weights.io import fill
from minimind.weights.sources import open_weights

MEGABYTE = 2**20


def run_script(name: str, out: Path) -> None:
    command = [sys.executable, "-m", f"minimind.demo.{name}", "--out", str(out)]
    subprocess.run(command, check=True, timeout=120)


def read_pairs(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def user_turns(pair: dict[str, Any]) -> list[str]:
    return [message["content"] for message in pair["chosen"] if message["role"] == "user"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(TOKENIZER_PATH)


def test_data_script_makes_the_bundled_bytes(tmp_path: Path) -> None:
    run_script("make_data", tmp_path)
    for path in (TRAIN_PATH, EVAL_PATH):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
        assert path.stat().st_size < 0.4 * MEGABYTE


def test_tokenizer_script_makes_the_bundled_bytes(tmp_path: Path) -> None:
    run_script("make_tokenizer", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "tokenizer" / name).read_bytes() == (TOKENIZER_PATH / name).read_bytes()


@pytest.mark.parametrize("path", [TRAIN_PATH, EVAL_PATH])
def test_pairs_differ_in_the_last_answer_only(path: Path) -> None:
    for pair in read_pairs(path):
        assert set(pair) == {"chosen", "rejected"}
        chosen, rejected = pair["chosen"], pair["rejected"]
        assert chosen[:-1] == rejected[:-1]
        assert chosen[-1]["role"] == rejected[-1]["role"] == "assistant"
        assert chosen[-1]["content"] != rejected[-1]["content"]
        turns = [message["role"] for message in chosen if message["role"] != "system"]
        assert turns in (["user", "assistant"], ["user", "assistant"] * 2)
        assert all(message["content"] for message in chosen)


@pytest.mark.parametrize("path", [TRAIN_PATH, EVAL_PATH])
def test_length_does_not_tell_chosen_from_rejected(path: Path) -> None:
    lengths = [
        [len(pair[half][-1]["content"].encode()) for half in ("chosen", "rejected")] for pair in read_pairs(path)
    ]
    chosen_longer = sum(chosen > rejected for chosen, rejected in lengths) / len(lengths)
    assert 0.4 < chosen_longer < 0.6
    chosen_total, rejected_total = (sum(column) for column in zip(*lengths, strict=True))
    assert 0.85 < chosen_total / rejected_total < 1.15


def test_no_held_out_question_is_seen_in_training() -> None:
    seen = {turn for pair in read_pairs(TRAIN_PATH) for turn in user_turns(pair)}
    held_out = [user_turns(pair)[-1] for pair in read_pairs(EVAL_PATH)]
    assert len(set(held_out)) == len(held_out) == 100
    assert not seen & set(held_out)
    # The start weights are made from the train and spare cases.
    cases = split_cases()
    assert not {case.question for case in cases.train + cases.spare} & set(held_out)
    assert set(held_out) == {case.question for case in cases.held_out}


def test_sample_prompts_are_held_out() -> None:
    held_out = {user_turns(pair)[-1] for pair in read_pairs(EVAL_PATH)}
    assert len(SAMPLE_PROMPTS) == 4
    assert set(SAMPLE_PROMPTS) <= held_out
    assert sum(prompt.isascii() for prompt in SAMPLE_PROMPTS) == 2


def test_tokenizer_is_of_minimind_kind(tokenizer: PreTrainedTokenizerFast) -> None:
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len(tokenizer) == tokenizer.vocab_size == 6400
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 0)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.model_max_length == 32768


@pytest.mark.parametrize("text", ["Hello, world!", "你好，世界！", " two  spaces\n", "naïve 🙂", "1234567890"])
def test_tokenizer_keeps_every_byte_and_adds_nothing(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2} & set(ids)


def test_template_frames_a_plain_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
    ]
    framed = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True) == framed
    assert tokenizer.apply_chat_template(messages, tokenize=False) == framed + "A<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages[1:2], tokenize=False) == "<|im_start|>user\nU<|im_end|>\n"


def test_template_renders_tools_calls_and_results(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": {"城市": "巴黎"}}},
                {"type": "function", "function": {"name": "g", "arguments": '{"n": 1}'}},
            ],
        },
        {"role": "tool", "content": "R1"},
        {"role": "tool", "content": "R2"},
        {"role": "assistant", "content": "A"},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    system, rest = text.split("<|im_start|>user\nU<|im_end|>\n")
    assert system.startswith("<|im_start|>system\nS\n\n")
    assert system.endswith("<|im_end|>\n")
    assert '<tools>\n{"type": "function", "function": {"name": "f"}}\n</tools>' in system
    assert rest == (
        '<|im_start|>assistant\n<tool_call>{"name": "f", "arguments": {"城市": "巴黎"}}</tool_call>\n'
        '<tool_call>{"name": "g", "arguments": {"n": 1}}</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nR1\n</tool_response>\n<tool_response>\nR2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>\n"
    )


def test_template_refuses_an_unknown_role(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="unknown role narrator"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "N"}], tokenize=False)


def test_start_weights_fit_the_model_that_their_tensors_tell(tokenizer: PreTrainedTokenizerFast) -> None:
    assert WEIGHT_PATH.stat().st_size < 2 * MEGABYTE
    source = open_weights(WEIGHT_PATH, {})
    assert source.config.generation == 3
    assert source.config.vocab_size == len(tokenizer)
    assert source.config.tie_word_embeddings
    model = MiniMindForCausalLM(source.config).eval()
    fill(model, source)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
