"""llama.cpp, by its Python package, takes an export as GGUF and gives the same tokens. Skipped where it is missing.

It is no dependency, because its package compiles for minutes: `pip install llama-cpp-python gguf`.
"""

from __future__ import annotations

import pytest
import torch

from minimind import demo
from minimind.conversion.command import export
from tests.unit.conversion.made import form_of, made

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; it compiles for minutes")
pytest.importorskip("gguf", reason="gguf is not installed")

NEW_TOKENS = 16
FLOAT32 = 0  # ggml's number; by default keys and values are kept in 16 bits
PROMPTS = (*demo.SAMPLE_PROMPTS, "Hello  <|im_start|>user")


def exported(source, to, out):
    export([str(word) for word in (source, "--to", to, "--out", out, "--tokenizer_path", demo.TOKENIZER_PATH)])
    from tests.parity.gguf_file import write_gguf

    write_gguf(out, out / "model.gguf")
    return out


def opened(folder):
    return llama_cpp.Llama(
        str(folder / "model.gguf"), n_ctx=128, type_k=FLOAT32, type_v=FLOAT32, logits_all=True, verbose=False
    )


def greedy(llama, ids):
    """Greedy tokens, through the end of the answer."""
    llama.reset()
    found = []
    for token in llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        found.append(token)
        if token == llama.token_eos() or len(found) == NEW_TOKENS:
            return found
    return found


def greedy_here(model, ids):
    tokens = torch.tensor([ids])
    mask = torch.ones_like(tokens)
    out = model.generate(tokens, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    return out[0, len(ids) :].tolist()


def test_answers_of_the_demo_are_the_same(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = exported(demo.WEIGHT_PATH, "qwen3", tmp_path / "demo")
    llama, model = opened(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == ids
        assert greedy(llama, ids) == greedy_here(model, ids)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen3_moe"])
def test_logits_of_every_architecture_are_the_same(kind, tmp_path):
    model = made(kind)
    model.save_pretrained(tmp_path / "start")
    llama = opened(exported(tmp_path / "start", form_of(kind), tmp_path / "out"))
    ids = torch.randint(3, 6400, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    llama.eval(ids)
    there = torch.tensor(llama.scores[: len(ids)])
    with torch.no_grad():
        here = model(torch.tensor([ids])).logits[0]
    # Its matrix products on a CPU round otherwise.
    torch.testing.assert_close(there, here, rtol=0, atol=1e-3)
