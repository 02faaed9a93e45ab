"""Generates answers to several prompts at once, by transformers' own loop with its cache.

prompts (B rows of ids) -> padded on the left -> generate -> the new ids of each row, through the end of its answer
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.streamers import BaseStreamer

from minimind.generation.decoding import Decoding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer.

    Attributes:
        ids: its tokens, with the one that ends it.
        text: without special tokens.
        ended: the model ended it; False: it was cut at the limit.
    """

    ids: list[int]
    text: str
    ended: bool


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of tokens that end an answer: the tokenizer's, and those of the model's configuration."""
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    configured = getattr(model.config.get_text_config(), "eos_token_id", None)
    if isinstance(configured, list):
        return list(dict.fromkeys([*ends, *configured]))
    # MiniMind's configuration says 2 whatever the tokenizer is, so one id counts only where there is no other.
    return ends or ([] if configured is None else [configured])


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    seeds: Sequence[int] | None = None,
    streamer: BaseStreamer | None = None,
    on_token: Callable[[], object] | None = None,
    synced: bool = False,
) -> list[Answer]:
    """Answers to prompts. A row's answer does not depend on the other rows, up to rounding.

    Args:
        prompts: token ids of each row, at least one each.
        seeds: of each row, for sampling; None: 0, 1, 2, ...
        streamer: gets the tokens of a single row as they come.
        on_token: called for each new token of the rows.
        synced: all ranks generate, and take as many forwards as the rank that needs the most.
    """
    if len(prompts) > 1 and not takes_padding(model):
        each = zip(prompts, range(len(prompts)) if seeds is None else seeds, strict=True)
        rest: Any = {"on_token": on_token, "synced": synced}
        return [generate(model, tokenizer, [prompt], decoding, seeds=[seed], **rest)[0] for prompt, seed in each]
    ends = ends_of(model, tokenizer)
    pad = next((one for one in (tokenizer.pad_token_id, *ends) if one is not None), 0)
    length = max(map(len, prompts))
    # Left padding, so that all rows go on at the same place; the mask gives each row its own positions.
    tokens = torch.tensor([[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    assert len(prompts) == 1 or decoding.repetition_penalty == 1, "the penalty would count the padding"
    # A new configuration: that of a folder may sample in a way that nobody asked for.
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens, do_sample=False, eos_token_id=ends or None, pad_token_id=pad
    )
    processors = decoding.processors(range(len(prompts)) if seeds is None else seeds)
    with _own_settings(model):
        out = model.generate(
            tokens.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            logits_processor=processors if on_token is None else LogitsProcessorList([*processors, _Calls(on_token)]),
            streamer=streamer,
            synced_gpus=synced,
        )
    return [_answer(row, ends, tokenizer) for row in out[:, length:].tolist()]


@contextlib.contextmanager
def _own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Take the model's own generation settings away: they fill what the call leaves open, e.g. a penalty."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


class _Calls(LogitsProcessor):
    """Changes no logits; calls a function for each new token."""

    def __init__(self, on_token: Callable[[], object]) -> None:
        self._on_token = on_token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._on_token()
        return scores


def takes_padding(model: PreTrainedModel) -> bool:
    """Whether rows of a batch may differ in length. A recurrent model (Mamba, RWKV) would read the padding too."""
    return not getattr(model, "_is_stateful", False)


def _answer(row: list[int], ends: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    """The answer in a row, which is padded after its end."""
    end = next((place for place, token in enumerate(row) if token in ends), None)
    ids = row if end is None else row[: end + 1]
    return Answer(ids=ids, text=tokenizer.decode(ids, skip_special_tokens=True), ended=end is not None)
