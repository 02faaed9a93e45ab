"""Greedy answers of weights on disk to a few messages, in float32 on this process's CPU.

weight source -> source_answers -> model in memory -> answers
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minimind.generation.batch import generate
from minimind.generation.decoding import Decoding
from minimind.weights.construction import model_from_tensors
from minimind.weights.sources import WeightSource, tensors


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int = 64
) -> list[str]:
    """The model's greedy answer to each prompt, as one user turn."""
    # Rendered first and tokenised without special tokens: the template contains them already.
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]
    ids = tokenizer(texts, add_special_tokens=False).input_ids
    return [one.text.strip() for one in generate(model, tokenizer, ids, Decoding(max_new_tokens=max_new_tokens))]


def source_answers(source: WeightSource, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """Answers of the model in a weight source."""
    state = {name: tensor.float() for name, tensor in tensors(source)}
    return answers(model_from_tensors(source.config, state), tokenizer, prompts)
