"""The demo's tokenizer: the script writes the bundled bytes, and tokens and template are of MiniMind's kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from minimind.demo import TOKENIZER_PATH, make_tokenizer
from tests.unit.demo.files import run_script


def test_script_writes_the_bundled_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_script(Path(make_tokenizer.__file__), tmp_path, monkeypatch)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "tokenizer" / name).read_bytes() == (TOKENIZER_PATH / name).read_bytes()


def test_size_and_special_tokens_are_those_of_minimind(tokenizer: PreTrainedTokenizerFast) -> None:
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len(tokenizer) == tokenizer.vocab_size == 6400
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 0)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.model_max_length == 32768


@pytest.mark.parametrize("text", ["Hello, world!", "你好，世界！", " two  spaces\n", "naïve 🙂", "1234567890"])
def test_text_survives_encoding_without_special_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2} & set(ids)


def test_template_of_a_plain_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
    ]
    framed = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True) == framed
    assert tokenizer.apply_chat_template(messages, tokenize=False) == framed + "A<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages[1:2], tokenize=False) == "<|im_start|>user\nU<|im_end|>\n"


def test_template_of_tools_calls_and_results(tokenizer: PreTrainedTokenizerFast) -> None:
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


def test_template_rejects_an_unknown_role(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="unknown role narrator"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "N"}], tokenize=False)
