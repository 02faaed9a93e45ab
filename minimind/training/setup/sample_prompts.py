"""The prompts that a run samples, and the checks of their flags.

--sample_prompts N    -> held-out pairs, spread over all sets -> SamplePrompt
--sample_prompts FILE -> prompt_file.py                       -> SamplePrompt
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from minimind.config import JobConfig, Settings
from minimind.data.control_tokens import special_tokens
from minimind.data.pair_tables import PairTables
from minimind.data.prompts import split_answer
from minimind.data.shapes import Items
from minimind.data.sources import RowError
from minimind.data.template import ChatTemplate, TemplateInput
from minimind.errors import ConfigError, MiniMindError
from minimind.objective.interface import AnyObjective
from minimind.training.jobs.kinds import kind_of
from minimind.training.samples import DEFAULT_NUMBER, SamplePrompt
from minimind.training.setup.draft import Check, Draft
from minimind.training.setup.prompt_file import read_prompts
from minimind.training.setup.start_weights import model_setting
from minimind.weights.sources import WeightSource

# Stands for the text of a message, to see what the template writes around it.
_ANY_TEXT = "X0Y1Z2"
_FLAGS = ("sample_interval", "sample_tokens", "sample_temperature", "sample_top_p", "sample_seed")


def with_default_number(settings: Settings) -> Settings:
    """Settings in which --sample_interval alone samples a few held-out prompts."""
    samples = settings.config.samples
    if samples.sample_prompts is None and samples.sample_interval and settings.config.data.eval_data_path:
        return settings.with_defaults({"sample_prompts": str(DEFAULT_NUMBER)}, "--sample_interval")
    return settings


def file_prompts(
    config: JobConfig, objective: AnyObjective, tokenizer: PreTrainedTokenizerBase, source: WeightSource
) -> list[SamplePrompt]:
    """The prompts of a file.

    Raises:
        DataError: they cannot be used.
    """
    return read_prompts(
        Path(config.samples.sample_prompts or ""),
        tokenizer,
        _template_kwargs(config),
        of_texts=kind_of(config).items(objective) is Items.TEXTS,
        room=_room(config, source),
    )


def held_out_prompts(
    config: JobConfig,
    objective: AnyObjective,
    table: PairTables,
    tokenizer: PreTrainedTokenizerBase,
    source: WeightSource,
) -> list[SamplePrompt]:
    """So many prompts of held-out pairs as --sample_prompts says, at equal distances; fewer if there are fewer.

    Those are left out that have no answer, or too many tokens for the model to answer.
    """
    room, number = _room(config, source), config.samples.number or 0
    of_texts = kind_of(config).items(objective) is Items.TEXTS
    shown = _for_people(tokenizer, None if of_texts else _template_kwargs(config))

    def prompt_of(index: int) -> SamplePrompt | None:
        pair = table[index]
        prompt, answer = split_answer(pair)
        if not len(prompt) or not len(answer) or (room is not None and len(prompt) > room):
            return None
        return SamplePrompt(
            ids=tuple(prompt.tolist()),
            text=shown(prompt.tolist()),
            expected=tokenizer.decode(answer.tolist(), skip_special_tokens=True).strip(),
            place=table.place(pair.index),
        )

    chosen = np.unique(np.linspace(0, len(table) - 1, min(number, len(table))).astype(int))
    return [one for index in chosen.tolist() if (one := prompt_of(index)) is not None]


def _room(config: JobConfig, source: WeightSource) -> int | None:
    """Tokens that a prompt may have; None: any number."""
    longest = model_setting(source, "max_position_embeddings")
    return None if longest is None else int(longest) - config.samples.sample_tokens


def _template_kwargs(config: JobConfig) -> Mapping[str, Any]:
    try:
        found = json.loads(config.data.template_kwargs or "{}")
    except ValueError:
        return {}  # refused with the data
    return found if isinstance(found, dict) else {}


def _for_people(
    tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None
) -> Callable[[Sequence[int]], str]:
    """Tokens of a prompt -> its text, without control tokens and without what the template writes before the first
    user's message and after the last one.

    Args:
        arguments: variables of the template; None: prompts are texts, which no template has written.
    """
    before = after = ""
    if arguments is not None:
        turns = [{"role": "user", "content": _ANY_TEXT}]
        with contextlib.suppress(RowError, MiniMindError):
            text = ChatTemplate(tokenizer).render(turns, TemplateInput(arguments=arguments), generation_prompt=True)
            before, _, after = (_without_controls(part, tokenizer) for part in text.partition(_ANY_TEXT))
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True).removeprefix(before).removesuffix(after)


def _without_controls(written: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a template writes, without its control tokens. In a user's text their names are no such tokens, and stay."""
    # Decoding leaves out those too that only the list of added tokens calls special, as those of Llama 3.
    for control in special_tokens(tokenizer):
        written = written.replace(control, "")
    return written


def samples_can_be_taken(draft: Draft) -> Iterator[MiniMindError]:
    """Flags about samples have prompts, and values that can be."""
    settings, config = draft.settings, draft.settings.config
    samples, number = config.samples, config.samples.number
    given = [name for name in _FLAGS if settings.explicit(name)]
    if not samples.is_on:
        if given:
            yield ConfigError(
                f"--{given[0]} needs --sample_prompts FILE, or held-out {config.items} (--eval_data_path) to take "
                "prompts from"
            )
        return
    if samples.sample_top_p > 1:
        yield ConfigError(f"--sample_top_p {samples.sample_top_p:g} is above 1; it is a sum of probabilities")
    if number is not None and not config.data.eval_data_path:
        yield ConfigError(
            f"--sample_prompts {number} takes prompts of held-out {config.items}: give --eval_data_path, or a file "
            "with prompts"
        )
    if draft.source is None:
        return
    room = _room(config, draft.source)
    if room is not None and room < 1:
        yield ConfigError(
            f"--sample_tokens {samples.sample_tokens}: the model has {room + samples.sample_tokens} positions"
        )
    elif number is None and draft.world.is_main and draft.tokenizer is not None and draft.objective is not None:
        try:
            file_prompts(config, draft.objective, draft.tokenizer, draft.source)
        except MiniMindError as error:
            yield error


SAMPLE_CHECKS: Sequence[Check] = (samples_can_be_taken,)
