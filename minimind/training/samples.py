"""Answers of a model, to see with one's own eyes what training changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minimind.weights.empty import plain_model
from minimind.weights.sources import WeightSource, tensors


@torch.no_grad()
def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int = 64
) -> list[str]:
    """The model's greedy answer to each prompt, as one user turn."""
    out = []
    for prompt in prompts:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        generated = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        out.append(tokenizer.decode(generated[0, tokens.shape[1] :], skip_special_tokens=True).strip())
    return out


def source_answers(source: WeightSource, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """Answers of the model that a weight source holds, on one process's CPU in float32."""
    state = {name: tensor.float() for name, tensor in tensors(source)}
    return answers(plain_model(source.config, state), tokenizer, prompts)
